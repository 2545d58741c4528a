"""The plan of `merge`: adapters into a base checkpoint."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

from adaptertool.arguments import Number, PathLike, as_path, check_precision, decimals, thinning
from adaptertool.errors import UsageError, argument
from adaptertool.files.checkpoint import Checkpoint, open_checkpoint, require_merged
from adaptertool.formats.beside import left_out, require_used
from adaptertool.formats.peft.read import is_adapter
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.planning.blend import plan_blend
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.sources import COMPOSITIONS, check_compose, layout_chosen, open_adapter
from adaptertool.planning.tokenizer import with_tokenizer
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.choices import EXACT
from adaptertool.spec.plan import Blend, Plan


def prepare_merge(
    base: PathLike,
    adapters: Sequence[PathLike],
    weights: Sequence[Number] | None = None,
    *,
    compose: str = "sequential",
    renames: Sequence[str] | Renames = (),
    expert_layout: str | None = None,
    precision: str = EXACT,
    method: str | None = None,
    density: Number | None = None,
    seed: int | None = None,
    leave_out: Sequence[str] = (),
    tokenizer: str | None = None,
) -> Plan:
    """The plan of a merge, from headers and configs alone. The arguments are those of `merge`.

    Raises UsageError for a wrong number of weights, InputError for what the files hold.
    """
    if isinstance(adapters, str | os.PathLike):
        raise UsageError("adapters must be a list of paths, also where there is only one")
    if not adapters:
        raise UsageError("no adapter given")
    check_compose(compose)
    numbers = [float(weight) for weight in decimals(weights, "weight", len(adapters))]
    if method is not None:
        if compose != COMPOSITIONS[0]:
            raise UsageError("a method says itself how adapters are composed; leave out --compose")
        blend = _blend(method, numbers, density, seed, check_precision(precision))
        checkpoint = require_merged(open_checkpoint(as_path(base, "BASE")))
        way = renames, leave_out, expert_layout
        return with_tokenizer(_prepare_blend(checkpoint, adapters, blend, *way), checkpoint, tokenizer)
    if density is not None or seed is not None:
        raise UsageError(f"{argument('density')} and {argument('seed')} belong to a method (--method)")
    checkpoint = require_merged(open_checkpoint(as_path(base, "BASE")))
    paths = [as_path(path, "ADAPTER") for path in adapters]
    with renaming(renames) as own:
        opened = [open_adapter(path, checkpoint, own, leave_out, expert_layout) for path in paths]
    require_used(leave_out, opened)
    plan = plan_merge(checkpoint, opened, numbers, mixed=compose == "mixed")
    choices = {"compose": compose, "renames": list(own.texts), **left_out(opened), **layout_chosen(expert_layout)}
    plan = dataclasses.replace(plan, precision=check_precision(precision), choices=choices)
    return with_tokenizer(plan, checkpoint, tokenizer)


def _blend(method: str, numbers: Sequence[float], density: Number | None, seed: int | None, precision: str) -> Blend:
    if method not in METHOD_BY_NAME:
        raise UsageError(f"method is {', '.join(METHOD_BY_NAME)}, not {method!r}")
    if precision != EXACT:
        raise UsageError(f"{method} has one precision: float64, rounded once")
    return Blend(method, tuple(numbers), *thinning(METHOD_BY_NAME[method], density, seed))


def _prepare_blend(
    checkpoint: Checkpoint,
    sources: Sequence[PathLike],
    blend: Blend,
    renames: Sequence[str] | Renames,
    leave_out: Sequence[str],
    expert_layout: str | None,
) -> Plan:
    paths = [as_path(path, "ADAPTER") for path in sources]
    with renaming(renames) as own:
        opened = [
            open_adapter(path, checkpoint, own, leave_out, expert_layout)
            if is_adapter(path)
            else own.checkpoint(require_merged(open_checkpoint(path)), checkpoint)
            for path in paths
        ]
    adapters = [source for source in opened if isinstance(source, Adapter)]
    require_used(leave_out, adapters)
    plan = plan_blend(checkpoint, opened, blend.weights, blend)
    choices = {"method": blend.method, "density": blend.density, "seed": blend.seed, "renames": list(own.texts)}
    return dataclasses.replace(plan, choices={**choices, **left_out(adapters), **layout_chosen(expert_layout)})
