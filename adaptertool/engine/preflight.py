"""Checks that need the numbers and not only the headers, made before the first byte is written."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from adaptertool.codecs.tensors import require_finite, zero_rows_of
from adaptertool.errors import MismatchError, shown
from adaptertool.files.reader import Inputs
from adaptertool.files.writer import AT_ONCE, COPY_CHUNK
from adaptertool.interrupts import deferred, look
from adaptertool.kinds.lora import A, B
from adaptertool.planning.finetuned import no_copy
from adaptertool.spec.plan import Plan
from adaptertool.spec.tensors import Ref, TensorSpec

Key = tuple[Path, int, TensorSpec]


@deferred()
def require_finite_factors(plan: Plan, inputs: Inputs) -> list[str]:
    """Read every factor of every adapter once; returns what the user should know of zeros in them.

    Raises NonFiniteError, naming the tensor, for NaN or infinity. A tuned checkpoint is as large as the base; its
    tensors are checked as they are read.
    """
    zero: dict[Key, int] = {}
    for refs in _together({_key(ref): ref for ref in _factors(plan)}):
        look()
        rows = zero_rows_of(inputs, list(refs.values())) if len(refs) > 1 else None
        if rows is None:  # one by one, also where a number is not finite: that says where
            rows = [require_finite(inputs, ref) for ref in refs.values()]
        zero.update(zip(refs, rows, strict=True))
    return [note for number, path in enumerate(plan.sources) for note in _zeros(plan, number, path, zero)]


def _together(refs: Mapping[Key, Ref]) -> Iterator[dict[Key, Ref]]:
    """The factors in their order, small ones together."""
    size, some = 0, dict[Key, Ref]()
    for key, ref in refs.items():
        if some and size + ref.spec.nbytes > AT_ONCE:
            yield some
            size, some = 0, {}
        some[key] = ref
        size += ref.spec.nbytes
    if some:
        yield some


def _zeros(plan: Plan, number: int, path: Path, zero: Mapping[Key, int]) -> Iterator[str]:
    """Notes on one adapter. zero: of each factor, how many rows are all zero."""
    modules, nothing, unscaled = set(), set(), set()
    partly: dict[Key, str] = {}
    for step in plan.steps():
        for edit in step.edits:
            if edit.adapter != number or not {A, B} <= edit.factors.keys():
                continue
            a, b = _key(edit.factors[A]), _key(edit.factors[B])
            if (rows := zero.get(b)) is None:
                continue
            modules.add(edit.module)
            if zero[a] == max(1, _rows(a)) or rows == max(1, _rows(b)):
                nothing.add(edit.module)
            elif rows:
                partly[b] = edit.module
            if edit.scale == 0:
                unscaled.add(edit.module)
    if nothing:
        yield f"{path}: lora_B, or lora_A, is zero throughout in {_of(nothing, modules)}; their product changes nothing"
    if partly:
        share = sum(zero[key] for key in partly) / sum(map(_rows, partly))
        yield (
            f"{path}: in {_of(partly.values(), modules)} whole rows of lora_B are zero and others are not: {share:.1%} "
            "of these rows. Was it saved by one of several processes, without what the others had?"
        )
    if unscaled:
        yield f"{path}: lora_alpha is 0, and so the scale, in {_of(unscaled, modules)}; these change nothing"


def _of(some: Collection[str], modules: Collection[str]) -> str:
    """How many of the modules, and one of them."""
    return f"{len(set(some)):,} of {len(modules):,} modules ({shown(min(some))}{', ...' if len(some) > 1 else ''})"


def _key(ref: Ref) -> Key:
    return ref.path, ref.offset, ref.spec


def _rows(key: Key) -> int:
    return key[2].shape[0]


def _factors(plan: Plan) -> Iterator[Ref]:
    if plan.tuned_is_checkpoint:
        return
    base = set(plan.files[0].values())
    for shard in plan.shards:
        for step in shard.steps:
            # A tensor of the adapter that takes the place of the base's; or in an adapter, one that is copied.
            if step.base.path == shard.source if plan.as_adapter else step.base.path not in base:
                yield step.base
            for edit in step.edits:
                yield from edit.factors.values()


@deferred()
def require_equal(plan: Plan, inputs: Inputs) -> None:
    """Integers and codes have no values between: such tensors must be the same in both checkpoints. And so must an end
    that only the tuned one stores be what it is tied to. Raises MismatchError where they are not."""
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
