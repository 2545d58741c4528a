"""Tensors on disk as frozen data: their dtype, shape, and place in a file. Dtypes are the strings of safetensors.

What there is for each tensor is a named tuple: a plan makes a million of them, and a frozen dataclass takes three times
as long to make.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from adaptertool.errors import by

# Bits per element, every dtype that the safetensors format (0.8) defines.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


# Device, inode, size, mtime and ctime of a file: what tells that it is still the one that was planned with.
# The ctime is there because a copy in place can put the mtime back; without it, only the rest is asked for.
Stamp = tuple[int, ...]


def is_still(stamp: Stamp, known: Stamp) -> bool:
    """Whether a file that has this stamp now is the one that was known by that, as far as that one goes."""
    return stamp[: len(known)] == known


# Of factors whose columns lie in turn (experts) those of several are read at once: at most so many bytes for each
# tensor, of so many tensors. A layer's gate, up and down are asked for in turn.
WINDOW, KEPT = 32 << 20, 8


class TensorSpec(NamedTuple):
    """Name, dtype, shape and size of a tensor, as a safetensors header gives them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def __str__(self) -> str:
        return f"{self.dtype} {by(self.shape)}"


# (a stored tensor, first row, last row) -> these rows of it, float64 (last − first, all of its other dimensions as one)
ReadRows = Callable[["Ref", int, int], Any]


class ReadStored(Protocol):
    """Rows first..last of a stored tensor, seen as rows of `width` elements, and of these the columns begin..end: as
    it is stored (last − first, end − begin)."""

    def __call__(self, ref: Ref, width: int, first: int, last: int, begin: int = 0, end: int | None = None) -> Any: ...


class Shortcut(NamedTuple):
    """A product B·A in less time than its factors take.

    rows: (how to read, first row, last row, of the transpose) -> (these rows, float64, and by how much an element may
    be off)
    right: what makes the rows of A: with those of another it is another product
    shape: of both: the rows of B, what is summed over, the columns of A
    """

    rows: Callable[[ReadRows, int, int, bool], tuple[Any, float]]
    right: Callable[..., Any]
    shape: tuple[int, ...]


class Near(NamedTuple):
    """Two factors whose product is near B·A, and that are fewer numbers: B' (rows, rank) and A' (rank, columns).

    left: (how to read, first row, last row) -> these rows of B', float64
    right: (how to read) -> all of A', float64, and by how much an element of the product may be off, at most, in rows
    of B' whose largest number is 1; with others, in proportion
    of, shape: as `right` and `shape` of a Shortcut
    """

    left: Callable[[ReadRows, int, int], Any]
    right: Callable[[ReadRows], tuple[Any, float]]
    of: Callable[..., Any]
    shape: tuple[int, ...]


class Making(NamedTuple):
    """How the rows of a tensor that lies in no file are made of tensors that do. Its elements are F64.

    rows: (how to read, first row, last row) -> float64 (last − first, all of its other dimensions as one)
    first: the row of what `rows` makes that is the tensor's first
    columns: the same as `rows` for the transpose of a matrix, where that takes less than all of it
    width: the elements of a row, where these are not all dimensions but the first; 0 where they are
    decodes: `rows` is not handed ReadRows, but ReadStored: sources are codes, and what belongs to them
    casts: `rows` takes a dtype as well, whose numbers it then returns, rounded once, and an array that may hold these
    over: of quotients, which `rows` rounds to float64: the same for what is divided, exactly; and what reads by what
    weight: of codes: what they are (codecs.quantised.record.Weight)
    plain: a number is one of each of some sources, or their product, times what is no larger than 1: finite where they
    are and none is F64; and where a source is all zero, so is the change that it is a factor of
    shortcut: of B: to its product with A
    near: of B: fewer factors that serve in its place and A's, where what is left open is decided by these
    costly: whole tensors are decomposed for it, and it is finite where they are: so these are checked in its place
    finite: it is where its sources are and none is F64: so these are checked in its place, in less time
    few: (how to read) -> the places of the elements that may be other than 0, in the tensor as one row, ascending (n,);
    and these, float64 (n,)
    """

    sources: tuple[Ref, ...]
    rows: Callable[..., Any]
    first: int = 0
    columns: Callable[[ReadRows, int, int], Any] | None = None
    width: int = 0
    decodes: bool = False
    casts: bool = False
    over: tuple[Callable[[Any, int, int], Any], Callable[[Any], float]] | None = None
    weight: Any = None
    plain: bool = False
    shortcut: Shortcut | None = None
    near: Near | None = None
    costly: bool = False
    finite: bool = False
    few: Callable[[ReadRows], tuple[Any, Any]] | None = None


class Ref(NamedTuple):
    """A tensor in a file: `nbytes` bytes from `offset` (counted from the start of the file), or columns of it. Or one
    that is made of those in files, and has the place of the first of them."""

    path: Path
    offset: int
    spec: TensorSpec
    columns: range | None = None  # of a matrix; None: all
    made: Making | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.spec.shape if self.columns is None else (self.spec.shape[0], len(self.columns))

    @property
    def turns(self) -> int:
        """How many such sets of columns the matrix has, that are read together: they take turns, or lie side by side.
        1 where these are read by themselves."""
        if self.columns is None or self.columns.step > 1:
            return 1 if self.columns is None else self.columns.step
        width, size = self.spec.shape[1], max(len(self.columns), 1)
        apart = width % size == 0 and self.columns.start % size == 0 and width // size > 2  # not halves of a factor
        return width // size if apart else 1

    def rows(self, first: int, last: int) -> Ref:
        """Rows first..last (of the first dimension) as a tensor of their own."""
        size = self.spec.nbytes // max(self.spec.shape[0], 1)
        shape = (last - first, *self.spec.shape[1:])
        spec = TensorSpec(self.spec.name, self.spec.dtype, shape, (last - first) * size)
        if self.made is not None:
            each = self.spec.numel // max(self.spec.shape[0], 1)
            begin = self.made.first + first * (each // max(self.made.width or each, 1))
            made = self.made._replace(first=begin, few=None)
            return Ref(self.path, self.offset, spec, self.columns, made)
        return Ref(self.path, self.offset + first * size, spec, self.columns)

    def renamed(self, name: str) -> Ref:
        """This tensor, under the name that another checkpoint has for it."""
        return Ref(self.path, self.offset, self.spec._replace(name=name), self.columns, self.made)

    def of_shape(self, *shape: int) -> Ref:
        """A tensor of this name and dtype in another shape, of which nothing is stored."""
        size = math.prod(shape) * DTYPE_BITS[self.spec.dtype] // 8
        return Ref(self.path, 0, TensorSpec(self.spec.name, self.spec.dtype, shape, size))

    @property
    def stored(self) -> tuple[Ref, ...]:
        """What is read for it of files."""
        return (self,) if self.made is None else self.made.sources


def files_of(refs: Sequence[Ref]) -> tuple[list[Path], list[int]]:
    """The files that tensors lie in, each once; and of each tensor the number of its file. By the identity of paths,
    which take long to hash: one may be several objects."""
    numbers: dict[Path, int] = {}
    paths = [ref.path for ref in refs]
    objects = dict(zip(map(id, paths), paths, strict=True))
    known = {key: numbers.setdefault(path, len(numbers)) for key, path in objects.items()}
    return list(numbers), [0] * len(refs) if len(numbers) == 1 else list(map(known.__getitem__, map(id, paths)))


@dataclass(frozen=True, slots=True)
class View:
    """A part of a stored tensor: some rows and columns of it as a matrix whose rows have `width` elements.

    A 2D tensor (rows, width), experts (E, d1, d2) as (E·d1, d2), a convolution (out, in, k) as (out, in·k).
    """

    width: int
    rows: range | tuple[int, ...]  # a tuple: in the order of the factors' rows
    columns: range
    shape: tuple[int, ...]  # of the part, as it is stored
    swapped: bool = False  # a half of the tensor, where the adapter has the other half
