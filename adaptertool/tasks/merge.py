"""The plan of `merge`: adapters into a base checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from adaptertool.arguments import (
    PathLike,
    as_input,
    check_as_trained,
    check_dtype,
    check_precision,
    check_quantise,
    given_settings,
    parse_size,
)
from adaptertool.errors import UsageError, argument
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats.beside import left_out, require_used
from adaptertool.methods import METHOD_BY_NAME, settings_of
from adaptertool.planning.blend import plan_blend
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.schedules import Given, parse_weights, usual, with_rules
from adaptertool.planning.settings import ByTensor, GivenSetting, parse_settings
from adaptertool.planning.sharding import with_shard_size
from adaptertool.planning.sources import (
    COMPOSITIONS,
    Prepared,
    Reading,
    base_of,
    check_compose,
    open_adapter,
    open_source,
    with_storage,
)
from adaptertool.planning.tokenizer import with_tokenizer
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Blend, Plan
from adaptertool.spec.schedule import Schedule


class MergeRecipe(NamedTuple):
    """How sources are combined. The fields are those of `merge`."""

    compose: str = COMPOSITIONS[0]
    precision: str = EXACT
    method: str | None = None
    settings: Mapping[str, GivenSetting] = MappingProxyType({})  # of the method, where given
    tokenizer: str | None = None
    dtype: str | None = None
    max_shard_size: int | str | None = None
    quantise: str | None = None
    as_trained: str | None = None


def prepare_merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    weights: Sequence[Given] | None = None,
    *,
    compose: str = "sequential",
    renames: Sequence[str] | Renames = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    method: str | None = None,
    density: GivenSetting | None = None,
    seed: int | None = None,
    leave_out: Sequence[str] = (),
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenizer: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    quantise: str | None = None,
    as_trained: str | None = None,
    **settings: GivenSetting | None,
) -> Plan:
    """The plan of a merge, from headers and configs alone. The arguments are those of `merge`.

    Raises UsageError for a wrong number of weights, InputError for what the files hold.

    >>> plan = adaptertool.prepare_merge("fixtures/base", ["fixtures/lora"])  # reads headers only
    >>> adaptertool.preview(plan, "merged").tensors_edited
    28
    """
    given = given_settings("prepare_merge", settings_of(), {"density": density, "seed": seed, **settings})
    recipe = MergeRecipe(compose, precision, method, given, tokenizer, dtype, max_shard_size, quantise, as_trained)
    return prepare(base, adapters, weights, recipe, Reading(renames, leave_out, expert_layout, only, exclude)).plan


def prepare(
    base: PathLike | Checkpoint,
    adapters: Sequence[PathLike],
    weights: Sequence[Given] | None,
    recipe: MergeRecipe,
    reading: Reading,
) -> Prepared:
    """The plan of `prepare_merge`, with what it was made of. Raises UsageError for no adapter, and what planning
    raises."""
    if isinstance(adapters, str | os.PathLike):
        raise UsageError("adapters must be a list of paths, also where there is only one")
    if not adapters:
        raise UsageError("no adapter given")
    check_compose(recipe.compose)
    numbers = parse_weights(weights, len(adapters))
    combined, size = _blend(recipe, numbers), parse_size(recipe.max_shard_size)
    quantise = check_quantise(recipe.quantise, recipe.dtype)
    if quantise is not None and recipe.method is not None:
        raise UsageError("methods write weights that are not quantised: give --dtype bf16 in the place of --quantise")
    checkpoint = base_of(base, check_dtype(recipe.dtype), quantise, check_as_trained(recipe.as_trained))
    paths = [as_input(path, "ADAPTER") for path in adapters]
    if combined is not None:
        done = _prepare_blend(checkpoint, paths, (numbers, *combined), recipe, reading)
    else:
        done = _prepare_sum(checkpoint, paths, numbers, recipe, reading)
    plan = with_tokenizer(done.plan, checkpoint, recipe.tokenizer)
    plan = with_storage(plan, dtype=recipe.dtype, quantise=quantise, as_trained=recipe.as_trained)
    return done._replace(plan=with_shard_size(plan, checkpoint, size))


def _prepare_sum(
    base: Checkpoint, paths: Sequence[Path], weights: Sequence[Schedule], recipe: MergeRecipe, reading: Reading
) -> Prepared:
    """W + Σ w·Δ, one after the other or together."""
    with renaming(reading.renames) as own:
        opened = [open_adapter(path, base, reading, own) for path in paths]
    require_used(reading.leave_out, opened)
    subject = open_base(base)
    plan = plan_merge(subject, opened, weights, reading.choice, mixed=recipe.compose == "mixed")
    choices = {"compose": recipe.compose, "renames": list(own.texts), **left_out(opened), **reading.chosen}
    choices = with_rules(choices, weights)
    plan = dataclasses.replace(plan, precision=check_precision(recipe.precision), choices=choices)
    return Prepared(plan, base, subject, opened)


def _blend(recipe: MergeRecipe, numbers: Sequence[Schedule]) -> tuple[Blend, ByTensor] | None:
    """The method that combines the changes, where one is asked for, and those of its settings that differ between
    tensors. Raises UsageError."""
    method = recipe.method
    if method is None:
        if recipe.settings:
            verb = "belong" if len(recipe.settings) > 1 else "belongs"
            raise UsageError(f"{' and '.join(map(argument, recipe.settings))} {verb} to a method (--method)")
        return None
    if recipe.compose != COMPOSITIONS[0]:
        raise UsageError("a method says itself how adapters are composed; leave out --compose")
    precision = check_precision(recipe.precision)
    if method not in METHOD_BY_NAME:
        raise UsageError(f"method is {', '.join(METHOD_BY_NAME)}, not {method!r}")
    if precision != EXACT:
        raise UsageError(f"{method} has one precision: float64, rounded once")
    settings, by_tensor = parse_settings(METHOD_BY_NAME[method], recipe.settings, len(numbers))
    return Blend(method, tuple(map(usual, numbers)), settings), by_tensor


def _prepare_blend(
    base: Checkpoint,
    paths: Sequence[Path],
    how: tuple[Sequence[Schedule], Blend, ByTensor],
    recipe: MergeRecipe,
    reading: Reading,
) -> Prepared:
    """The changes of the sources, combined: `how` has the weights, the method and its settings by tensor."""
    weights, blend, by_tensor = how
    with renaming(reading.renames) as own:
        opened = [open_source(path, base, reading, own, recipe.dtype) for path in paths]
    if recipe.as_trained and (other := next((one for one in opened if isinstance(one, Checkpoint)), None)):
        raise UsageError(f"{argument('as_trained')} is for adapters, and {other.path} is a checkpoint")
    adapters = [source for source in opened if isinstance(source, Adapter)]
    require_used(reading.leave_out, adapters)
    plan = plan_blend(base, opened, weights, blend, reading.choice, by_tensor)
    choices: dict[str, object] = {"method": blend.method, **by_tensor.said(blend.settings), "renames": list(own.texts)}
    choices = with_rules({**choices, **left_out(adapters), **reading.chosen}, weights)
    return Prepared(dataclasses.replace(plan, choices=choices), base, None, opened)
