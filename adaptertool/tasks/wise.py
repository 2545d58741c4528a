"""The plan of `wise`: interpolation in weight space between a base and what was tuned from it (Wise-FT)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from adaptertool.architectures.decoded_beside import as_numbers, same_numbers
from adaptertool.arguments import (
    Number,
    PathLike,
    as_input,
    check_as_trained,
    check_dtype,
    check_precision,
    check_quantise,
    parse_alphas,
    parse_size,
)
from adaptertool.errors import InputError, UsageError, argument
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.pipeline import holds_weights
from adaptertool.formats import is_adapter
from adaptertool.formats.beside import left_out, require_used
from adaptertool.formats.checkpoints import open_checkpoint, require_merged
from adaptertool.planning.as_adapter import into_adapter
from adaptertool.planning.fisher import plan_fisher
from adaptertool.planning.schedules import Given, parse_weights, with_rules
from adaptertool.planning.sharding import with_shard_size
from adaptertool.planning.sources import Prepared, Reading, base_of, open_adapter, with_storage
from adaptertool.planning.tokenizer import with_tokenizer
from adaptertool.planning.wise import plan_towards, plan_wise
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Plan
from adaptertool.spec.schedule import WHOLE, Schedule


class WiseRecipe(NamedTuple):
    """How base and tuned become one. The fields are those of `wise`."""

    precision: str = EXACT
    as_adapter: bool = False
    fisher: tuple[PathLike, PathLike] | None = None
    tokenizer: str | None = None
    dtype: str | None = None
    max_shard_size: int | str | None = None
    quantise: str | None = None
    as_trained: str | None = None
    weights: Sequence[Given] | None = None


def prepare_wise(
    base: PathLike,
    tuned: PathLike,
    alphas: Number | Sequence[Number],
    *,
    renames: Sequence[str] | Renames = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    as_adapter: bool = False,
    fisher: tuple[PathLike, PathLike] | None = None,
    weights: Sequence[Given] | None = None,
    leave_out: Sequence[str] = (),
    only: Sequence[str] = (),
    exclude: Sequence[str] = (),
    tokenizer: str | None = None,
    dtype: str | None = None,
    max_shard_size: int | str | None = None,
    quantise: str | None = None,
    as_trained: str | None = None,
) -> Plan:
    """The plan of an interpolation, from headers and configs alone. The arguments are those of `wise`.

    Raises UsageError for an alpha that is no finite number or stands there twice, InputError for what the files hold.

    >>> [output.alpha for output in adaptertool.prepare_wise("fixtures/base", "fixtures/tuned", [0, 0.5]).outputs]
    [0.0, 0.5]
    """
    recipe = WiseRecipe(precision, as_adapter, fisher, tokenizer, dtype, max_shard_size, quantise, as_trained, weights)
    return prepare(base, tuned, alphas, recipe, Reading(renames, leave_out, expert_layout, only, exclude)).plan


def prepare(
    base: PathLike | Checkpoint,
    tuned: PathLike,
    alphas: Number | Sequence[Number],
    recipe: WiseRecipe,
    reading: Reading,
) -> Prepared:
    """The plan of `prepare_wise`, with what it was made of. Raises UsageError for settings that exclude each other, and
    what planning raises."""
    exact, path = parse_alphas(alphas), as_input(tuned, "TUNED")
    share = _share(recipe)
    if recipe.as_adapter and (share != WHOLE or reading.choice.said):
        given = " and ".join(map(argument, [*(["weight"] if share != WHOLE else []), *reading.choice.said]))
        raise UsageError(f"{given}: for checkpoints; an adapter that --as-adapter writes has one alpha for all tensors")
    if check_dtype(recipe.dtype) is not None and (recipe.as_adapter or recipe.fisher is not None):
        raise UsageError(f"{argument('dtype')} is for checkpoints, and not with Fisher weights or --as-adapter")
    plain, quantise = not is_adapter(path), check_quantise(recipe.quantise, recipe.dtype)
    size = parse_size(recipe.max_shard_size)
    if quantise is not None and (plain or recipe.as_adapter):
        raise UsageError(f"{argument('quantise')} is for an adapter that is merged: two checkpoints take --dtype bf16")
    if check_as_trained(recipe.as_trained) is not None and (plain or recipe.as_adapter):
        raise UsageError(f"{argument('as_trained')} is for checkpoints that are made of adapters")
    checkpoint = base_of(base, recipe.dtype, quantise, recipe.as_trained)
    checkpoint = as_numbers(checkpoint) if recipe.as_adapter else checkpoint
    if plain:
        require_used(reading.leave_out, [])
    if recipe.fisher is not None:
        if recipe.as_adapter or reading.expert_layout is not None or recipe.precision != EXACT:
            raise UsageError(
                "with Fisher weights there is no --as-adapter, no --expert-layout, and one precision: float64"
            )
        done = _prepare_fisher(checkpoint, path, exact, recipe, reading)
        plan = with_tokenizer(done.plan, checkpoint, recipe.tokenizer)
        return done._replace(plan=with_shard_size(plan, checkpoint, size))
    if recipe.as_adapter and recipe.tokenizer is not None:
        raise UsageError(
            "an adapter keeps the tokenizer beside it: --tokenizer is for checkpoints, without --as-adapter"
        )
    done = (_between if plain else _towards)(checkpoint, path, exact, recipe, reading)
    plan = done.plan if recipe.as_adapter else with_tokenizer(done.plan, checkpoint, recipe.tokenizer)
    plan = with_storage(plan, dtype=recipe.dtype, quantise=quantise, as_trained=recipe.as_trained)
    return done._replace(plan=with_shard_size(plan, checkpoint, size))


def _between(base: Checkpoint, path: Path, alphas: Sequence[Decimal], recipe: WiseRecipe, reading: Reading) -> Prepared:
    """Between two checkpoints."""
    if reading.expert_layout is not None:
        raise UsageError(f"{path} is a full checkpoint; --expert-layout is for adapters")
    with renaming(reading.renames) as own:
        other = own.checkpoint(same_numbers(base, require_merged(open_checkpoint(path, recipe.dtype))), base)
    if recipe.as_adapter:
        raise UsageError(
            f"{path} is a full checkpoint, and --as-adapter is for adapters; without it `adaptertool wise` writes "
            "a checkpoint"
        )
    share = _share(recipe)
    plan = plan_wise(base, other, alphas, share, reading.choice)
    plan = dataclasses.replace(plan, precision=check_precision(recipe.precision))
    return Prepared(_chosen(plan, own, share, reading), base, None, [other])


def _towards(base: Checkpoint, path: Path, alphas: Sequence[Decimal], recipe: WiseRecipe, reading: Reading) -> Prepared:
    """Between a checkpoint and what an adapter makes of it."""
    if holds_weights(path):
        raise InputError(f"{path} holds an adapter and a checkpoint; which of them is meant? Put one elsewhere")
    with renaming(reading.renames) as own:
        adapter = open_adapter(path, base, reading, own)
    require_used(reading.leave_out, [adapter])
    choices = {"renames": list(own.texts), **left_out([adapter]), **reading.chosen}
    subject = open_base(base)
    share = _share(recipe)
    plan = plan_towards(subject, adapter, alphas, share, reading.choice)
    choices = with_rules(choices, [share])
    plan = dataclasses.replace(plan, precision=check_precision(recipe.precision), choices=choices)
    if recipe.as_adapter:
        plan = into_adapter(plan, base, adapter, alphas)
    return Prepared(plan, base, subject, [adapter])


def _prepare_fisher(
    base: Checkpoint,
    tuned: Path,
    alphas: Sequence[Decimal],
    recipe: WiseRecipe,
    reading: Reading,
) -> Prepared:
    fisher, share = recipe.fisher, _share(recipe)
    assert fisher is not None
    if is_adapter(tuned):
        raise UsageError(f"{tuned} is an adapter; Fisher weights are for two checkpoints: merge it first")
    if isinstance(fisher, str | os.PathLike) or len(fisher) != 2:
        raise UsageError("fisher takes two checkpoints of weights, F0 and F1")
    paths = (tuned, *(as_input(path, name) for path, name in zip(fisher, ("F0", "F1"), strict=True)))
    with renaming(reading.renames) as own:
        other, *weights = (own.checkpoint(open_checkpoint(path), base) for path in paths)
    plan = plan_fisher(base, other, (weights[0], weights[1]), alphas, share, reading.choice)
    return Prepared(_chosen(plan, own, share, reading), base, None, [other])


def _share(recipe: WiseRecipe) -> Schedule:
    """What α is multiplied by, in each tensor."""
    (share,) = parse_weights(recipe.weights or None, 1)
    return share


def _chosen(plan: Plan, own: Renames, share: Schedule, reading: Reading) -> Plan:
    """The plan between checkpoints, with what was chosen for it."""
    renames = {"renames": list(own.texts)} if own.texts else {}
    choices = {**plan.choices, **renames, **reading.choice.said}
    return dataclasses.replace(plan, choices=with_rules(choices, [share]))
