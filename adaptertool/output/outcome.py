"""What a run did to the elements that it edits: counts, and what the user should know about them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.engine.budget import count_elements
from adaptertool.engine.forms import Forms
from adaptertool.errors import UnchangedError
from adaptertool.files.stage import Stage
from adaptertool.reports.run import KeptReport
from adaptertool.spec.plan import Plan
from adaptertool.spec.tally import Fate, Tally, fates_by_family, total

_LOW = 0.5  # a survival that is said
_DIGITS = 4  # of a survival: it is of a sample


def tallies_of(plan: Plan, stage: Stage) -> tuple[Tally, ...]:
    """The tally of each output, also of what an earlier run has finished."""
    return tuple(
        total(stage.finished[(Path(output.folder) / shard.name).as_posix()].tally for shard in plan.shards)
        for output in plan.outputs
    )


def kept_of(plan: Plan, stage: Stage) -> tuple[KeptReport, ...] | None:
    """What became of the weights that stay codes, also of what an earlier run has finished; None where none is to."""
    if "quantise" not in plan.choices:
        return None
    found = []
    for output in plan.outputs:
        files = [stage.finished[(Path(output.folder) / shard.name).as_posix()] for shard in plan.shards]
        families = fates_by_family(one for file in files for one in file.fates.items())
        every = Fate().plus(families.values())
        found += [_kept(output.alpha, family, fate) for family, fate in (*families.items(), (None, every))]
    return tuple(found)


def _kept(alpha: float, family: str | None, fate: Fate) -> KeptReport:
    survival = noise = None
    if fate.update:
        survival, noise = _rounded(fate.kept / fate.update), _rounded(math.sqrt(fate.noise / fate.update))
    return KeptReport(
        alpha=alpha,
        family=family,
        elements=fate.elements,
        changed=fate.changed,
        blocks=fate.blocks,
        rescaled=fate.rescaled,
        survival=survival,
        noise=noise,
    )


def _rounded(share: float) -> float:
    """To as many digits as every machine finds: the sums are of floats."""
    return float(f"{round(share, _DIGITS + 2):.{_DIGITS}g}")


def fields_of(plan: Plan, tallies: tuple[Tally, ...], forms: Forms) -> dict[str, Any]:
    """The fields of a RunReport that count elements. forms: of the plan"""
    counted = not plan.as_adapter
    survival = [tally.survival for tally in tallies]
    return {
        "elements_edited": count_elements(plan, forms) if counted else None,
        "elements_changed": tuple(tally.changed for tally in tallies) if counted else None,
        "survival": tuple(None if one is None else round(one, _DIGITS) for one in survival) if counted else None,
        "settled": sum(tally.settled for tally in tallies),
        "settled_one_by_one": sum(tally.one_by_one for tally in tallies),
    }


def require_changed(plan: Plan, tallies: tuple[Tally, ...]) -> None:
    """Raises UnchangedError where no element of any output differs from the base's."""
    if not any(tally.changed for tally in tallies):
        reason = next(notes_of(plan, tallies), "nothing is edited")
        raise UnchangedError(f"{reason}; nothing was published, as --fail-if-unchanged asks for")


def notes_of(plan: Plan, tallies: tuple[Tally, ...], kept: Sequence[KeptReport] = ()) -> Iterator[str]:
    """What the user should know of each output: that nothing changed, or that little of the update is left."""
    for one in kept:
        if one.family is None and one.survival is not None and one.survival < _LOW:
            at = f" at alpha {one.alpha:g}" if len(plan.outputs) > 1 else ""
            yield (
                f"WARNING: {one.survival:.1%} of the update of quantised weights survives the rounding to their own "
                f"codes{at}, with a noise of {one.noise:.2f} times the update: the output is nearly the base. Write a "
                "dense checkpoint with --dtype bf16 in the place of --quantise keep, or serve the adapter unmerged"
            )
    shares = [None if kept and tally.changed else tally.survival for tally in tallies]
    if plan.as_adapter or all(
        tally.changed and (share is None or share >= _LOW) for tally, share in zip(tallies, shares, strict=True)
    ):
        return  # before all steps are looked at, of which there may be hundreds of thousands
    count = count_elements(plan)
    dtypes = ", ".join(sorted({step.spec.dtype for step in plan.steps() if step.edits and step.makes is None}))
    for output, tally, share in zip(plan.outputs, tallies, shares, strict=True):
        if not count or all(verbatim(step, step.at(output.alpha)) is step.stored for step in plan.steps()):
            continue  # it was to be the base
        at = f" at alpha {output.alpha:g}" if len(plan.outputs) > 1 else ""
        if not tally.changed:
            lost = "all of the update is lost" if tally.update else "the update is zero, or all of it is lost"
            yield f"0 of {count:,} elements changed{at}: {lost} in the rounding to {dtypes}"
        elif share is not None and share < _LOW:
            yield (
                f"{share:.1%} of the update survives the rounding to {dtypes}{at}: most of it is below half a unit of "
                "what is stored there. To keep it, merge into a copy of the base in a wider dtype, such as float32, or "
                "leave the adapter unmerged; `adaptertool drift` tells more"
            )
