"""DEFT: W' = W + w·(s·Q·R − Q·Nᵀ·W): what P (out, r) picks of the rows of W is taken away, and R (r, in) is put there;
with `para` nothing is put there (PaRa). Q = P and N = max(P, 0) by `relu`; by `qr` both are an orthonormal basis of
what P spans. s is alpha/r, or 1 without an alpha.

The weight's transpose is multiplied by a matrix near the identity from the right, and then there is LoRA. By `qr` Q·Nᵀ
is P·(PᵀP)⁻¹·Pᵀ, made in double-double (kinds.hra), and so is Q, with the signs that LAPACK gives its columns
(numerics.orthonormal): where P is so near to another sign that float32, by which PEFT decomposes it, may have that, it
is refused.

Source: S. Chen et al., "PaRa: Personalizing Text-to-Image Diffusion via Parameter Rank Reduction" (arXiv:2406.05641),
and PEFT 0.21.2 (tuners/deft), against which this is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.errors import UnsupportedError, shown
from adaptertool.kinds import lora
from adaptertool.kinds.hra import projected_away
from adaptertool.kinds.kind import Change, Kind, Misreading, Part, Shape
from adaptertool.kinds.made import made, remembered, whole
from adaptertool.kinds.misreadings import ZEROS, ignored, with_settings
from adaptertool.kinds.right_product import HIGH, LEFT, LOW, RIGHT_PRODUCT
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.orthonormal import basis, signs
from adaptertool.spec.tensors import ReadRows, Ref

P, R = "deft_P", "deft_R"
METHOD, REMOVES, ALPHA = "decomposition_method", "para", "alpha"
_RELU, _QR = "relu", "qr"
_BY_PEFT = "Merge it with PEFT (merge_and_unload), on the machine that trained it"


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """P (out, r), and R (r, in) if it is there, for a weight (out, in)."""
    if len(weight) != 2 or len(factors[P]) != 2 or not factors[P][1]:
        return None
    rank = factors[P][1]
    return {P: (weight[0], rank)} | ({R: (rank, weight[1])} if R in factors else {})


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """A right product of the transpose, then LoRA. Rows raise InputError where P spans fewer than r dimensions."""
    p, rank = factors[P], factors[P].shape[1]
    if settings[METHOD] == _QR:
        taken = Part(RIGHT_PRODUCT.name, projected_away(p), 1.0, turned=True)
        return [taken, _on_basis(p, factors[R], scale * _scale(settings, rank))] if R in factors else [taken]
    size = (rank, weight[0])
    product = {
        LEFT: made((p,), p.shape, lambda read, first, last: np.maximum(read(p, first, last), 0.0), plain=True),
        HIGH: made((p,), size, lambda read, first, last: -whole(read, p).T[first:last], plain=True),
        LOW: made((p,), size, lambda _read, first, last: np.zeros((last - first, weight[0])), plain=True),
    }
    taken = Part(RIGHT_PRODUCT.name, product, 1.0, turned=True)
    if R not in factors:
        return [taken]
    return [taken, Part(lora.LORA.name, {lora.B: p, lora.A: factors[R]}, scale * _scale(settings, rank))]


def _scale(settings: Mapping[str, Any], rank: int) -> float:
    alpha = settings[ALPHA]
    return float(alpha / rank) if alpha else 1.0


def _on_basis(p: Ref, r: Ref, scale: float) -> Part:
    """LoRA with Q in two terms. Its rows raise UnsupportedError where the signs of Q are not known."""
    rank = p.shape[1]

    def left(read: ReadRows) -> Array:
        columns = whole(read, p)
        found = signs(columns)
        if not found.all():
            raise UnsupportedError(
                f"{p.path}: {shown(p.spec.name)}: the sign of column {int(np.argmin(abs(found)))} of its basis is "
                f"open: float32 may take either. {_BY_PEFT}"
            )
        return (basis(columns).parts[:2] * found).transpose(1, 0, 2).reshape(-1, 2 * rank)

    def twice(read: ReadRows, first: int, last: int) -> Array:
        return np.tile(whole(read, r), (2, 1))[first:last]

    q = remembered(left)
    factors = {
        lora.B: made((p,), (p.shape[0], 2 * rank), lambda read, first, last: q(read)[first:last]),
        lora.A: made((r,), (2 * rank, r.shape[1]), twice),
    }
    return Part(lora.LORA.name, factors, scale)


def check(fields: Mapping[str, Any]) -> str | None:
    """Why these settings are not handled, or None."""
    method, removes, alpha = fields.get(METHOD), fields.get(REMOVES), fields.get(ALPHA)
    if method not in (_RELU, _QR) or not isinstance(removes, bool):
        return f"{METHOD} must be {_RELU} or {_QR}, and {REMOVES} true or false: they say what the factors mean"
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 2**100):
        return f"{ALPHA} must be a number"
    return None


def fits(settings: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str | None:
    """Why factors and settings do not belong together, or None."""
    return f"{REMOVES} = {settings[REMOVES]}, with {', '.join(shapes)}" if (R in shapes) == settings[REMOVES] else None


def _added(change: Change) -> Sequence[Part]:
    """LoRA alone: nothing is taken away."""
    return becomes(change.factors, change.weight, change.scale, change.settings)[1:]


def _without_alpha(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**settings, ALPHA: None} if settings[ALPHA] else {}


DEFT = Kind(
    name="deft",
    roles=frozenset({P, R}),
    optional=frozenset({R}),
    by_row=frozenset({P}),
    by_column=frozenset({R}),
    shapes=shapes,
    becomes=becomes,
    of_weight=True,
    misreadings=(
        Misreading("taken-for-lora", "P·R is added, and nothing is taken away", _added),
        *ignored(becomes, ZEROS, R),
        with_settings(becomes, "alpha-ignored", "", _without_alpha),
    ),
    spellings={
        "peft": Spelling(
            tag="DEFT",
            keys={f".{role}": role for role in (P, R)},
            rank=None,
            alpha=None,
            scale=lambda _: 1.0,
            settings=frozenset({METHOD, REMOVES, ALPHA}),
            check=check,
            fits=fits,
            harmless=frozenset({"r", "init_scale", "deft_dropout", "init_weights"}),
        )
    },
)
