"""One tensor between base and tuned checkpoint, weighted by Fisher information: blocks in float64, rounded once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from adaptertool.arithmetic.correct_rounding import Settled
from adaptertool.arithmetic.survival import every_nth, tally_of
from adaptertool.codecs.numbers import largest_stored, rounded
from adaptertool.codecs.tensors import as_bytes, byte_of, read_tensor
from adaptertool.errors import InputError, NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds.full import TUNED
from adaptertool.methods.fisher import between
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Step
from adaptertool.spec.tally import Tally
from adaptertool.spec.tensors import Ref

_ELEMENTS = 1 << 19  # of a block


class Weighted:
    """`step`, whose one edit is the tuned tensor, with its two weights."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        assert step.fisher is not None
        (edit,) = step.edits
        self._inputs, self._step = inputs, step
        self._thetas, self._weights = (step.base, edit.factors[TUNED]), step.fisher

    def cuts(self) -> Iterator[tuple[int, int]]:
        """Ranges of elements."""
        count = self._step.spec.numel
        for first in range(0, count, _ELEMENTS):
            yield first, min(count, first + _ELEMENTS)

    def target(self, first: int) -> int:
        """The byte where that element lies in the output file."""
        return byte_of(self._step.offset, self._step.spec.dtype, first)

    def compute(self, first: int, last: int, alphas: Sequence[float], tallies: list[Tally]) -> Iterator[memoryview]:
        """The bytes of elements first..last for each α. Raises NonFiniteError, and InputError for a negative weight."""
        base, tuned = (read_tensor(self._inputs, ref, first, last) for ref in self._thetas)
        ours, theirs = (self._read_weight(ref, first, last) for ref in self._weights)
        dtype = self._step.spec.dtype
        for alpha in alphas:
            value = between(base, tuned, ours, theirs, alpha)
            stored = rounded(value, dtype)
            if not math.isfinite(largest_stored(stored, dtype)):
                raise NonFiniteError(
                    f"{self._thetas[1].path}: {shown(self._step.spec.name)}: it, or the base, holds what is no number, "
                    f"or the result is beyond the range of {dtype}"
                )
            tallies.append(
                tally_of(rounded(base, dtype), value[:: every_nth(value.size)], stored, dtype, dtype, Settled())
            )
            yield as_bytes(stored)

    def _read_weight(self, ref: Ref, first: int, last: int) -> Array:
        weight = read_tensor(self._inputs, ref, first, last)
        bad = np.flatnonzero(~((weight >= 0) & (weight < math.inf)))
        if len(bad):
            place = int(bad[0])
            kind = InputError if math.isfinite(weight[place]) else NonFiniteError
            raise kind(
                f"{ref.path}: {shown(ref.spec.name)} holds {weight[place].item()} at element {first + place:,}; "
                "a weight of --fisher is a finite number, 0 or more"
            )
        return weight
