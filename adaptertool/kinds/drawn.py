"""Places in a weight that PEFT draws by a seed, and does not save: the first of torch.randperm."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from adaptertool.errors import UnsupportedError

SEED = "random_loc_seed"
# From so many numbers on torch draws otherwise, and all of them: (2³² − 1)/20
_FEW = (2**32 - 1) // 20


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


def check_seed(fields: dict[str, Any] | Any) -> str | None:
    """Why the seed of the config tells no places, or None."""
    seed = fields.get(SEED)
    if type(seed) is int and 0 <= seed < 2**32:
        return None
    return f"{SEED} = {str(seed)[:40]!r} is no number from 0 to 2**32 - 1; the places of the factors are not saved"
