"""The plan as frozen data: edits to tensors, the steps that make output tensors, and all that a run follows.

Nothing here reads a file or touches a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.spec.adapter import Module
from adaptertool.spec.choices import EXACT
from adaptertool.spec.tensors import Ref, Stamp, TensorSpec, View


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
    part_of: Module | None = None  # the change that comes down to this one, alone or with others


class Blend(NamedTuple):
    """A way of combining the changes of several sources (methods), with its settings."""

    method: str
    weights: tuple[float, ...]  # of the sources
    settings: Mapping[str, float | int | tuple[float | int, ...]]  # by name; several: one for each source
    sources: tuple[int, ...] | None = None  # whose edits are whose, by `Edit.adapter`; None: 0, 1, 2, ...


class KeptWeight(NamedTuple):
    """A weight of a checkpoint that stays codes."""

    name: str  # in a dense checkpoint
    format: str  # as a person calls it
    ref: Ref  # made of codes and scales
    lattice: Any  # codecs.quantised.lattice.Lattice: what it may be; None: codes of it are not made anew


class Keeping(NamedTuple):
    """How a step makes what is stored of a weight that stays codes."""

    lattice: Any  # codecs.quantised.lattice.Lattice: what the weight may be
    part: Ref  # what this step makes anew, as it is in the base: the codes, or their scales


class Step(NamedTuple):
    """One output tensor: what it is made from, and the edits made to that, in order. No edits: copied as bytes."""

    spec: TensorSpec
    offset: int  # in the output file
    base: Ref
    edits: tuple[Edit, ...] = ()
    blend: Blend | None = None  # not one edit after the other, but the changes that the sources' make, combined so
    fisher: tuple[Ref, Ref] | None = None  # F₀ and F₁: between base and tuned tensor, weighted by these
    makes: str | None = None  # not the edited base tensor, but this factor of its one edit, made anew for each alpha
    keeps: Keeping | None = None  # not the weight `base` itself, but codes of it, or scales
    share: Fraction | None = None  # of α, in this tensor; None: all of it

    @property
    def stored(self) -> Ref:
        """What the base has in the place of the output tensor."""
        return self.base if self.keeps is None else self.keeps.part

    def at(self, alpha: float) -> float:
        """The α of this tensor: as many times that of the output, taken as the decimal that it prints as, and rounded
        once."""
        return alpha if self.share is None else float(Fraction(repr(alpha)) * self.share)


# The fields after its edits of a step that has nothing but these
EDITS_ALONE = (*Step._field_defaults.values(),)[1:]


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file. As a rule it has the header bytes of the base shard, so every tensor keeps its offset."""

    source: Path
    data_start: int
    size: int
    steps: tuple[Step, ...]
    header: bytes | None = None  # of its own, where tensors were added or have other shapes
    path: str = ""  # inside the checkpoint, with /; empty: the name of the source
    divided: bool = False  # others have tensors of that source too, or its own are of several

    @property
    def name(self) -> str:
        return self.path or self.source.name


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
    method: str | None = None  # by which changes are combined in float64, rounded once and not settled; None: by none
    as_adapter: bool = False  # outputs are adapters, and shards the file of their factors

    @property
    def weight_rules(self) -> tuple[str, ...]:
        """The rules of its weights, as typed."""
        rules = self.choices.get("weight_rules", ())
        return tuple(rules) if isinstance(rules, list) else ()

    def steps(self) -> Iterator[Step]:
        """The steps of all output tensors, shard after shard."""
        for shard in self.shards:
            yield from shard.steps
