"""WaveFT: W' = W + w·s·D, with D the inverse transform by wavelets, of one level, of a sparse matrix, whose n elements
c[k] a seed places; without use_idwt D is that matrix itself.

The matrix is widened by L − 2, for filters of L numbers, and to even sizes, and is four bands: coefficient (p, q) of a
band adds c·f[a]·g[b] to D at row 2p + a and column 2q + b, from where D begins. f is the high pass in the bands on the
right, and g in those below: as PEFT has it. High pass: hi[a] = (−1)^a·lo[L − 1 − a].

Filters are the float64 of PEFT, whose numbers are those of PyWavelets (wavelets.json). D is made in two terms: up to
L² products in each element, whose roundings add up to L⁴·2⁻¹⁰⁴·Σ|c·f·g| at most.

Source: A. Bilican et al., "Exploring Sparsity for Parameter Efficient Fine Tuning Using Wavelets" (arXiv:2505.12532).
Checked against PEFT 0.21.2 in the tests.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptertool.kinds.difference import DELTA, DIFFERENCE
from adaptertool.kinds.drawn import SEED, check_seed, drawn, with_usual_seed
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import made, remembered, whole
from adaptertool.kinds.misreadings import with_settings
from adaptertool.kinds.sparse import sparse, sparse_delta
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.error_free import two_product, two_sum
from adaptertool.spec.tensors import ReadRows, Ref

SPECTRUM = "waveft_spectrum"
_Cut = Callable[[ReadRows, int, int], Array]
_KEPT = 8  # of all threads
_DENSE = 16  # where one element in so many is not 0, or more, they are not kept
_FAMILY, _INVERSE = "wavelet_family", "use_idwt"


@functools.cache
def _filters() -> Mapping[str, Sequence[float]]:
    """The low pass of each family."""
    text = Path(__file__).with_name("wavelets.json").read_text("utf-8")
    return {name: tuple(numbers) for name, numbers in json.loads(text).items()}


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """c (n,), not more than a weight (out, in) has elements."""
    if len(weight) != 2 or len(factors[SPECTRUM]) != 1:
        return None
    return {SPECTRUM: (min(factors[SPECTRUM][0], weight[0] * weight[1]),)}


class _Along(NamedTuple):
    """Coefficients along one side of the weight: where the first number of its filter lies, and in which half it is,
    integers (n,)."""

    first: Any
    half: Any


def _along(size: int, places: Any, length: int) -> _Along:
    """Along a side of so many rows or columns: what PEFT cuts off the transform at its ends is L − 2, and what is more
    than the size."""
    padded = size + length - 2
    padded += padded % 2
    half, within = np.divmod(places + (padded - size) // 2, padded // 2)
    return _Along(2 * within - (length - 2) - (padded - (length - 2) - size) // 2, half)


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """Two differences, D's high and low terms; or a sparse one."""
    spectrum, (out, wide) = factors[SPECTRUM], weight

    def places() -> tuple[Any, Any]:
        down, across = np.divmod(drawn(out * wide, spectrum.shape[0], settings[SEED]), wide)
        return down, across

    if not settings[_INVERSE]:
        return [sparse((spectrum,), weight, lambda read: (*places(), whole(read, spectrum)), scale)]
    low = np.array(_filters()[settings[_FAMILY]])
    filters = np.stack([low, low[::-1] * np.where(np.arange(len(low)) % 2, -1.0, 1.0)])

    def sides(turned: bool) -> tuple[_Along, _Along, int]:
        down, across = (_along(size, at, len(low)) for size, at in zip(weight, places(), strict=True))
        return (across, down, out) if turned else (down, across, wide)

    if spectrum.shape[0] * len(low) ** 2 * _DENSE <= out * wide:
        both = remembered(lambda read: _few(whole(read, spectrum), filters, sides(False), out))

        def term_of(which: int) -> Callable[[ReadRows], tuple[Any, Array]]:
            def few(read: ReadRows) -> tuple[Any, Array]:
                at, *terms = both(read)
                return at, terms[which]

            return few

        deltas = [sparse_delta((spectrum,), weight, term_of(which), plain=True) for which in range(2)]
        return [Part(DIFFERENCE.name, {DELTA: delta}, scale) for delta in deltas]
    found: dict[tuple[int, bool, int, int], Array] = {}  # low terms, from when the high ones were asked for

    def cut(term: int, turned: bool) -> _Cut:
        def rows(read: ReadRows, first: int, last: int) -> Array:
            key = threading.get_ident(), turned, first, last
            if term and (kept := found.pop(key, None)) is not None:
                return kept
            terms = _inverse(whole(read, spectrum), filters, sides(turned), first, last)
            if not term:
                if len(found) >= _KEPT:
                    found.clear()
                found[key] = terms[1]
            return terms[term]

        return rows

    return [
        Part(DIFFERENCE.name, {DELTA: made((spectrum,), weight, cut(term, False), cut(term, True), plain=True)}, scale)
        for term in range(2)
    ]


def _terms(
    values: Array, filters: Array, sides: tuple[_Along, _Along, int], first: int, last: int
) -> Iterator[tuple[Any, Array, Array]]:
    """What is added to rows first..last of D, or of its transpose, in this order: the places in these rows, one after
    the other, each once; the products c·f·g that are added there; and what these lack.

    filters: low and high pass, (2, L); sides: along the rows, along the columns, and how many columns there are
    """
    down, across, width = sides
    length = filters.shape[1]
    near = (down.first > first - length) & (down.first < last)
    for band in range(4):  # within one no two coefficients lie at one place
        own = np.flatnonzero(near & (2 * down.half + across.half == band))
        along_rows, along_columns = filters[band % 2], filters[band // 2]
        for a in range(length):
            for b in range(length):
                rows, columns = down.first[own] + a - first, across.first[own] + b
                inside = (rows >= 0) & (rows < last - first) & (columns >= 0) & (columns < width)
                some = values[own[inside]]
                both, rest = two_product(along_rows[a : a + 1], along_columns[b : b + 1])
                product, error = two_product(*np.broadcast_arrays(some, both))
                yield rows[inside] * width + columns[inside], product, error + some * rest


def _add(high: Array, low: Array, at: Any, product: Array, error: Array) -> None:
    """Adds to these of high + low what belongs there."""
    high[at], lost = two_sum(high[at], product)
    low[at] += lost + error


def _inverse(
    values: Array, filters: Array, sides: tuple[_Along, _Along, int], first: int, last: int
) -> tuple[Array, Array]:
    """The high and the low terms of rows first..last of D, or of its transpose: float64 (last − first, width)."""
    high, low = np.zeros((last - first, sides[2])), np.zeros((last - first, sides[2]))
    for term in _terms(values, filters, sides, first, last):
        _add(high.reshape(-1), low.reshape(-1), *term)
    return high, low


def _few(values: Array, filters: Array, sides: tuple[_Along, _Along, int], height: int) -> tuple[Any, Array, Array]:
    """The elements of D that are not 0: their places, ascending, and their high and low terms, (n,) each."""
    terms = list(_terms(values, filters, sides, 0, height))
    at, own = np.unique(np.concatenate([places for places, _, _ in terms]), return_inverse=True)
    high, low, begin = np.zeros(len(at)), np.zeros(len(at)), 0
    for places, product, error in terms:
        _add(high, low, own[begin : begin + len(places)], product, error)
        begin += len(places)
    return at, high, low


def _check(fields: Mapping[str, Any]) -> str | None:
    if not isinstance(fields.get(_INVERSE), bool):
        return f"{_INVERSE} must be true or false"
    if fields[_INVERSE] and fields.get(_FAMILY) not in _filters():
        return f"{_FAMILY} = {str(fields.get(_FAMILY))[:40]!r} is none of those that PEFT can transform by"
    return check_seed(fields)


WAVEFT = Kind(
    name="waveft",
    roles=frozenset({SPECTRUM}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=(with_settings(becomes, "setting-ignored", f"{SEED} is not read", with_usual_seed),),
    spellings={
        "peft": Spelling(
            tag="WAVEFT",
            keys={f".{SPECTRUM}": SPECTRUM},
            rank=None,
            alpha=None,
            scale=lambda fields: fields["scaling"],
            settings=frozenset({SEED, _FAMILY, _INVERSE}),
            check=_check,
            harmless=frozenset(
                {"scaling", "n_frequency", "n_frequency_pattern", "proportional_parameters", "init_weights"}
            ),
        )
    },
)
