"""The factors of DoRA made anew, so that they make the interpolated weight (kinds.dora.interpolated).

The norms need the base weight: it is read in blocks of its rows. Of a weight that is stored transposed, where every
block holds a part of all output rows, it is read once more for each alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.tiling import block_rows, matrix
from adaptertool.codecs.numbers import doubles, largest_stored, rounded
from adaptertool.codecs.tensors import as_bytes, byte_of, read_rows
from adaptertool.errors import NonFiniteError, UnsupportedError, shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds.dora import MAGNITUDE, interpolated, squares, widened
from adaptertool.kinds.lora import A, B
from adaptertool.numerics.ops import BLOCKS
from adaptertool.numerics.rounding import Array
from adaptertool.spec.plan import Step
from adaptertool.spec.tally import Tally

Part = tuple[Array, Array]  # some output rows × inputs of the weight, and A for these inputs


class Rescaled:
    """A factor that is made anew: `step.makes` of the one edit of `step`."""

    def __init__(self, inputs: Inputs, step: Step) -> None:
        (self._edit,) = step.edits
        self._inputs, self._step, self._chain = inputs, step, Chain(inputs, step)
        self._rows, self._width = matrix(step)
        self._outputs = self._edit.factors[MAGNITUDE].spec.numel

    def cuts(self) -> Iterator[tuple[int, int]]:
        """Ranges of output rows to compute at once."""
        size = max(1, self._outputs) if self._edit.transposed else block_rows(self._width)
        for first in range(0, self._outputs, size):
            yield first, min(self._outputs, first + size)

    def target(self, first: int) -> int:
        """The byte where output row `first` lies in the output file."""
        spec = self._step.spec
        return byte_of(self._step.offset, spec.dtype, spec.numel // self._outputs * first)

    def compute(self, first: int, last: int, alphas: Sequence[float], _: list[Tally]) -> Iterator[memoryview]:
        """The bytes of rows first..last of the factor for each α. m' goes with B' as it is stored.

        Raises UnsupportedError where e ≤ 0, NonFiniteError for what is no number.
        """
        # One part holds all inputs of some rows, and is kept; of a transposed weight there are many.
        kept = None if self._edit.transposed else list(self._parts(first, last))
        own = self._chain.factors(0, self._edit, slice(first, last))
        norm = self._norm(kept or self._parts(first, last), own[B])
        dtype = widened(self._edit.factors[B].spec.dtype)
        for alpha in alphas:
            factor, length = interpolated(own[MAGNITUDE], norm, alpha)
            self._require_positive(norm, length, alpha, first)
            made = self._stored(own[B] * factor, dtype)
            if self._step.makes == MAGNITUDE:
                turned = self._norm(kept or self._parts(first, last), doubles(made, dtype))
                made = self._stored(length * turned, self._step.spec.dtype)
            yield as_bytes(made.reshape(-1))

    def _norm(self, parts: Iterable[Part], b: Array) -> Array:
        """‖W + s·b·A‖ of the rows of `parts`: (n, 1)."""
        total = np.zeros((len(b), 1))
        for weight, a in parts:
            total += squares(BLOCKS, weight, {A: a, B: b}, self._edit.scale)
        return np.sqrt(total)

    def _parts(self, first: int, last: int) -> Iterator[Part]:
        """Output rows first..last of the weight, with all inputs; or where it is stored transposed some at a time."""
        view = self._edit.view
        rows, columns = (range(self._rows), range(self._width)) if view is None else (view.rows, view.columns)
        assert isinstance(rows, range)
        begin, end = (0, len(rows)) if self._edit.transposed else (first, last)
        size = block_rows(self._width) if self._edit.transposed else last - first
        for at in range(begin, end, size):
            some = rows[at : min(end, at + size)]
            stored = read_rows(self._inputs, self._step.base, some[0], some[-1] + 1, self._width)
            weight = stored[:: some.step, columns.start : columns.stop : columns.step]
            a = self._chain.factors(0, self._edit, slice(at, at + len(some)))[A]
            yield weight.T if self._edit.transposed else weight, a

    def _require_positive(self, norm: Array, length: Array, alpha: float, first: int) -> None:
        bad = np.flatnonzero(~(length > 0) | ~np.isfinite(length))
        if not len(bad):
            return
        row = int(bad[0])
        number, view = first + row, self._edit.view
        if view is not None:
            number = (view.columns if self._edit.transposed else view.rows)[number]
        base, name = self._step.base, shown(self._edit.module)
        where = (
            f"{self._edit.factors[B].path}: {name} with output row {number} of {shown(base.spec.name)} in {base.path}"
        )
        if not 0 < norm[row].item() < math.inf:
            raise NonFiniteError(
                f"{where}: the weight and its change have norm {norm[row].item():g}; DoRA divides by it"
            )
        raise UnsupportedError(
            f"{where}: at alpha {alpha:g} its magnitude would be 1 − alpha + alpha·m/‖V‖ = {length[row].item():.4g} "
            "times a length, and must be positive in a DoRA adapter: choose an alpha nearer to 0..1, or write a "
            "checkpoint, without --as-adapter"
        )

    def _stored(self, values: Array, dtype: str) -> Array:
        made = rounded(values, dtype)
        if not math.isfinite(largest_stored(made.reshape(-1), dtype)):
            raise NonFiniteError(
                f"{self._edit.factors[B].path}: {shown(self._edit.module)}: a rescaled factor is beyond the range of "
                f"{self._step.spec.dtype}; write a checkpoint, without --as-adapter"
            )
        return made
