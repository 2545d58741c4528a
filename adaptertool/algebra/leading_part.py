"""What adapters of any kind change in a layer of their base together, as factors: the leading part of Σ wᵢ·(W'ᵢ − W),
where W'ᵢ is the weight that adapter i alone makes of W.

What DoRA and most kinds change is of full rank, so factors hold a part of it only; what they leave is measured as they
are stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
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
from adaptertool.spec.layers import Layer, Layered
from adaptertool.spec.plan import Edit, Plan, Step


class Share(NamedTuple):
    """What one adapter does to a tensor of the base, and its weight in the sum."""

    step: Step
    weight: float


def sized(adapter: Layered, plan: Plan | None) -> Layered:
    """The adapter, each of its layers with the size of the tensor that it changes. plan: of it alone, merged into the
    base; None where there is no base.

    Raises UnsupportedError for a layer that is not one matrix of the base.
    """
    if plan is None or not any(layer.is_open for layer in adapter.layers.values()):
        return adapter
    steps, layers = steps_of(plan), dict(adapter.layers)
    for path, layer in layers.items():
        if layer.is_open:
            own = steps.get(layer.key, ())
            _require_one(layer, own, plan)
            (step,) = own
            turned = any(_is_transposed(edit) for edit in step.edits)
            layers[path] = layer.of_size(*(step.base.spec.shape[::-1] if turned else step.base.spec.shape))
    return replace(adapter, layers=layers)


def shares_on(plans: Sequence[Plan], weigh: LayerWeight, layers: Sequence[Combined]) -> Mapping[str, Sequence[Share]]:
    """The shares of the adapters in each layer that needs the base, by its path. plans: of each adapter alone, merged
    into the base.

    Raises UnsupportedError for a layer that is not one tensor of the base.
    """
    by_key = [steps_of(plan) for plan in plans]
    found: dict[str, list[Share]] = {}
    for layer in layers:
        if not layer.needs_base:
            continue
        keys = {term.layer.key for term in layer.terms}
        one = next((term.layer for term in layer.terms if term.layer.unpaired is not None), layer.first)
        found[layer.path] = []
        for number, (plan, steps) in enumerate(zip(plans, by_key, strict=True)):
            own: list[Step] = []
            for step in (step for key in keys for step in steps.get(key, ())):
                if step not in own:  # under the key of another adapter, too
                    own.append(step)
            if own:
                _require_one(one, own, plan)
                found[layer.path].append(Share(own[0], float(weigh(number, layer.first))))
        if len(found[layer.path]) != len(layer.terms):  # none is dropped in silence
            raise _in_parts(one, plans[0])
    return found


def _require_one(layer: Layer, steps: Sequence[Step], plan: Plan) -> None:
    """Raises UnsupportedError unless these are one whole tensor; a matrix, where the layer is made of no pair."""
    what = _kind(layer)
    for step in steps if layer.unpaired is not None else ():
        if len(step.base.spec.shape) > 2:
            raise UnsupportedError(
                f"{shown(layer.path)} is {what}, on a convolution: its leading part as LoRA is not supported "
                "yet; merge it into its base, and extract a LoRA"
            )
        if len(step.base.spec.shape) < 2:
            raise UnsupportedError(
                f"{shown(layer.path)} is {what}, and changes {shown(step.spec.name)}, which is no matrix, so no LoRA "
                "holds it: merge it into its base, and extract a LoRA, which has such tensors whole"
            )
    whole = len(steps) == len(layer.pairs) == 1 and (layer.unpaired is not None or layer.experts == 1)
    if not whole or any(edit.view is not None for step in steps for edit in step.edits):
        raise _in_parts(layer, plan)


def _in_parts(layer: Layer, plan: Plan) -> UnsupportedError:
    return UnsupportedError(
        f"{shown(layer.path)} is {_kind(layer)}, and {plan.base} stores it as a part of a tensor, or as several: merge "
        "it into its base, and extract a LoRA"
    )


def _kind(layer: Layer) -> str:
    return "DoRA" if layer.unpaired is None else f"of kind {layer.unpaired.kind}"


def _is_transposed(edit: Edit) -> bool:
    """Whether the tensor is stored (in, out). A part of a change may be of the transpose of what is changed."""
    return bool((edit.part_of or edit).transposed)


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
    if any(_is_transposed(edit) for edit in shares[0].step.edits):
        b, a = a.T, b.T
    parts = of_pairs(layer, reduced._replace(pairs=((b, a),)), f"the sum for {shown(layer.path)}")
    return parts, LayerOutcome(layer, reduced.rank, energy=1 - error**2, error=error, storing=reduced.storing)
