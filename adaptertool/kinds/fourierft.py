"""FourierFT: W' = W + w·s·Re(ifft2(F)), with F (out, in) zero but for n elements: c[k] at (u[k], v[k]), which a seed
draws.

Element (o, i) is s/(out·in)·Σ c[k]·cos(2π(o·u[k]/out + i·v[k]/in)): a product of rank 2n, since cos(x + y) is
cos x·cos y − sin x·sin y. Cosines and sines are the nearest float64, and so are their products with c. Each of the two
products thus errs by 3·2⁻⁵³ of it at most; |cos x·cos y| + |sin x·sin y| ≤ 1; and s/(out·in) is two roundings of
float64. So the change that is made, exactly, is within 2⁻⁵⁰·s/(out·in)·Σ|c[k]| of the formula. Blocks of floats are
made by Fourier transforms (numerics.sparse_spectrum), which are near both.

Source: Z. Gao et al., "Parameter-Efficient Fine-Tuning with Discrete Fourier Transform" (arXiv:2405.03003). Checked
against PEFT 0.21.2 in the tests, which transforms in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adaptertool.kinds.drawn import SEED, check_seed, drawn, with_usual_seed
from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, remembered, whole
from adaptertool.kinds.misreadings import with_settings
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.circle import circle
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.sparse_spectrum import Waves, can_transform, wave_rows, waves_of
from adaptertool.spec.tensors import ReadRows, Ref

SPECTRUM = "fourierft_spectrum"
_ROUNDED = 2.0**-50  # what cosines, and products with them, are rounded by, of Σ|c|, at most


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """c (n,), not more than a weight (out, in) has elements."""
    if len(weight) != 2 or len(factors[SPECTRUM]) != 1:
        return None
    return {SPECTRUM: (min(factors[SPECTRUM][0], weight[0] * weight[1]),)}


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:
    """LoRA with c·cos and −c·sin of rows in the place of B, cos and sin of columns in the place of A."""
    spectrum, (out, wide), seed = factors[SPECTRUM], weight, settings[SEED]
    count = spectrum.shape[0]

    def left(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        cosines, sines = circle(out)
        turns = np.arange(first, last)[:, None] * (drawn(out * wide, count, seed) // wide) % out
        numbers = whole(read, spectrum)
        return [np.concatenate([cosines[turns] * numbers, sines[turns] * -numbers], axis=1)]

    def right(read: ReadRows, first: int, last: int) -> Sequence[Array]:  # noqa: ARG001
        cosines, sines = circle(wide)
        turns = (drawn(out * wide, count, seed) % wide)[:, None] * np.arange(wide) % wide
        return [np.concatenate([cosines[turns], sines[turns]])]

    def waves(read: ReadRows, turned: bool) -> tuple[Waves, float]:
        places, numbers = np.divmod(drawn(out * wide, count, seed), wide), whole(read, spectrum)
        sides = (places[::-1], (wide, out)) if turned else (places, (out, wide))
        return waves_of(numbers, *sides), _ROUNDED * float(abs(numbers).sum())

    as_it_is, transposed = (remembered(functools.partial(waves, turned=turned)) for turned in (False, True))

    def transformed(read: ReadRows, first: int, last: int, turned: bool) -> tuple[Array, float]:
        own, rounded = (transposed if turned else as_it_is)(read)
        rows, error = wave_rows(own, first, last)
        return rows, error + rounded

    shape, sides = (out, 2 * count, wide), ((left, 1), (right, 1))
    shortcut = transformed if can_transform(out) and can_transform(wide) else None
    return [product((spectrum,), shape, *sides, scale / (out * wide), shortcut=shortcut)]


FOURIERFT = Kind(
    name="fourierft",
    roles=frozenset({SPECTRUM}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=(with_settings(becomes, "setting-ignored", f"{SEED} is not read", with_usual_seed),),
    spellings={
        "peft": Spelling(
            tag="FOURIERFT",
            keys={f".{SPECTRUM}": SPECTRUM},
            rank=None,
            alpha=None,
            scale=lambda fields: fields["scaling"],
            settings=frozenset({SEED}),
            check=check_seed,
            harmless=frozenset({"scaling", "n_frequency", "n_frequency_pattern", "init_weights"}),
        )
    },
)
