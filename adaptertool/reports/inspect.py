"""What `inspect` has to say, as frozen data. `render/` makes text, JSON or a page of it. Sizes in bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from adaptertool.records import dataclass
from adaptertool.reports.notebook import InNotebook


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The spectrum of the change B·A of a module; of several experts together, the ranks are those of the one that
    needs most."""

    norm: float | None  # ‖scale·B·A‖ in Frobenius norm; None where the scale is not known, or it is beyond float64
    entropy_rank: float
    stable_rank: float
    rank_energy: int  # the smallest that keeps 99% of Σσ², as `truncate --energy 0.99`
    rank_error: int  # the smallest that is at most 1% off in Frobenius norm, before it is stored
    values: tuple[float, ...]  # singular values over the largest, in descending order; of the expert that changes most


@dataclass(frozen=True, slots=True)
class InspectedModule:
    name: str
    family: str
    kind: str  # lora, dora, full (takes the place of the base's), offset (a bias), or a peft_type that is not handled
    shape: tuple[int, int] | None  # out, in of the weight that a low-rank change is for; of each expert
    experts: int
    rank: int | None
    scale: float | None
    dtypes: tuple[str, ...]
    parameters: int
    spectrum: Spectrum | None
    base_norm: float | None  # ‖W‖ of what it changes
    problem: str | None  # why there is no spectrum


@dataclass(frozen=True, slots=True)
class Coverage:
    """What the adapter has for a family of modules, and what of the base lies in what it changes."""

    family: str
    modules: int
    trainable: int
    adapted: int | None  # parameters of the base; None where it does not fit, or is of a kind that is not handled
    base: int | None  # all that the base has of this family


@dataclass(frozen=True, slots=True)
class Capacity:
    trainable: int
    bits: int
    needed: float | None  # bits of the data
    load: float | None  # needed / bits
    verdict: str | None  # enough or short
    compute: float | None  # of a pass, relative to full fine-tuning of the adapted modules


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    peft_type: str
    peft_version: str | None
    format: str  # of its files, as formats are called here
    written_by: str | None  # the tool, and its version
    trained_on: str | None  # base_model_name_or_path
    initialiser: str
    rank_stabilised: bool
    scaled_by: str  # what the scales of its modules are made of
    kinds: Mapping[str, int]  # -> modules
    dtypes: Mapping[str, int]  # -> tensors
    tensors: int
    bytes: int
    modules: tuple[InspectedModule, ...]
    coverage: tuple[Coverage, ...]
    capacity: Capacity


@dataclass(frozen=True, slots=True)
class Portion:
    """A part of a checkpoint: a shard, all of a dtype, or all of a family."""

    name: str
    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    tensors: int
    parameters: int  # elements stored, scales and codes of a quantised model too
    bytes: int
    shards: tuple[Portion, ...]
    dtypes: tuple[Portion, ...]
    families: tuple[Portion, ...]
    config: Mapping[str, Any]  # the fields that tell the architecture
    tied: str
    quantised: str | None
    stray: tuple[str, ...]  # files that a merge leaves behind
    assets: int
    manifest: Mapping[str, Any] | None  # how adaptertool made it


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport(InNotebook):
    schema: ClassVar[str] = "inspect/1"
    path: str
    what: str  # adapter or checkpoint
    base: str | None
    fits: bool | None  # whether it can be merged into `base`, or interpolated with it; None where none was given
    refusal: str | None  # what merge (or wise) would say, where it refuses
    adapter: AdapterFacts | None
    checkpoint: CheckpointFacts | None
    findings: tuple[str, ...]  # what is remarkable about it
    rules: tuple[str, ...]  # rules of thumb that apply, with their sources
    notes: tuple[str, ...]
    threads: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether it fits, where that was asked."""
        return self.fits is not False
