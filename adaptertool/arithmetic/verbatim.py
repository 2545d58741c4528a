"""Which outputs are the bytes of a tensor that is stored: the rule that budgets and the engine share."""

from __future__ import annotations

from collections.abc import Sequence

from adaptertool.kinds import kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.spec.plan import Edit, Step
from adaptertool.spec.tensors import Ref


def verbatim(step: Step, alpha: float) -> Ref | None:
    """The tensor whose bytes this output is, or None where it must be computed. That of the base is `step.stored`.

    Without edits, and at α = 0, the base; at α = 1 a tensor that replaces it. That is what makes α = 0 and
    α = 1 of two checkpoints equal to them byte for byte, NaN and −0.0 included.
    """
    source = None
    if step.makes is not None or (step.blend is not None and step.edits):
        return None
    if alpha == 0 or not step.base.spec.nbytes or not _weighs(step.edits):
        source = step.stored
    elif step.keeps is not None:
        return None
    elif alpha == 1 and replaces(step):
        source = step.edits[-1].factors[TUNED]
    stored = source is not None and source.made is None and source.spec.dtype == step.spec.dtype
    return source if stored else None


def only_cast(step: Step, alpha: float) -> bool:
    """Whether an output is not the bytes of the base, but has all its numbers: in another dtype, or decoded."""
    plain = step.makes is None and not (step.blend is not None and step.edits) and step.fisher is None
    same = plain and (alpha == 0 or not _weighs(step.edits))
    return same and bool(step.base.spec.nbytes) and verbatim(step, alpha) is None


def _weighs(edits: Sequence[Edit]) -> bool:
    """Whether an edit has a weight. A loop, for this is asked often: any() takes twice as long."""
    for edit in edits:  # noqa: SIM110
        if edit.weight:
            return True
    return False


def replaces(step: Step) -> bool:
    """Whether the last edit puts another tensor in the place of all that was before."""
    last = step.edits[-1] if step.edits else None
    return last is not None and kind_of(last).replaces and last.weight == 1 and last.view is None
