"""The same change by another kind, which a format has a spelling for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adaptertool.kinds import BY_NAME, kind_of
from adaptertool.kinds.dora import DORA, MAGNITUDE
from adaptertool.kinds.dora_scale import DORA_SCALE, SCALE
from adaptertool.kinds.kind import Shape
from adaptertool.kinds.lokr import LOKR, LYCORIS_LOKR, W2
from adaptertool.kinds.lora import LORA, A, B
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.parts import parts_of
from adaptertool.spec.adapter import Module
from adaptertool.spec.tensors import Ref


def reshaped(ref: Ref, shape: Shape) -> Ref:
    """The same elements in the same order, in another shape."""
    if ref.shape == shape:
        return ref
    if ref.made is None:
        return Ref(ref.path, ref.offset, ref.spec._replace(shape=shape))
    return made([ref], shape, lambda read, first, last: whole(read, ref).reshape(shape)[first:last])


def _to_scale(change: Module) -> Module | None:
    """m (out,) as (out, 1, ...), of as many dimensions as the factors have."""
    m = change.factors[MAGNITUDE]
    column = (m.spec.numel, *[1] * (len(change.factors[A].shape) - 1))
    factors = {A: change.factors[A], B: change.factors[B], SCALE: reshaped(m, column)}
    return change._replace(kind=DORA_SCALE.name, factors=factors)


def _from_scale(change: Module) -> Module | None:
    """m (out, 1, ...) as (out,), or (1, out, 1, ...) for a convolution. None where it is of columns: that is another
    change.

    m has as many dimensions as the weight, and so have factors then, whose own kernel may be another layer's of size 1.
    """
    a, b, m = (change.factors[role] for role in (A, B, SCALE))
    if m.shape != (b.shape[0], *[1] * (len(m.shape) - 1)):
        return None
    ones = [1] * (len(m.shape if len(m.shape) > 1 else a.shape) - 2)
    if set(a.shape[2:]) <= {1}:
        a, b = (reshaped(ref, (*ref.shape[:2], *ones)) for ref in (a, b))
    elif len(a.shape) != len(ones) + 2:
        return None
    factors = {A: a, B: b, MAGNITUDE: reshaped(m, (1, b.shape[0], *ones) if ones else (b.shape[0],))}
    return change._replace(kind=DORA.name, factors=factors)


def _kronecker(change: Module, kind: str) -> Module | None:
    """LoKr of the other library. None for a convolution in one dimension whose W₂ is stored: PEFT turns W₁ and W₂ round
    there (kinds.lokr.becomes)."""
    w2 = change.factors.get(W2)
    return None if w2 is not None and len(w2.shape) == 3 else change._replace(kind=kind)


# (kind, whose spelling) -> what makes the change of a kind that has one
_OTHER: Mapping[tuple[str, str], Callable[[Module], Module | None]] = {
    (DORA.name, "kohya"): _to_scale,
    (LOKR.name, "kohya"): lambda change: _kronecker(change, LYCORIS_LOKR.name),
    (DORA_SCALE.name, "peft"): _from_scale,
    (LYCORIS_LOKR.name, "peft"): lambda change: _kronecker(change, LOKR.name),
}


_OF_LORA = frozenset({LORA.name, DORA.name})


def spelled_as(change: Module, whose: str) -> Module | None:
    """The change by a kind of that spelling, or of LoRA's own; None where there is none that is the same.

    What comes down to one product of factors that are made exactly is LoRA.
    """
    kind = kind_of(change)
    if (other := _OTHER.get((change.kind, whose))) is not None:
        return other(change)
    if whose in kind.spellings or change.kind in _OF_LORA:
        return change
    parts = parts_of(change) if kind.becomes is not None and change.layer else None
    if parts is None or len(parts) != 1 or not BY_NAME[parts[0].kind].is_product:
        return None
    return parts[0]
