"""One tensor, block by block: its stored weight against the formula, and what layers compute with either."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from adaptertool.arithmetic.before_after import changed, numbers
from adaptertool.arithmetic.block import Block, part
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.fused import fused_of
from adaptertool.arithmetic.region import choose
from adaptertool.arithmetic.tiling import matrix, needs_columns
from adaptertool.arithmetic.workspace import Workspace
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import read_tensor
from adaptertool.errors import NonFiniteError, shown
from adaptertool.fidelity.closeness import WeightTally
from adaptertool.fidelity.model import unit
from adaptertool.fidelity.outputs import Outputs
from adaptertool.fidelity.paths import Variants, is_looked_up, why_no_outputs
from adaptertool.fidelity.probe import Probe
from adaptertool.fidelity.summary import EXPECTED, SUSPECT
from adaptertool.files.reader import Inputs
from adaptertool.kinds import kind_of
from adaptertool.kinds.lora import A, B
from adaptertool.numerics.error_bound import Bound
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass
from adaptertool.reports.drift import ModuleDrift, WeightDrift
from adaptertool.reports.run import MERGED, STEPWISE, UNMERGED
from adaptertool.spec.plan import Step
from adaptertool.spec.tensors import Ref

PART = 1 << 20  # elements of a block


@dataclass(frozen=True, slots=True)
class Measured:
    """One tensor to judge. step: in the dtype of what is judged; candidate: another's W', None for our own."""

    step: Step
    adapters: int
    candidate: Ref | None

    @property
    def rank(self) -> int:
        """The rank of the changes of all adapters together; of experts, that of one."""
        ranks: dict[int, int] = {}
        for edit in self.step.edits:
            if kind_of(edit).pair:
                ranks[edit.adapter] = max(ranks.get(edit.adapter, 0), edit.factors[A].shape[0])
        return sum(ranks.values())

    @property
    def form(self) -> tuple[int, int, int] | None:
        """(out, in, rank) of the layer, where it is one matrix that inputs are multiplied with."""
        low = [edit for edit in self.step.edits if kind_of(edit).pair]
        if why_no_outputs(self.step) is not None or is_looked_up(low[0]) or any(edit.view for edit in low):
            return None
        rows, columns = matrix(self.step)
        return (columns, rows, self.rank) if low[0].transposed else (rows, columns, self.rank)


def measure(inputs: Inputs, subject: Measured, probe: Probe, paths: frozenset[str], space: Workspace) -> ModuleDrift:
    """Raises NonFiniteError, InputError."""
    step, dtype = subject.step, subject.step.spec.dtype
    judged, ours, stepwise = (WeightTally(dtype) for _ in range(3))
    reason = why_no_outputs(step)
    variants = Variants(inputs, step, subject.adapters) if reason is None else None
    outputs = Outputs.of(inputs, step, variants, probe, paths) if variants else None
    if variants and not outputs:
        reason = "no inputs were recorded"
    products: dict[int, _Products] = {}
    for block in parts_of(inputs, step):
        before, after = changed(inputs, block, 1.0, space)
        base, exact = numbers(block, before, 1.0, space)
        stored = doubles(after, dtype, part(space.delta, np.float64, block.numel)).reshape(-1, block.columns)
        given = stored if subject.candidate is None else given_of(inputs, subject.candidate, block)
        judged.add(base, exact, given)
        _count_factors(judged, block, products)
        if dtype == "F64":
            judged.variance += _of_floats(block, base)
        if subject.candidate is not None:
            ours.add(base, exact, stored)
        if outputs is not None and variants is not None:
            weights = variants.weights(block, base, given)
            if STEPWISE in weights:
                stepwise.add(base, exact, weights[STEPWISE][0])
            outputs.add(block, base, exact, weights)
    if not math.isfinite(judged.exact + judged.error + judged.delta):
        raise NonFiniteError(
            f"{step.base.path}: {shown(step.spec.name)}: the squares of its numbers are beyond float64"
        )
    honest = (ours.survival, stepwise.survival) if subject.candidate else ()
    weight = judged.report(_roundings(step), honest)
    return _report(subject, weight, outputs, reason)


def parts_of(inputs: Inputs, step: Step) -> Iterator[Block]:
    """A tensor cut into blocks: smaller ones than for a merge, since more is made of each."""
    chain, (rows, columns) = Chain(inputs, step), matrix(step)
    fused = fused_of(chain)
    at_once = rows if needs_columns(step.edits) else max(1, PART // columns)
    for first in range(0, rows, at_once):
        yield Block(step, first, min(rows, first + at_once), columns, chain, fused)


def given_of(inputs: Inputs, candidate: Ref, block: Block) -> Array:
    """The rows of a block as the candidate has them. Raises NonFiniteError."""
    given = read_tensor(inputs, candidate, block.start, block.start + block.numel).reshape(-1, block.columns)
    if not np.isfinite(given).all():
        raise NonFiniteError(f"{candidate.path}: {shown(candidate.spec.name)} holds NaN or infinity")
    return given


class _Products(NamedTuple):
    a: Array  # (r, in)
    squares: Array  # of its rows, (r,)
    gram: Array  # A·Aᵀ


def _count_factors(tally: WeightTally, block: Block, known: dict[int, _Products]) -> None:
    """What other recipes may have rounded on the way to the merged weight.

    known: products of A, by edit, which blocks have in common
    """
    for number, edit in enumerate(block.step.edits):
        chosen = choose(edit, block.first, block.last)
        if chosen is None or not kind_of(edit).pair:
            continue
        factors = block.chain.factors(number, edit, chosen.places)
        a, b, times = factors[A], factors[B], (edit.scale * edit.weight) ** 2
        if (own := known.get(number)) is None or own.a is not a:
            own = known[number] = _Products(a, np.square(a).sum(1), a @ a.T)
        through = float(own.squares @ np.square(b).sum(0)) * times
        delta = float((own.gram * (b.T @ b)).sum()) * times  # ‖B·A‖², without the product itself
        coarsest = max((ref.spec.dtype for ref in edit.factors.values()), key=unit)
        tally.of_factors(coarsest, len(a), through, max(delta, 0.0))


def _of_floats(block: Block, base: Array) -> float:
    """The sum of squared errors that what a weight is compared with may have itself, which is computed in float64: 0
    where `_count_factors` has counted that."""
    kinds = [kind_of(edit) for edit in block.step.edits]
    if any(kind.norms for kind in kinds) or all(kind.pair for kind in kinds):
        return 0.0
    size = Bound(float(abs(base).max(initial=0.0)))
    bound: float = block.chain.size(size, block.first, block.last, {}, unit("F64")).absolute
    return min(bound * bound * base.size, sys.float_info.max)


def _roundings(step: Step) -> int:
    """How often the weight is rounded, at most: for each adapter once, and for DoRA m, the norm, their quotient and V
    besides."""
    by_ratio = {edit.adapter for edit in step.edits if kind_of(edit).norms}
    return len({edit.adapter for edit in step.edits}) + 4 * len(by_ratio)


def _report(subject: Measured, weight: WeightDrift, outputs: Outputs | None, reason: str | None) -> ModuleDrift:
    step, found = subject.step, outputs.report() if outputs else ()
    reasons = list(_of_weight(weight))
    for distance in found:
        if not distance.expected:
            reasons.append(
                f"{distance.path} against {distance.against}: {_show(distance.rel_error)} apart, where rounding "
                f"explains {_show(distance.explained)}"
            )
    apart = [distance.rel_error for distance in found if (distance.path, distance.against) == (MERGED, UNMERGED)]
    return ModuleDrift(
        name=step.spec.name,
        kinds=tuple(dict.fromkeys(edit.kind for edit in step.edits)),
        adapters=tuple(dict.fromkeys(edit.adapter for edit in step.edits)),
        dtype=step.spec.dtype,
        shape=step.spec.shape,
        rank=subject.rank,
        weight=weight,
        inputs=outputs.count if outputs else 0,
        outputs=found,
        no_outputs=reason,
        drift=apart[0] if apart else weight.rel_error,
        verdict=SUSPECT if reasons else EXPECTED,
        reasons=tuple(reasons),
    )


def _of_weight(weight: WeightDrift) -> Iterator[str]:
    if not weight.expected:
        yield f"the weight is {_show(weight.rel_error)} off W + Δ, where rounding explains {_show(weight.explained)}"
    if not weight.survival_expected:
        yield (
            f"{_show(weight.survival)} of the update is in the weight, where the exact merge keeps "
            f"{_show(weight.survival_exact)}"
        )


def _show(number: float | None) -> str:
    return "infinitely far" if number is None else f"{number:.3g}"
