"""BLAKE3 as a tree: values of groups of bytes, in any order and by any thread, and the hash of a file from them all.

A group is GROUP bytes that begin at a multiple of GROUP; the last of a file may have fewer. It is a whole subtree of
the hash (J. O'Connor and others, "BLAKE3: one function, fast everywhere", 2021, section 2.1), so 32 bytes of it are
enough. In the kernel alone: there is no twin in numpy, and who calls has the library `blake3`, which wants the bytes in
their order.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from adaptertool.numerics.compiled import FUNCTIONS, address

GROUP = 1 << 16  # bytes; the kernel has it as chunks
WORDS = 8  # of a value, 32 bits each

Values = npt.NDArray[np.uint32]  # (groups, WORDS)


def available() -> bool:
    """Whether the kernel is there, and words lie in memory as it takes them."""
    return "blake3_groups" in FUNCTIONS and sys.byteorder == "little"


def values_of(data: memoryview, first: int) -> Values:
    """The values of the groups that lie in `data` one after the other, the first of which is number `first` of the
    file."""
    content = np.frombuffer(data, np.uint8)
    values = np.empty((-(-len(content) // GROUP), WORDS), np.uint32)
    call: Any = FUNCTIONS["blake3_groups"]
    call(address(content, np.uint8, len(content)), len(content), first, address(values, np.uint32, values.size))
    return values


def hash_of(values: Values) -> str:
    """The hash, hexadecimal, of a file from the values of all its groups; they are lost. A file of one group has no
    value that it could be made from. Raises ValueError for one."""
    if len(values) < 2:
        raise ValueError("a file of one group is hashed as a whole")
    FUNCTIONS["blake3_root"](address(values, np.uint32, values.size), len(values))
    found: str = values[0].tobytes().hex()
    return found
