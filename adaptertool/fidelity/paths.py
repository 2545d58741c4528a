"""The ways in which adapters act on one tensor: merged, or beside the weight, and what of each is rounded when.

merged    one rounding, after all adapters
unmerged  all beside the weight, each acting as at inference (composition "mixed")
stacked   all but the last are merged, with a rounding each; the last acts beside that
stepwise  all merged, with a rounding each
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from adaptertool.arithmetic.block import Block
from adaptertool.arithmetic.chain import Chain
from adaptertool.codecs.numbers import doubles, rounded
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass
from adaptertool.reports.run import MERGED, PATHS, STACKED, STEPWISE, UNMERGED
from adaptertool.spec.plan import Edit, Step

EXACTLY = "exact"  # merged in real numbers

Norms = Mapping[int, Array]


def why_no_outputs(step: Step) -> str | None:
    """Why nothing is computed with this weight that merging could change; None where outputs can be compared."""
    low = [edit for edit in step.edits if kind_of(edit).pair]
    others = [edit for edit in step.edits if not kind_of(edit).pair]
    if any(not kind_of(edit).replaces or edit.view is not None for edit in others):
        vector = all(kind_of(edit).elementwise for edit in others) and not low
        return "added or looked up, never multiplied" if vector else "of these kinds only the weight is compared"
    if not low:
        return "replaced whole: merged or not, the same is computed"
    if any(edit.weight != 1 for edit in others):
        return "a part of a saved weight: nothing computes that unmerged"
    if len({(edit.transposed, is_looked_up(edit)) for edit in low}) > 1:
        return "changed in several ways: as a weight and as a table"
    return None


def is_looked_up(edit: Edit) -> bool:
    """Whether the layer is an embedding, of which inputs choose rows. The factors' names tell."""
    return any(".lora_embedding_" in ref.spec.name for ref in edit.factors.values())


@dataclass(frozen=True, slots=True)
class Beside:
    """A weight, and the edits that act beside it: those after the last tensor that takes the place of the weight."""

    replaced: Chain | None
    low: Chain
    edits: tuple[Edit, ...]

    @classmethod
    def of(cls, inputs: Inputs, step: Step, edits: Sequence[Edit]) -> Beside:
        last = max((n for n, edit in enumerate(edits) if kind_of(edit).replaces), default=-1)
        full, low = edits[last : last + 1] if last >= 0 else (), tuple(edits[last + 1 :])
        return cls(
            Chain(inputs, step._replace(edits=tuple(full))) if full else None,
            Chain(inputs, step._replace(edits=low)),
            low,
        )

    def split(self, rows: Array, first: int, dtype: str) -> tuple[Array, Norms]:
        """The weight as it is stored, and the norms of DoRA that are taken from it. rows float64."""
        if self.replaced is not None:
            rows = rows.copy()
            self.replaced.apply(rows, first, rows.copy())
            rows = _stored(rows, dtype)
        if not any(kind_of(edit).norms for edit in self.edits):
            return rows, {}
        return rows, self.low.apply(rows.copy(), first, rows)


def _stored(values: Array, dtype: str) -> Array:
    return doubles(rounded(np.ascontiguousarray(values), dtype), dtype)


class Variants:
    """The chains of one tensor, one for each adapter and one for all of them together."""

    def __init__(self, inputs: Inputs, step: Step, adapters: int) -> None:
        self.dtype, self._mixed = step.spec.dtype, any(edit.on_base for edit in step.edits)
        own = [tuple(edit for edit in step.edits if edit.adapter == number) for number in range(adapters)]
        self._each = [[edit._replace(on_base=False) for edit in edits] for edits in own if edits]
        self._chains = [Chain(inputs, step._replace(edits=tuple(edits))) for edits in self._each]
        self.together = Beside.of(inputs, step, [edit._replace(on_base=True) for edit in step.edits])
        on_top = self._each[-1] if own[-1] else []
        self.last = Beside.of(inputs, step, on_top)
        self._below = len(self._each) - bool(on_top)
        dora = len(self._each) > 1 and any(kind_of(edit).norms for edit in step.edits)
        self._order_matters = dora
        # Norms of a tensor stored (in, out) are taken over all of its rows on the disk, not of what others made of it
        turned = dora and any(edit.transposed for edit in step.edits)
        self.paths = PATHS if adapters > 1 and not turned else PATHS[:2]

    def same_formula(self, one: str, other: str) -> bool:
        """Whether two paths differ by rounding alone. With DoRA, adapters in turn and adapters together are not the
        same."""
        mixed = {MERGED: self._mixed, EXACTLY: self._mixed, UNMERGED: True, STACKED: False, STEPWISE: False}
        return not self._order_matters or mixed[one] == mixed[other]

    def roundings(self, path: str) -> int:
        """How often the weight is rounded on this path, at most."""
        return {
            MERGED: len(self._each),  # another tool may have rounded after each
            UNMERGED: int(self.together.replaced is not None),
            STACKED: self._below + (self.last.replaced is not None),
            STEPWISE: len(self._each),
        }[path]

    def beside(self, path: str) -> Beside | None:
        return {UNMERGED: self.together, STACKED: self.last}.get(path)

    def weights(self, block: Block, base: Array, merged: Array) -> dict[str, tuple[Array, Norms]]:
        """The weight that each path multiplies with, (rows, columns) of the block, and norms for the edits beside it,
        (n, 1) each: all float64."""
        found: dict[str, tuple[Array, Norms]] = {MERGED: (merged, {})}
        found[UNMERGED] = self.together.split(base, block.first, self.dtype)
        if STACKED in self.paths:
            states = [base]
            for chain in self._chains:
                rows = states[-1].copy()
                chain.apply(rows, block.first, states[-1])
                states.append(_stored(rows, self.dtype))
            found[STACKED] = self.last.split(states[self._below], block.first, self.dtype)
            found[STEPWISE] = (states[-1], {})
        return found
