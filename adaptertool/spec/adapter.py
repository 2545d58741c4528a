"""An adapter as the rest of the program sees it, whatever format it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from adaptertool.records import dataclass, field
from adaptertool.spec.tensors import Ref, Stamp, View


class Module(NamedTuple):
    """One change that an adapter makes: which tensor of the base, by which kind, from which factors."""

    name: str  # as the adapter names it, without the format's prefix
    target: str  # the base tensor that it changes
    kind: str
    factors: Mapping[str, Ref]  # by role
    scale: float
    rank: int = 0  # of a low-rank change
    rows: tuple[int, ...] | None = None  # it acts on these rows of the tensor only
    shared: bool = False  # and on those of the end that is tied to it
    view: View | None = None  # the part of the base tensor that it acts on, once that is found
    transposed: bool | None = None  # stored (in, out); None: to be decided by shapes and model family
    grouped: bool = False  # lora_B of fused experts: the columns of one expert follow those of another
    stacked: bool = False  # lora_A (E, r, in) and lora_B (E, out, r), of a stack of weights (E, out, in)
    layer: str = ""  # of a low-rank change: the path that its rank and scale belong to; several may have one
    settings: Mapping[str, Any] = MappingProxyType({})  # fields of the config that count, of kinds that have such
    padded: tuple[int, ...] | None = None  # the shape that the weight is padded to with zeros, before it is changed


@dataclass(frozen=True, slots=True)
class Adapter:
    path: Path
    files: Mapping[Path, Stamp]
    modules: tuple[Module, ...]
    task: str = ""  # task_type: what it was trained for
    trained_on: str = ""  # the name of its base, as far as it says so
    # Whether lora_A of square fused experts belongs to their first dimension, not the last; where the model marks them
    # as is_transposed, and where not. None: not known
    experts_on_first: bool | None = None
    marked_on_first: bool | None = None
    ties_ends: bool = False  # one change for the embedding and the head that is tied to it
    ignored: frozenset[str] = frozenset()  # tensors of its file that play no part
    notes: tuple[str, ...] = ()
    left: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what was left out: as said -> names of files
    claims_transposed: bool = False  # the config says so; where shapes or the model family tell, they count
    format: str = ""  # the name of it (formats.FORMATS)
    fields: Mapping[str, Any] = field(default_factory=dict)  # of its config, as the file has them
    tensors: Mapping[str, Ref] = field(default_factory=dict)  # of its file, by the keys that the format gives them
    metadata: Mapping[str, str] = field(default_factory=dict)  # of its file of tensors

    @property
    def named(self) -> dict[str, Path]:
        return {path.relative_to(self.path).as_posix() if path != self.path else path.name: path for path in self.files}
