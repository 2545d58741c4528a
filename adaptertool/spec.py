"""The vocabulary as frozen data: tensors on disk, edits to them, and the plan that a run follows.

Nothing here reads a file or touches a tensor. Dtypes are the strings of the safetensors format. What there is for each
tensor are named tuples: a plan makes a million of them, and a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from adaptertool.errors import by

# Bits per element, every dtype that the safetensors format (0.8) defines.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

# Device, inode, size, mtime and ctime of a file: what tells that it is still the one that was planned with.
# The ctime is there because a copy in place can put the mtime back.
Stamp = tuple[int, int, int, int, int]

# How results are computed: correctly rounded from the real formula, or in single precision and rounded once.
EXACT, FAST = PRECISIONS = ("exact", "fast")

# Of factors whose columns lie in turn (experts) those of several are read at once: at most so many bytes for each
# tensor, of so many tensors. A layer's gate, up and down are asked for in turn.
WINDOW, KEPT = 32 << 20, 8

# The dtypes that arithmetic is done on; all others are only ever copied as bytes.
COMPUTED = ("BF16", "F16", "F32", "F64")


class Cut(NamedTuple):
    """How much of the spectrum of a change is to stay: one of the three."""

    rank: int | None = None
    energy: Decimal | None = None  # the smallest rank that keeps this share of Σσ²
    max_error: Decimal | None = None  # the smallest rank whose error, relative in Frobenius norm, is at most this

    def as_typed(self) -> dict[str, str | int]:
        """The one that is given, as JSON."""
        given = {name: value for name, value in self._asdict().items() if value is not None}
        return {name: value if isinstance(value, int) else str(value) for name, value in given.items()}


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


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor in a file: `nbytes` bytes from `offset` (counted from the start of the file), or columns of it."""

    path: Path
    offset: int
    spec: TensorSpec
    columns: range | None = None  # of a matrix; None: all

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
        return Ref(self.path, self.offset + first * size, spec, self.columns)

    def renamed(self, name: str) -> Ref:
        """The same tensor, under the name that another checkpoint has for it."""
        return Ref(self.path, self.offset, self.spec._replace(name=name), self.columns)


@dataclass(frozen=True, slots=True)
class View:
    """A part of a stored tensor: some rows and columns of it as a matrix whose rows have `width` elements.

    A 2D tensor (rows, width), experts (E, d1, d2) as (E·d1, d2), a convolution (out, in, k) as (out, in·k).
    """

    width: int
    rows: range | tuple[int, ...]  # a tuple: in the order of the factors' rows
    columns: range
    shape: tuple[int, ...]  # of the part, as it is stored


class Edit(NamedTuple):
    """One change to one base tensor: `weight` times the delta that `kind` makes of `factors` and `scale`."""

    kind: str
    adapter: int  # position on the command line, from 0
    module: str
    factors: Mapping[str, Ref]
    scale: float
    weight: float
    transposed: bool = False  # the tensor is stored (in, out)
    view: View | None = None  # the part of the tensor that it acts on; None: all of it
    on_base: bool = False  # norms are those of the base weight, as where several adapters act together (mixed)


class Blend(NamedTuple):
    """A way of combining the changes of several sources (methods), with its settings."""

    method: str
    weights: tuple[float, ...]  # of the sources
    density: float
    seed: int


class Mix(NamedTuple):
    """A way of combining adapters into one (mixing)."""

    method: str  # of methods.METHODS
    on_factors: bool  # and not on the changes that they make
    density: float
    seed: int


class Step(NamedTuple):
    """One output tensor: what it is made from, and the edits made to that, in order. No edits: copied as bytes."""

    spec: TensorSpec
    offset: int  # in the output file
    base: Ref
    edits: tuple[Edit, ...] = ()
    blend: Blend | None = None  # not one edit after the other, but the changes that the sources' make, combined so
    fisher: tuple[Ref, Ref] | None = None  # F₀ and F₁: between base and tuned tensor, weighted by these
    makes: str | None = None  # not the edited base tensor, but this factor of its one edit, made anew for each alpha


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file. As a rule it has the header bytes of the base shard, so every tensor keeps its offset."""

    source: Path
    data_start: int
    size: int
    steps: tuple[Step, ...]
    header: bytes | None = None  # of its own, where tensors were added or have other shapes

    @property
    def name(self) -> str:
        return self.source.name


@dataclass(frozen=True, slots=True)
class Asset:
    """A file that is carried over byte for byte: config, tokenizer, index, ..."""

    source: Path
    stamp: Stamp
    name: str  # path inside the checkpoint, with /
    size: int
    content: bytes | None = None  # instead of the file's own, where it had to follow a change


@dataclass(frozen=True, slots=True)
class Output:
    """One checkpoint to write: W + alpha·(W' − W), where W' is the base with all edits made; or an adapter for it."""

    folder: str  # inside OUT; "" is OUT itself
    alpha: float
    files: tuple[tuple[str, bytes], ...] = ()  # small ones of its own, by name


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a run will do, made from headers and configs alone."""

    command: str
    base: Path
    sources: tuple[Path, ...]  # the adapters, or the tuned checkpoint
    files: tuple[Mapping[str, Path], ...]  # of the base and of each source: name -> path, all of them in `inputs`
    weights: tuple[float, ...]
    shards: tuple[Shard, ...]
    assets: tuple[Asset, ...]
    outputs: tuple[Output, ...]
    inputs: Mapping[Path, Stamp]  # every file that is read, and what identified it when it was planned with
    equal: tuple[tuple[Ref, Ref], ...]  # pairs of tensors that must hold the same bytes, checked before the run
    tuned_is_checkpoint: bool  # wise between two checkpoints
    single_file: bool  # the base is one .safetensors file, not a directory
    notes: tuple[str, ...]  # what the user should know before the run
    precision: str = EXACT
    choices: Mapping[str, object] = field(default_factory=dict)  # of the user, beside the above: for the manifest
    as_adapter: bool = False  # outputs are adapters, and shards the file of their factors
