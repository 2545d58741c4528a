"""Checks that need the numbers and not only the headers, made before the first byte is written."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.tensors import require_finite
from adaptertool.codecs.zero_rows import zero_rows_of
from adaptertool.errors import MismatchError, shown
from adaptertool.files.reader import Inputs
from adaptertool.files.writer import AT_ONCE, COPY_CHUNK
from adaptertool.interrupts import deferred, look
from adaptertool.kinds.lora import A, B
from adaptertool.planning.finetuned import no_copy
from adaptertool.spec.plan import Edit, Plan, Shard
from adaptertool.spec.tensors import Ref, TensorSpec, files_of


@deferred()
def require_finite_factors(plan: Plan, inputs: Inputs) -> list[str]:
    """Read every factor of every adapter once, or what it is made of; returns what the user should know of zeros.

    Raises NonFiniteError, naming the tensor, for NaN or infinity. A tuned checkpoint is as large as the base; its
    tensors are checked as they are read.
    """
    factors = _Factors(plan)
    zero: list[int] = []  # of each factor, how many rows are all zero
    for refs in _together(factors.refs):
        look()
        rows = zero_rows_of(inputs, refs) if len(refs) > 1 else None
        if rows is None:  # one by one, also where a number is not finite: that says where
            rows = [require_finite(inputs, ref) for ref in refs]
        zero += rows
    if not any(zero) and all(edit.scale for step in plan.steps() for edit in step.edits):
        return []  # as usual: there may be hundreds of thousands of changes
    changes = list(factors.changes())
    return [
        note
        for number, path in enumerate(plan.sources)
        for note in _zeros(path, [change for change in changes if change.edit.adapter == number], factors.refs, zero)
    ]


class _Change(NamedTuple):
    """A change by a product, and the numbers of its factors."""

    edit: Edit
    a: list[int]
    b: list[int]


class _Factors:
    """The factors of a plan, each once, and in the place of some that are made what they are made of. Equal ones have
    one number, their place among `refs`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        every = list(self._read())
        paths, files = files_of(every)
        self._paths = {path: number for number, path in enumerate(paths)}
        places = list(zip(files, [ref.offset for ref in every], [ref.spec for ref in every], strict=True))
        self._places = dict.fromkeys(places)
        self.refs = every
        if len(self._places) < len(every):
            firsts: dict[tuple[int, int, TensorSpec], Ref] = {}
            for place, ref in zip(places, every, strict=True):
                firsts.setdefault(place, ref)
            self.refs = list(firsts.values())

    @property
    def _shards(self) -> tuple[Shard, ...]:
        return () if self._plan.tuned_is_checkpoint else self._plan.shards

    def _read(self) -> Iterator[Ref]:
        """What is to be read, some of it several times."""
        plan, base = self._plan, set(self._plan.files[0].values())
        is_base: dict[int, bool] = {}  # by the identity of a path, which takes long to hash
        for shard in self._shards:
            for step in shard.steps:
                stored = step.base if step.keeps is None else step.stored
                if (own := is_base.get(id(stored.path))) is None:
                    own = is_base[id(stored.path)] = stored.path in base
                # A tensor of the adapter that takes the place of the base's; or in an adapter, one that is copied.
                if step.base.path == shard.source if plan.as_adapter else not own:
                    yield stored
                for edit in step.edits:
                    for ref in edit.factors.values():
                        if ref.made is None:
                            yield ref
                        else:
                            yield from (one for one, _ in _in_place_of(ref))

    def changes(self) -> Iterator[_Change]:
        """The products."""
        edits = (edit for shard in self._shards for step in shard.steps for edit in step.edits)
        for edit in edits:
            if A in edit.factors and B in edit.factors:
                yield _Change(edit, self._numbers_of(edit.factors[A]), self._numbers_of(edit.factors[B]))

    def _numbers_of(self, factor: Ref) -> list[int]:
        """The number of a factor, or those of what tells whether it is zero."""
        told = [ref for ref, tells in _in_place_of(factor) if tells]
        return [self._numbers[self._paths[ref.path], ref.offset, ref.spec] for ref in told]

    @functools.cached_property
    def _numbers(self) -> Mapping[tuple[int, int, TensorSpec], int]:
        return {place: number for number, place in enumerate(self._places)}


def _in_place_of(factor: Ref) -> list[tuple[Ref, bool]]:
    """What is read for a factor, itself or its sources, since to make it takes longer; and whether it is zero where
    these are."""
    made = factor.made
    if made is None:
        return [(factor, True)]
    narrow = all(source.spec.dtype != "F64" for source in made.sources)
    if made.costly or (made.finite and narrow):
        return [(source, False) for source in made.sources if source.spec.dtype in COMPUTED]  # not places: integers
    if not (made.plain and narrow):
        return [(factor, True)]
    return [one for source in made.sources for one in _in_place_of(source)]


def _together(refs: Sequence[Ref]) -> Iterator[list[Ref]]:
    """The factors in their order, small ones together."""
    size, some = 0, list[Ref]()
    for ref in refs:
        if some and size + ref.spec.nbytes > AT_ONCE:
            yield some
            size, some = 0, []
        some.append(ref)
        size += ref.spec.nbytes
    if some:
        yield some


def _zeros(path: Path, changes: Sequence[_Change], refs: Sequence[Ref], zero: Sequence[int]) -> Iterator[str]:
    """Notes on one adapter. zero: of each factor, how many rows are all zero."""
    some = {number for number, count in enumerate(zero) if count}
    vanishing = {number for number in some if zero[number] == max((1, *refs[number].spec.shape[:1]))}
    modules = {change.edit.module for change in changes}
    unscaled = {change.edit.module for change in changes if change.edit.scale == 0}
    nothing, partly = set(), dict[int, str]()
    for edit, a, b in changes if some else ():
        if not vanishing.isdisjoint((*a, *b)):
            nothing.add(edit.module)
        elif edit.factors[B].made is None and zero[b[0]]:
            partly[b[0]] = edit.module
    if nothing:
        yield f"{path}: lora_B, or lora_A, is zero throughout in {_of(nothing, modules)}; their product changes nothing"
    if partly:
        share = sum(zero[b] for b in partly) / sum(refs[b].spec.shape[0] for b in partly)
        yield (
            f"{path}: in {_of(partly.values(), modules)} whole rows of lora_B are zero and others are not: {share:.1%} "
            "of these rows. Was it saved by one of several processes, without what the others had?"
        )
    if unscaled:
        yield f"{path}: lora_alpha is 0, and so the scale, in {_of(unscaled, modules)}; these change nothing"


def _of(some: Collection[str], modules: Collection[str]) -> str:
    """How many of the modules, and one of them."""
    return f"{len(set(some)):,} of {len(modules):,} modules ({shown(min(some))}{', ...' if len(some) > 1 else ''})"


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
