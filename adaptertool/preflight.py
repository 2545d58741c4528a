"""Checks that need the numbers and not only the headers, made before the first byte is written."""

from __future__ import annotations

from collections.abc import Iterator

from adaptertool.errors import MismatchError, shown
from adaptertool.files.reader import Inputs
from adaptertool.files.writer import COPY_CHUNK
from adaptertool.interrupts import deferred, look
from adaptertool.spec import Plan, Ref
from adaptertool.tensors import require_finite
from adaptertool.tuned import no_copy


@deferred()
def require_finite_factors(plan: Plan, inputs: Inputs) -> None:
    """Read every factor of every adapter once. Raises NonFiniteError, naming the tensor, for NaN or infinity.

    A tuned checkpoint is as large as the base; its tensors are checked as they are read.
    """
    for ref in {(ref.path, ref.offset, ref.spec): ref for ref in _factors(plan)}.values():
        look()
        require_finite(inputs, ref)


def _factors(plan: Plan) -> Iterator[Ref]:
    if plan.tuned_is_checkpoint:
        return
    for shard in plan.shards:
        for step in shard.steps:
            # A tensor of the adapter that takes the place of the base's; or in an adapter, one that is copied.
            if (step.base.path == shard.source) == plan.as_adapter:
                yield step.base
            for edit in step.edits:
                yield from edit.factors.values()


@deferred()
def require_equal(plan: Plan, inputs: Inputs) -> None:
    """Integers and codes have no values between: such tensors must be the same in both checkpoints. And so must an end
    that only the tuned one stores be what it is tied to."""
    for ours, theirs in plan.equal:
        for at in range(0, ours.spec.nbytes, COPY_CHUNK):
            look()
            size = min(COPY_CHUNK, ours.spec.nbytes - at)
            pair = [inputs.read(ref.path, ref.offset + at, size) for ref in (ours, theirs)]
            if pair[0] != pair[1] and ours.spec.name != theirs.spec.name:
                raise MismatchError(no_copy(ours, theirs))
            if pair[0] != pair[1]:
                raise MismatchError(
                    f"{shown(ours.spec.name)} ({ours.spec}) differs between {ours.path} and {theirs.path}; "
                    f"tensors of dtype {ours.spec.dtype} cannot be interpolated"
                )
