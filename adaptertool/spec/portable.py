"""An adapter on its way from one format to another: what it changes, in no format, and what a format writes of that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.records import dataclass, field
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref, Stamp, TensorSpec

# (all tensors in the order of the file, its metadata, bytes to take at least) -> the first bytes of the file
BuildHeader = Callable[[Sequence[TensorSpec], Mapping[str, str], int], bytes]
# (a file without its header, where its tensors begin) -> metadata that stands for what has their keys so far, of just
# as many bytes: what is a hash of the tensors
Seal = Callable[[Path, int], Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Portable:
    """What an adapter changes, in no format: what every writer of a format is given.

    changes: each is a Module (spec.adapter), of which a writer may rely on these fields:
        name      the path of the layer, with dots, as the model has it in memory: what PEFT and diffusers want. In a
                  pipeline it begins with the part (unet., text_encoder.: architectures.parts). Without a base it may
                  be a flat name of kohya's tools, prefix included, which nobody can undo (architectures.flat.is_flat)
        target    the parameter of the layer that is changed: name + ".weight", ".bias", or the parameter's own name
        kind      and `factors`, by role: kinds.KINDS says of each what it means. Most have a pair (B, A):
                  LoRA (B·A), DoRA (and its magnitude, (out,)). kinds.FULL (Kind.replaces) holds the tensor itself,
                  kinds.DIFFERENCE and kinds.OFFSET what is added to it (lora_B.bias, times scale)
        scale     what B·A is multiplied by: alpha/r, alpha/√r, or whatever the format had for it, as float64
        rank      that of the pair
        rows      of FULL: the rows that it replaces (token embeddings); None: all
        transposed  True: the weight is that of an embedding, (vocabulary, d), and B·A is (d, vocabulary)
        grouped   of factors of several experts: as spec.adapter has it
    stored: by `target`, the tensor of the base that is just that, where a base was given and one is. Its name
        (stored[target].spec.name) is that on the disk: what ComfyUI, MLX and GGUF want
    config: of the base, where one was given and has one
    ends:   of the base, what is tied and not stored by itself -> the tensor that it is tied to
    gguf:   its fields, where it is a GGUF file; names, and the order of rows, are then those of GGUF
    parts: the parts of the pipeline that the base has, or without one those that are changed
    stamps: of the files of the base that tensors are made of
    left:  by the parts of the pipeline that were not wanted, how many changes are left out
    adapter: where the changes are from: its path, files, notes, fields of its config, metadata
    """

    adapter: Adapter
    changes: tuple[Module, ...]
    stored: Mapping[str, Ref] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    gguf: Mapping[str, Any] | None = None
    ends: Mapping[str, str] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()
    stamps: Mapping[Path, Stamp] = field(default_factory=dict)
    left: Mapping[str, int] = field(default_factory=dict)


class Drafted(NamedTuple):
    """A tensor of a file that is to be written.

    spec:   its name, dtype and shape there
    source: its elements, in the order of the file: a tensor of a file, or one that is made (spec.tensors.Making:
            turned, permuted, padded, joined, a constant), of as many elements
    times:  what each is multiplied by. Where this is 1 and the source is stored in the dtype of `spec`, bits are
            copied; else each element is the correctly rounded product, and those that are not exact are counted
    """

    spec: TensorSpec
    source: Ref
    times: float = 1.0

    @property
    def copied(self) -> bool:
        """Whether it has the bits of its source."""
        return self.source.made is None and self.times == 1 and self.source.spec.dtype == self.spec.dtype


class Container(NamedTuple):
    """A kind of file of tensors. Each tensor begins at a multiple of `align` bytes after the header, with zeros before
    it and after the last; that the header itself is so long is left to `header`."""

    header: BuildHeader
    align: int = 1
    seal: Seal | None = None  # what makes the metadata that only the tensors tell

    def bytes_of(self, specs: Iterable[TensorSpec]) -> int:
        """How many bytes these tensors take, with the zeros between them."""
        return sum(-(-spec.nbytes // self.align) * self.align for spec in specs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """The files of an adapter that is to be written, in one format.

    tensors:   of the file of tensors, in its order
    metadata:  of that file
    files:     small ones beside it, by name: its config
    notes:     what the user should know: what is said differently, and what was left to be said by nobody
    container: None: that of safetensors
    """

    tensors: Sequence[Drafted]
    metadata: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    notes: Sequence[str] = ()
    container: Container | None = None
