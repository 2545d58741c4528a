"""How an adapter of any format is written in another one: what a writer is, and what writers share.

To write a format: a pure function `draft(portable, options) -> Draft` (spec.portable), which says what every tensor of
the file is made of, and reads none; and a record `Saving` of it, in the format's `Format`. The draft is carried out by
others: they read, multiply, round, count what was rounded, and publish.

A writer refuses by name what its format cannot hold (UnsupportedError by `refuse`), and leaves out nothing in silence.
For a plain LoRA it is about this long:

    def draft(portable: Portable, options: WritingOptions) -> Draft:
        tensors = []
        for change in portable.changes:
            if change.kind not in (LORA.name,):
                refuse(portable, [change], "...", "what it cannot hold, and what to do")
            a, b = change.factors[A], change.factors[B]
            tensors += [drafted(f"{change.name}.a", a), drafted(f"{change.name}.b", b, times=change.scale)]
        return Draft(tensors=in_order(tensors), metadata=..., files={"config.json": ...})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from adaptertool.codecs import COMPUTED
from adaptertool.errors import UnsupportedError, shown
from adaptertool.records import dataclass
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Draft, Drafted, Portable
from adaptertool.spec.tensors import DTYPE_BITS, Making, Ref, TensorSpec

OURS, ORIGINAL, OWN = "ours", "original", "own"
_SEVERAL = 3  # modules that an error names


@dataclass(frozen=True, slots=True, kw_only=True)
class WritingOptions:
    """What the user says of how to write.

    prefix: what names begin with, instead of what the format has for it; None: that
    as_file: OUT is one file
    """

    prefix: str | None = None
    as_file: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """How adapters of other formats are written in this one.

    draft:   (the changes, options) -> the files. Raises UnsupportedError for what the format cannot hold
    weights: what the file of tensors is called, where OUT is a directory; "" where OUT is that file
    names:   in which spelling it has the layers of image and video models, where the base tells: that of diffusers, of
             the original repository, or the adapter's own. Text encoders are as transformers has them in all
    ties:    whether a head that is tied to its embedding has the changes of that; None: as the adapter says
    end:     what OUT ends in, where it is one file; None where it is always a directory. A format that has both is
             written as a file where OUT ends so
    """

    draft: Callable[[Portable, WritingOptions], Draft]
    weights: str
    end: str | None = None
    names: str = OURS
    ties: bool | None = False

    def as_file(self, out: Path) -> bool:
        """Whether OUT is to be one file."""
        return self.end is not None and (not self.weights or out.suffix == self.end)


def drafted(
    name: str, source: Ref, *, dtype: str | None = None, shape: Sequence[int] | None = None, times: float = 1.0
) -> Drafted:
    """A tensor of that name with the elements of `source`.

    dtype: None: that of the source, or of the stored one that it is made of: of several the widest, and F32 where they
        are F16 and BF16
    shape: another shape for the same elements, in the same order
    """
    own = tuple(source.shape if shape is None else shape)
    return Drafted(spec_of(name, dtype or dtype_of(source), own), source, times)


def dtype_of(source: Ref) -> str:
    """The dtype of a factor, where none is asked for: of the numbers that it is made of, and not of places."""
    dtypes = {ref.spec.dtype if ref.made is None else dtype_of(ref) for ref in source.stored} or {"F32"}
    dtypes = dtypes & {*COMPUTED} or dtypes
    return "F32" if dtypes == {"F16", "BF16"} else max(dtypes, key=lambda dtype: DTYPE_BITS[dtype])


def spec_of(name: str, dtype: str, shape: tuple[int, ...]) -> TensorSpec:
    return TensorSpec(name, dtype, shape, math.prod(shape) * DTYPE_BITS[dtype] // 8)


def number(name: str, value: float, path: Path, dtype: str = "F32", shape: tuple[int, ...] = ()) -> Drafted:
    """A tensor with that number alone, such as an alpha. path: a file that is read (spec.tensors.Ref has one)."""
    made = Making((), lambda _read, first, last: np.full((last - first, 1), value))
    return Drafted(spec_of(name, dtype, shape), Ref(path, 0, spec_of(name, "F64", (1,)), made=made))


# As safetensors' own writer has them; wide ones come first, so that all are aligned
_BY_WIDTH = ("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16", "I8", "U8", "BOOL")


def in_order(tensors: Iterable[Drafted]) -> list[Drafted]:
    """The tensors in the order in which the library of safetensors writes them: by dtype, then by name."""
    return sorted(tensors, key=lambda one: (_BY_WIDTH.index(one.spec.dtype), one.spec.name))


def refuse(portable: Portable, changes: Sequence[Module], what: str) -> NoReturn:
    """Raises UnsupportedError: the first of these changes, and what the format cannot hold; what to do instead."""
    names = ", ".join(shown(change.name) for change in changes[:_SEVERAL])
    more = f" and {len(changes) - _SEVERAL} more" if len(changes) > _SEVERAL else ""
    raise UnsupportedError(f"{portable.adapter.path}: {names}{more}: {what}")
