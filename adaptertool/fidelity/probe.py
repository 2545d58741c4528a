"""Inputs for layers: seeded Gaussian rows, or what was recorded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import numpy as np

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.tensors import read_tensor
from adaptertool.errors import MismatchError, NonFiniteError, UnsupportedError, by, shown
from adaptertool.files.header import Header
from adaptertool.files.reader import Inputs
from adaptertool.numerics.rounding import Array
from adaptertool.records import dataclass, field
from adaptertool.resolution.nearest import nearest
from adaptertool.spec.tensors import Ref

MAX_ROWS = 1024  # of recorded inputs, of each module


@dataclass(frozen=True, slots=True)
class Probe:
    """`rows` Gaussian inputs of unit variance for each tensor, or where `recorded` is not None those: its tensors by
    the name of the weight that they go into."""

    rows: int
    recorded: Mapping[str, Ref] | None = None
    notes: Sequence[str] = field(default=())

    def inputs(self, opened: Inputs, name: str, width: int) -> Array | None:
        """(n, width) in float64; None where nothing was recorded. Raises MismatchError, NonFiniteError."""
        if self.recorded is None:
            # By the name, so that neither threads nor other tensors play a part
            seed = int.from_bytes(
                hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8).digest(), "little"
            )
            return np.random.default_rng(seed).standard_normal((self.rows, width))
        if (ref := self.recorded.get(name)) is None:
            return None
        if not ref.spec.shape or ref.spec.shape[-1] != width:
            raise MismatchError(
                f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}, but {shown(name)} takes inputs of {width} elements"
            )
        rows = min(MAX_ROWS, ref.spec.numel // width)
        values = read_tensor(opened, ref, 0, rows * width).reshape(rows, width)
        if not np.isfinite(values).all():
            raise NonFiniteError(f"{ref.path}: {shown(ref.spec.name)} holds NaN or infinity")
        return values


def recorded(header: Header, modules: Mapping[str, Sequence[str]]) -> Probe:
    """The inputs in a file, by module name.

    modules: names of tensors that are multiplied with -> what their modules may be called.
    Raises MismatchError where no name fits, UnsupportedError for inputs that are no floats.
    """
    found = {}
    for name, titles in modules.items():
        for title in titles:
            if title in header.tensors:
                found[name] = header.tensors[title]
    for ref in found.values():
        if ref.spec.dtype not in COMPUTED:
            raise UnsupportedError(f"{header.path}: {shown(ref.spec.name)} is {ref.spec}; inputs are floats")
    if not found:
        wanted = next(iter(modules.values()), ("no module",))[0]
        near = nearest(next(iter(modules), ""), header.tensors)
        raise MismatchError(
            f"{header.path} holds no inputs of a module that the adapters change, such as {shown(wanted)}"
            + (f"; nearest there: {', '.join(map(shown, near))}" if near else "")
        )
    used = {ref.spec.name for ref in found.values()}
    notes = []
    if missing := len(modules) - len(found):
        notes.append(
            f"{missing} of {len(modules)} modules have no inputs in {header.path}; their outputs are not compared"
        )
    if extra := len(header.tensors.keys() - used):
        notes.append(f"{extra} tensors of {header.path} are inputs of no module that the adapters change; not used")
    longest = max(found.values(), key=lambda ref: ref.spec.numel // max(ref.spec.shape[-1:] or (1,)))
    if math.prod(longest.spec.shape[:-1]) > MAX_ROWS:
        notes.append(
            f"{shown(longest.spec.name)} holds {by(longest.spec.shape)}: of each the first {MAX_ROWS:,} rows are used"
        )
    return Probe(0, found, tuple(notes))
