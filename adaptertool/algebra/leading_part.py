"""What adapters, DoRA among them, change in a layer of their base together, as factors: the leading part of
Σ wᵢ·(W'ᵢ − W), where W'ᵢ is the weight that adapter i alone makes of W.

What DoRA changes is of full rank, so factors hold a part of it only; what they leave is measured as they are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.algebra.effect import steps_of
from adaptertool.algebra.factors import at_rank
from adaptertool.algebra.sum import LayerOutcome, of_pairs
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.tiling import block_rows, needs_columns
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.tensors import read_rows
from adaptertool.engine.produce import Made
from adaptertool.errors import NonFiniteError, UnsupportedError, shown
from adaptertool.files.reader import Inputs
from adaptertool.numerics.held import Held, Room, Single, narrowed
from adaptertool.numerics.lowrank import kept
from adaptertool.numerics.randomized_svd import leading
from adaptertool.numerics.rounding import Array
from adaptertool.planning.sum import Combined, LayerWeight
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.plan import Plan, Step


class Share(NamedTuple):
    """What one adapter does to a tensor of the base, and its weight in the sum."""

    step: Step
    weight: float


def shares_on(plans: Sequence[Plan], weigh: LayerWeight, layers: Sequence[Combined]) -> Mapping[str, Sequence[Share]]:
    """The shares of the adapters in each layer that is DoRA, by its path. plans: of each adapter alone, merged into the
    base.

    Raises UnsupportedError for a layer that is not one tensor of the base.
    """
    by_key, found = [steps_of(plan) for plan in plans], {}
    for layer in layers:
        if not layer.needs_base:
            continue
        keys = {term.layer.key for term in layer.terms}
        several = [
            ([step for key in keys for step in steps.get(key, ())], float(weigh(number, layer.first)))
            for number, steps in enumerate(by_key)
        ]
        if layer.unpaired is not None and any(len(step.base.spec.shape) > 2 for steps, _ in several for step in steps):
            raise UnsupportedError(
                f"{shown(layer.path)} is {_kind(layer)}, on a convolution: its leading part as LoRA is not supported "
                "yet; merge it into its base, and extract a LoRA"
            )
        whole = len(layer.first.pairs) == layer.first.experts == 1
        if not whole or any(len(steps) > 1 or any(map(_of_a_part, steps)) for steps, _ in several):
            raise UnsupportedError(
                f"{shown(layer.path)} is {_kind(layer)}, and {plans[0].base} stores it as a part of a tensor, or as "
                "several: merge it into its base, and extract a LoRA"
            )
        found[layer.path] = [Share(steps[0], weight) for steps, weight in several if steps]
    return found


def _kind(layer: Combined) -> str:
    return "DoRA" if layer.unpaired is None else f"of kind {layer.unpaired.kind}"


def _of_a_part(step: Step) -> bool:
    return any(edit.view is not None for edit in step.edits)


class Change:
    """The change Σ wᵢ·(W'ᵢ − W) of one tensor, as a Matrix (numerics.randomized_svd)."""

    def __init__(self, inputs: Inputs, shares: Sequence[Share]) -> None:
        self._inputs, self._base = inputs, shares[0].step.base
        high = self._base.spec.shape[0]
        self.shape = high, self._base.spec.numel // high
        self._chains = [(Chain(inputs, step, self.shape), weight) for step, weight in shares]

    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The blocks of the change, (first row, rows), float64 (n, in). Raises NonFiniteError for what is not
        finite."""
        high, wide = self.shape
        turned = any(needs_columns(chain.step.edits) for chain, _ in self._chains)
        at_once = max(1, high if turned else block_rows(wide))
        for first in range(0, high, at_once):
            before = read_rows(self._inputs, self._base, first, min(high, first + at_once), wide)
            total = np.zeros(before.shape)
            for chain, weight in self._chains:
                after = before.copy()
                chain.apply(after, first, before)
                after -= before
                total += weight * after
            if not np.isfinite(total).all():
                raise NonFiniteError(
                    f"{self._base.path}: {shown(self._base.spec.name)}: the merged weight, or the norm of a row that "
                    "DoRA divides by, is no finite number, or 0"
                )
            yield first, total

    def singles(self, out: Array | None) -> Iterator[Single]:
        return narrowed(self.blocks(), out)


def extracted(
    layer: Combined, shares: Sequence[Share], cut: RankChoice, inputs: Inputs
) -> tuple[list[Made], LayerOutcome]:
    dtypes = layer.dtype, layer.dtype
    with Held(Change(inputs, shares), Room()) as held:
        found = leading(held, cut, layer.path)
        reduced = at_rank([[found.svd]], min(kept(found.svd.values, cut), found.available), [dtypes], balanced=False)
        ((b, a),) = reduced.pairs
        rest, norm = held.left_over((doubles(b, layer.dtype), doubles(a, layer.dtype)))
    error = rest / norm if norm else 0.0
    if any(edit.transposed for edit in shares[0].step.edits):
        b, a = a.T, b.T
    parts = of_pairs(layer, reduced._replace(pairs=((b, a),)), f"the sum for {shown(layer.path)}")
    return parts, LayerOutcome(layer, reduced.rank, energy=1 - error**2, error=error, storing=reduced.storing)
