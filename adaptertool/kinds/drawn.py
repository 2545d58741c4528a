"""What PEFT draws by a seed, and does not save: places in a weight, the first of torch.randperm; and numbers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptertool.errors import UnsupportedError
from adaptertool.numerics.error_bound import Array

SEED = "random_loc_seed"
_USUAL = 777
# From so many numbers on torch draws otherwise, and all of them: (2³² − 1)/20
_FEW = (2**32 - 1) // 20
_SIXTEEN = 16


@functools.lru_cache(maxsize=64)
def drawn(size: int, count: int, seed: int) -> Any:
    """The first `count` numbers of torch.randperm(size, generator=torch.Generator().manual_seed(seed)): integers.

    Source: torch 2.13, aten/src/ATen/native/TensorFactories.cpp: R. Fisher and F. Yates, with the Mersenne twister of
    32 bits. Step i exchanges number i for one that is not before it, and so the first numbers stay what they are.
    Raises UnsupportedError where torch is needed, and is not there.
    """
    if size >= _FEW:
        return _by_torch(size, count, seed)
    random = np.random.RandomState(seed)._bit_generator.random_raw(count)
    moved: dict[int, int] = {}
    found = np.empty(count, np.int64)
    for i, number in enumerate(random.tolist()):
        other = i + number % (size - i) if i < size - 1 else i
        found[i] = moved.get(other, other)
        moved[other] = moved.pop(i, i)
    found.flags.writeable = False
    return found


def _by_torch(size: int, count: int, seed: int) -> Any:
    try:
        import torch  # noqa: PLC0415  # no dependency of adaptertool
    except ImportError:
        raise UnsupportedError(
            f"the places of the factors in a weight of {size:,} elements are drawn by torch, which is not installed: "
            "pip install torch"
        ) from None
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[:count].numpy().copy()


@functools.lru_cache(maxsize=4096)
def normals(seed: int, count: int) -> Array:
    """torch.randn(count, generator=torch.Generator().manual_seed(seed)), but for the last bits, which differ between
    machines there too: (count,).

    Source: torch 2.13, aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill) and core/DistributionsHelper.h:
    G. Box and M. Muller, in sixteens of which the first eight are cosines; below sixteen in pairs, of doubles.
    """
    raw = np.random.RandomState(seed)._bit_generator.random_raw
    if count < _SIXTEEN:
        words = raw(4 * -(-count // 2)).astype(np.uint64).reshape(-1, 2, 2)
        uniform = ((words[..., 0] << 32 | words[..., 1]) % 2**53) / 2.0**53
        radius, angle = np.sqrt(-2 * np.log1p(-uniform[:, 1])), 2 * np.pi * uniform[:, 0]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()[:count]
    rest = count % _SIXTEEN
    drawn = raw(count + _SIXTEEN * (rest > 0))
    found = _sixteens(drawn[: count - rest])
    # The last sixteen are then drawn anew, after all the others
    return np.concatenate([found[: count - _SIXTEEN], _sixteens(drawn[count:])]) if rest else found


def _sixteens(raw: Array) -> Array:
    uniform = ((raw & 0xFFFFFF) / 2.0**24).reshape(-1, 2, _SIXTEEN // 2)
    radius, angle = np.sqrt(-2 * np.log(1 - uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()


def check_seed(fields: dict[str, Any] | Any) -> str | None:
    """Why the seed of the config tells no places, or None."""
    seed = fields.get(SEED)
    if type(seed) is int and 0 <= seed < 2**32:
        return None
    return f"{SEED} = {str(seed)[:40]!r} is no number from 0 to 2**32 - 1; the places of the factors are not saved"


def with_usual_seed(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings with the seed that PEFT has unless another is given; none where that is their own."""
    return {} if settings[SEED] == _USUAL else {**settings, SEED: _USUAL}
