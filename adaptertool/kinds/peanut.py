"""PEANuT: W' = W + w·s·B·Hᵀ, where a small neural network makes H (in, r) of the weight that the base has:

    H = f(Wᵀ·Aᵀ);  h[i] = H, H = f(H·E[i]ᵀ) for i = 0, ..., d − 1;  H = f(H·D[i]ᵀ) + h[d − 1 − i] for the same i,

with A (r, out), E[i] and D[i] (r, r), B (out, r), and f of transformers: max(x, 0) for relu, or another that is made of
products and sums (`_FUNCTIONS`). H is summed in double-double: each product is within about out·2^-104, or r·2^-104, of
its sum of magnitudes. Those with exponentials and error functions would have to be made to as many digits, and are
refused.

Source: Y. Zhong et al., "PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers" (arXiv:2410.01870).
Checked against PEFT 0.21.2 in the tests, which has it on linear layers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from adaptertool.errors import shown
from adaptertool.kinds import lora
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import made, remembered, whole
from adaptertool.kinds.misreadings import with_settings
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.double_double import DoubleDouble
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B, WEIGHT = "peanut_A", "peanut_B", "weight"
DEPTH, FUNCTION = "depth", "act_fn"
_DEEPEST, _AT_ONCE = 16, 256  # layers of each half; rows of W
_DOWN, _UP = ([f"peanut_{half}.{i}" for i in range(_DEEPEST)] for half in ("encoders", "decoders"))


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, out), B (out, r), and as many E as D (r, r), for a weight (out, in)."""
    if len(weight) != 2 or not factors[A] or not factors[A][0]:
        return None
    rank, inner = factors[A][0], factors.keys() - {A, B}
    if inner != {*_DOWN[: len(inner) // 2], *_UP[: len(inner) // 2]}:
        return None
    return {A: (rank, weight[0]), B: (weight[0], rank)} | dict.fromkeys(inner, (rank, rank))


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """LoRA with both parts of Hᵀ."""
    base, b, rank = factors[WEIGHT], factors[B], factors[A].shape[0]
    own = [ref for role, ref in factors.items() if role not in (WEIGHT, B)]
    bend = _FUNCTIONS[settings[FUNCTION] or "linear"]
    made_once = remembered(
        lambda read: _network(read, factors, bend).parts[:2].transpose(0, 2, 1).reshape(2 * rank, -1)
    )
    pair = {
        lora.A: made((*own, *base.stored), (2 * rank, weight[1]), lambda read, first, end: made_once(read)[first:end]),
        lora.B: made((b,), (weight[0], 2 * rank), lambda read, first, end: np.tile(read(b, first, end), (1, 2))),
    }
    return [Part(lora.LORA.name, pair, scale)]


def _network(read: ReadRows, factors: Mapping[str, Ref], bend: Callable[[DoubleDouble], DoubleDouble]) -> DoubleDouble:
    """H (in, r)"""
    found = bend(_times(read, whole(read, factors[A]), factors[WEIGHT]).T)
    down, up = ([factors[role] for role in half if role in factors] for half in (_DOWN, _UP))
    before = []
    for ref in down:
        before.append(found)
        found = bend(found @ _turned(read, ref))
    for ref in up:
        found = bend(found @ _turned(read, ref)) + before.pop()
    return found


def _times(read: ReadRows, a: Array, base: Ref) -> DoubleDouble:
    """A·W (r, in), of some rows of W after the other."""
    total = DoubleDouble.of(np.zeros((len(a), base.shape[1])))
    for first in range(0, base.shape[0], _AT_ONCE):
        last = min(first + _AT_ONCE, base.shape[0])
        total += DoubleDouble.of(np.ascontiguousarray(a[:, first:last])) @ DoubleDouble.of(read(base, first, last))
    return total


def _turned(read: ReadRows, ref: Ref) -> DoubleDouble:
    return DoubleDouble.of(np.ascontiguousarray(whole(read, ref).T))


def _relu(numbers: DoubleDouble) -> DoubleDouble:
    """max(x, 0); what is no number stays."""
    parts = numbers.parts.copy()
    parts[:2, numbers.high < 0] = 0.0
    return DoubleDouble(parts)


def _relu6(numbers: DoubleDouble) -> DoubleDouble:
    """min(max(x, 0), 6)"""
    found = _relu(numbers)
    above = (found.high > 6) | ((found.high == 6) & (found.low > 0))
    found.parts[0, above], found.parts[1, above] = 6.0, 0.0
    return found


def _leaky_relu(numbers: DoubleDouble) -> DoubleDouble:
    """x, or 0.01·x where it is negative: of torch's default, the float64 next to it."""
    found, less = numbers.copy(), numbers * Fraction(0.01)
    negative = numbers.high < 0
    found.parts[:, negative] = less.parts[:, negative]
    return DoubleDouble(found.parts)


def _relu2(numbers: DoubleDouble) -> DoubleDouble:
    """max(x, 0)²"""
    found = _relu(numbers)
    return found * found


def _hardswish(numbers: DoubleDouble) -> DoubleDouble:
    """x·min(max(x + 3, 0), 6)/6"""
    return numbers * _relu6(numbers + DoubleDouble.near(Fraction(3))) * Fraction(1, 6)


_FUNCTIONS: Mapping[str, Callable[[DoubleDouble], DoubleDouble]] = {  # as transformers names them
    "relu": _relu,
    "relu2": _relu2,
    "relu6": _relu6,
    "leaky_relu": _leaky_relu,
    "hardswish": _hardswish,
    "linear": lambda numbers: numbers,
}


def check(fields: Mapping[str, Any]) -> str | None:
    """Why these settings are not handled, or None."""
    function, depth, scale = fields.get(FUNCTION), fields.get(DEPTH), fields.get("scaling")
    if not isinstance(function, str) or function not in _FUNCTIONS:
        return (
            f"{FUNCTION} = {shown(function)[:80]} is not supported ({', '.join(_FUNCTIONS)} are): others are no "
            "sums of products, and are not made to the digits that correct rounding takes. Merge it with PEFT "
            "(merge_and_unload), onto the very base that it was trained on"
        )
    if type(depth) is not int or not 0 <= depth <= _DEEPEST:
        return f"{DEPTH} must be a whole number from 0 to {_DEEPEST}"
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not abs(scale) < 2**100:
        return "scaling must be a number"
    return None


def fits(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Why factors and settings do not belong together, or None."""
    count = len(shapes) - 2
    return None if count == 2 * settings[DEPTH] else f"{DEPTH} = {settings[DEPTH]}, with {count} layers, not twice that"


_ROLES = frozenset({A, B, *_DOWN, *_UP})
PEANUT = Kind(
    name="peanut",
    roles=_ROLES,
    optional=frozenset({*_DOWN, *_UP}),
    by_row=frozenset({B}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    of_weight=True,
    reads=WEIGHT,
    misreadings=(
        with_settings(becomes, "setting-ignored", f"{FUNCTION} is not done", lambda own: {**own, FUNCTION: None}),
    ),
    spellings={
        "peft": Spelling(
            tag="PEANUT",
            keys={f".{role}.weight": role for role in sorted(_ROLES)},
            rank=None,
            alpha=None,
            scale=lambda fields: fields["scaling"],
            settings=frozenset({DEPTH, FUNCTION}),
            check=check,
            fits=fits,
            harmless=frozenset({"r", "scaling", "init_weights"}),
        )
    },
)
