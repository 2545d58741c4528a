"""The plan of a sum of adapters: which factors of which adapter make a layer, and by what they are multiplied.

Σ cᵢ·Bᵢ·Aᵢ = S·[q₁·B₁ q₂·B₂ ...]·[A₁; A₂; ...] with qᵢ = cᵢ/S, where cᵢ is the weight times the adapter's own scale.
S is chosen so that most qᵢ are powers of two: such products lose nothing. Where one is not, the factors are stored as
float32 or wider.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from adaptertool.errors import MismatchError, UnsupportedError, UsageError, by, shown
from adaptertool.spec.adapter import Module
from adaptertool.spec.layers import Layer, Layered, Pair
from adaptertool.spec.tensors import DTYPE_BITS, TensorSpec

_NEAR = Fraction(1, 2**50)  # a factor so near to a power of two is taken for it: what lora_alpha cannot express
_LEAST = Fraction(1, 2**900)
_WEIGHT, _BIAS = ".lora_B.weight", ".lora_B.bias"


# (number of the adapter, one of its layers) -> the weight of that
LayerWeight = Callable[[int, Layer], Fraction]


class Term(NamedTuple):
    layer: Layer
    times: float  # q
    exact: bool  # q is 0 or a power of two, up to its sign


class Combined(NamedTuple):
    """A layer of the sum."""

    path: str
    terms: tuple[Term, ...]
    dtype: str
    rank: int
    scale: float  # S, as the config that is written can say it
    bias: str | None  # the key of its lora_B.bias, if it is to have one

    @property
    def first(self) -> Layer:
        return self.terms[0].layer

    @property
    def unpaired(self) -> Module | None:
        """The first of its changes that is made of no pair of factors."""
        return next((term.layer.unpaired for term in self.terms if term.layer.unpaired is not None), None)

    @property
    def needs_base(self) -> bool:
        """Whether factors alone do not tell the sum."""
        return any(term.layer.needs_base for term in self.terms)

    def of_pair(self, number: int) -> tuple[TensorSpec, TensorSpec]:
        """A and B of a pair."""
        pair, wide = self.first.pairs[number], self.first.experts * self.rank
        a = _spec(pair.a.spec.name, self.dtype, (wide, *pair.a.spec.shape[1:]))
        return a, _spec(pair.b.spec.name, self.dtype, (pair.outputs, wide, *pair.b.spec.shape[2:]))

    def of_bias(self) -> TensorSpec | None:
        return None if self.bias is None else _spec(self.bias, self.dtype, (self.first.pairs[0].outputs,))

    def specs(self) -> list[TensorSpec]:
        """All its tensors, in their order."""
        pairs = [spec for number in range(len(self.first.pairs)) for spec in self.of_pair(number)]
        return pairs if (bias := self.of_bias()) is None else [*pairs, bias]


def _spec(name: str, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name, dtype, shape, math.prod(shape) * DTYPE_BITS[dtype] // 8)


def combined(
    adapters: Sequence[Layered],
    weigh: LayerWeight,
    nearest_scale: Callable[[float, int], float],
    *,
    dora: bool = False,
    rank: int | None = None,
) -> list[Combined]:
    """The layers of the sum, in the order in which they are met. Raises for what has no sum.

    nearest_scale: of the format that the sum is written in (formats.format.Writing)
    dora: layers of DoRA may be among them; they are of scale 1, and of that rank, or as large as they can be
    """
    terms = _terms(adapters, weigh, dora=dora)
    biased = any(layer.bias is not None for some in terms.values() for _, layer in some)
    return [
        _of_scale_one(path, some, _at_most(some[0][1], rank), biased=biased)
        if any(layer.needs_base for _, layer in some)
        else _combined(
            path, [(weight * Fraction(layer.scale), layer) for weight, layer in some], nearest_scale, biased=biased
        )
        for path, some in terms.items()
    ]


def mixed(adapters: Sequence[Layered], weigh: LayerWeight, *, on_factors: bool, rank: int | None) -> list[Combined]:
    """The layers that a method makes (algebra.mix), of scale 1.

    rank: that of each layer, unless it is on factors; None where it will be known only later

    Raises MismatchError where the method is on factors, and they differ in rank.
    """
    layers = []
    for path, some in _terms(adapters, weigh, dora=False).items():
        first = some[0][1]
        for _, layer in some:
            if on_factors and layer.rank != first.rank:
                raise MismatchError(
                    f"{shown(path)} has rank {first.rank} in {first.pairs[0].a.path}, and {layer.rank} in "
                    f"{layer.pairs[0].a.path}: on factors they must be the same; take the method on changes (..._svd)"
                )
        biased = any(layer.bias is not None for _, layer in some)
        wide = first.rank if on_factors else _at_most(first, rank)
        layers.append(_of_scale_one(path, some, wide, biased=biased))
    return layers


def _at_most(layer: Layer, rank: int | None) -> int:
    """`rank`, or as large as it can be."""
    most = max(min(pair.outputs, pair.inputs) for pair in layer.pairs)
    return min(most, rank or most)


def _of_scale_one(path: str, terms: Sequence[tuple[Fraction, Layer]], rank: int, *, biased: bool) -> Combined:
    first = terms[0][1]
    for _, layer in terms[1:]:
        _require_alike(first, layer)
    if biased:
        raise UnsupportedError(f"{first.pairs[0].a.path}: {shown(path)}: only plain sums of LoRA keep a lora_bias")
    dtype = widest({"F32", *(ref.spec.dtype for _, layer in terms for ref in layer.refs)})
    times = [weight * Fraction(layer.scale) for weight, layer in terms]
    _require_numbers(times, path)
    parts = tuple(Term(layer, float(own), exact=False) for own, (_, layer) in zip(times, terms, strict=True))
    return Combined(path, parts, dtype, rank, 1.0, None)


def _terms(
    adapters: Sequence[Layered], weigh: LayerWeight, *, dora: bool
) -> Mapping[str, list[tuple[Fraction, Layer]]]:
    """The weighted layers of each name. Raises UnsupportedError for DoRA, unless it is wanted."""
    terms: dict[str, list[tuple[Fraction, Layer]]] = {}
    for number, adapter in enumerate(adapters):
        for path, layer in adapter.layers.items():
            if layer.unpaired is not None and not dora:
                raise UnsupportedError(
                    f"{adapter.adapter.path}: {shown(path)} is of kind {layer.unpaired.kind}; what it changes is "
                    "made of no pair of factors, so no sum of factors holds it: give the base (`adaptertool sum --base "
                    "BASE --rank R`), and the leading part is extracted"
                )
            if layer.magnitude is not None and not dora:
                raise UnsupportedError(
                    f"{adapter.adapter.path}: {shown(path)} is DoRA; what it changes is of full rank, so no sum of "
                    "factors holds it, and the magnitude is not dropped: give the base (--base) and a --rank, and the "
                    "leading part is extracted"
                )
            terms.setdefault(path, []).append((weigh(number, layer), layer))
    return terms


def _combined(
    path: str,
    terms: Sequence[tuple[Fraction, Layer]],
    nearest_scale: Callable[[float, int], float],
    *,
    biased: bool,
) -> Combined:
    first = terms[0][1]
    for _, layer in terms[1:]:
        _require_alike(first, layer)
    bias = _bias_key(first) if biased else None
    rank = sum(layer.rank for _, layer in terms)
    scale = nearest_scale(_common([times for times, _ in terms], path), rank)
    parts = tuple(_term(layer, times / Fraction(scale)) for times, layer in terms)
    dtypes = {ref.spec.dtype for _, layer in terms for ref in layer.refs}
    if not all(term.exact for term in parts):
        dtypes.add("F32")
    return Combined(path, parts, widest(dtypes), rank, scale, bias)


def widest(dtypes: set[str]) -> str:
    """The narrowest dtype that holds all of these."""
    if dtypes == {"F16", "BF16"}:
        return "F32"
    return max(dtypes, key=lambda dtype: DTYPE_BITS[dtype])


def _common(times: Sequence[Fraction], path: str) -> float:
    """The scale that most of these are a power of two away from; 1 where all are 0."""
    wholes = [abs(number) for number in times if number]
    if not wholes:
        return 1.0
    odd, _ = Counter(map(_odd_part, wholes)).most_common(1)[0]
    common = max(number for number in wholes if _odd_part(number) == odd)
    _require_numbers((common, *(number / common for number in wholes)), path)
    return float(common)


def _require_numbers(times: Iterable[Fraction], path: str) -> None:
    if any(number and not _LEAST < abs(number) < 1 / _LEAST for number in times):
        raise UsageError(f"weights times scales of {shown(path)} lie too far apart, or beyond what a number holds")


def _odd_part(number: Fraction) -> Fraction:
    """`number`, positive, without its powers of two."""
    top, bottom = number.numerator, number.denominator
    return Fraction(top // (top & -top), bottom // (bottom & -bottom))


def _term(layer: Layer, times: Fraction) -> Term:
    if not times:
        return Term(layer, 0.0, exact=True)
    size = abs(times)
    about = size.numerator.bit_length() - size.denominator.bit_length()
    for power in (about - 1, about, about + 1):
        if abs(size - Fraction(2) ** power) <= _NEAR * size:
            return Term(layer, math.copysign(2.0**power, times), exact=True)
    return Term(layer, float(times), exact=False)


def _require_alike(first: Layer, other: Layer) -> None:
    """Raises MismatchError where two layers of one name are not changes of the same weight."""
    named = first.unpaired is other.unpaired is None  # else the name is one that we gave it
    for one, two in zip(first.pairs, other.pairs, strict=False):
        here, there = (_form(pair, named=named) for pair in (one, two))
        if here != there:
            raise MismatchError(
                f"{shown(first.path)} is for a weight of {by(here[1])} ({shown(here[0])}) in {one.a.path}, and of "
                f"{by(there[1])} ({shown(there[0])}) in {two.a.path}: adapters of one model?"
            )
    if (len(first.pairs), first.experts) != (len(other.pairs), other.experts):
        raise MismatchError(
            f"{shown(first.path)} has {first.experts} experts and {len(first.pairs)} pairs of factors in "
            f"{first.pairs[0].a.path}, and {other.experts} and {len(other.pairs)} in {other.pairs[0].a.path}"
        )


def _form(pair: Pair, *, named: bool) -> tuple[str, tuple[int, ...]]:
    """The key of A, if that is to tell, and the shape of the weight that it is for."""
    return pair.a.spec.name if named else "", (pair.outputs, *pair.a.spec.shape[1:])


def _bias_key(layer: Layer) -> str:
    """The key of the bias of a layer: with lora_bias every layer has one. Raises UnsupportedError for those that
    cannot."""
    key = layer.pairs[0].b.spec.name
    if layer.is_parameter or len(layer.pairs) > 1 or not key.endswith(_WEIGHT):
        raise UnsupportedError(
            f"{layer.pairs[0].a.path}: {shown(layer.path)} can have no lora_bias, and another adapter has it"
        )
    return key.removesuffix(_WEIGHT) + _BIAS
