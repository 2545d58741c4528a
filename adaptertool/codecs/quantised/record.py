"""The record of a quantised format: which tensors are one weight, and how its numbers are made of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.codecs.quantised.lattice import Lattice
from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.files.jsonfile import objects
from adaptertool.files.reader import open_input, read_exact
from adaptertool.numerics.decoding import Coded, decoded
from adaptertool.numerics.rounding import Array
from adaptertool.patterns import regex
from adaptertool.records import dataclass
from adaptertool.spec.tensors import Making, ReadStored, Ref, Stamp, TensorSpec, is_still

# (how to read, first row, last row) -> these rows of the weight, float64, in rows of `Weight.width` elements
Rows = Callable[..., Array]
# (how to read, first row, last row) -> the same, as codes with what they mean
FindCodes = Callable[[ReadStored, int, int], Coded]

_SIZE = regex(r"([1-9]\d{0,5})x([1-9]\d{0,5})")  # of a block


class Decoded:
    """Rows of a weight that are made of codes in one way, in float64 or as another dtype stores them."""

    def __init__(self, coded: FindCodes, divisor: Callable[[ReadStored], float] | None = None) -> None:
        self._coded, self.__qualname__ = coded, coded.__qualname__
        self.over = None if divisor is None else (self._divided, divisor)

    def _divided(self, read: ReadStored, first: int, last: int) -> Array:
        """The rows, before they are divided."""
        return decoded(self._coded(read, first, last)._replace(divisor=1.0))

    def __call__(self, read: ReadStored, first: int, last: int, dtype: str = "F64", out: Array | None = None) -> Array:
        return decoded(self._coded(read, first, last), dtype, out)


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight, as a dense checkpoint has it."""

    name: str
    shape: tuple[int, ...]
    format: str  # as a person calls it
    parts: tuple[Ref, ...]  # what is read for it: the codes, which its place is that of, and what belongs to them
    rows: Rows
    width: int  # elements of a row as `rows` has it
    also: tuple[str, ...] = ()  # names of tensors that go with it, and are not read
    lattice: Lattice | None = None  # what it may be where it stays so; None: it cannot be written again
    casts: bool = False  # whether `rows` takes a dtype

    @property
    def ref(self) -> Ref:
        """The weight as a tensor that is made of those in files."""
        codes = self.parts[0]
        spec = TensorSpec(self.name, "F64", self.shape, 8 * math.prod(self.shape))
        casts, over = self.casts, None
        if isinstance(self.rows, Decoded):
            casts, over = True, self.rows.over
        made = Making(self.parts, self.rows, width=self.width, decodes=True, casts=casts, over=over, weight=self)
        return Ref(codes.path, codes.offset, spec, made=made)


class Settings(NamedTuple):
    """What a checkpoint says of its codes."""

    method: str | None  # quant_method of config.json, or of hf_quant_config.json, in lower case
    fields: Mapping[str, Any]  # of quantization_config
    where: str  # the file that says so
    plain: bool = False  # whether floats of 8 bits without a scale are the numbers themselves

    def groups(self) -> Iterator[Mapping[str, Any]]:
        """What compressed-tensors says of weights, once for each group of layers."""
        found = self.fields.get("config_groups")
        for group in found.values() if isinstance(found, dict) else ():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict):
                yield weights

    def whole(self, *names: str) -> set[int]:
        """The whole numbers above 0 that fields of any of these names have, anywhere in it."""
        values = [part[name] for part in objects(self.fields) for name in names if name in part]
        return {value for value in values if type(value) is int and value > 0}


class Stored:
    """The tensors of a checkpoint, by name, and what it says of codes."""

    def __init__(self, tensors: Mapping[str, Ref], stamps: Mapping[Path, Stamp], settings: Settings) -> None:
        self.tensors, self.settings, self._stamps = tensors, settings, stamps

    @functools.cached_property
    def group_sizes(self) -> frozenset[int]:
        """How many numbers of a row may have a scale in common, as the config says."""
        return frozenset(self.settings.whole("group_size"))

    @functools.cached_property
    def blocks(self) -> frozenset[tuple[int, int]]:
        """The rows and columns that may have a scale in common, as the config says."""
        sizes = [self.settings.fields.get("weight_block_size")]
        sizes += [group.get("block_structure") for group in self.settings.groups()]
        texts = ["x".join(map(str, size)) if isinstance(size, list) else str(size) for size in sizes]
        found = {(int(one[1]), int(one[2])) for one in map(_SIZE.fullmatch, texts) if one}
        return frozenset(found | {(1, size) for size in self.group_sizes})

    def get(self, name: str, dtypes: Sequence[str] = ()) -> Ref | None:
        """The tensor of that name, if it is there. Raises UnsupportedError where it has another dtype."""
        ref = self.tensors.get(name)
        if ref is not None and dtypes and ref.spec.dtype not in dtypes:
            raise UnsupportedError(
                f"{ref.path}: {shown(name)} is stored as {ref.spec.dtype}; known for such a tensor: {', '.join(dtypes)}"
            )
        return ref

    def need(self, codes: Ref, name: str, dtypes: Sequence[str] = ()) -> Ref:
        """The tensor of that name. Raises MismatchError where it is not there."""
        ref = self.get(name, dtypes)
        if ref is None:
            raise MismatchError(f"{codes.path}: {shown(codes.spec.name)} holds codes, but {shown(name)} is not there")
        return ref

    def content(self, ref: Ref) -> bytes:
        """All bytes of a small tensor: what says how others are to be read. Raises InputError where the file is no
        longer the one whose header was read."""
        with open_input(ref.path) as file:
            if not is_still(file.stamp, self._stamps[ref.path]):
                raise InputError(f"{ref.path} changed since it was first read; run again")
            return read_exact(file, ref.offset, ref.spec.nbytes)


class Format(NamedTuple):
    """A way of storing weights as codes."""

    name: str  # as a person calls it
    methods: frozenset[str]  # quant_method, where it is found
    ends: tuple[str, ...]  # of names of tensors that may be codes of it
    dtypes: frozenset[str]  # and theirs
    # (checkpoint, the tensor that may be codes, its name without the end) -> None: not of this format
    find: Callable[[Stored, Ref, str], Weight | None]
