"""The record of a format: how an adapter of it is told, read, described and written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from adaptertool.errors import UnsupportedError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import is_folder
from adaptertool.formats.saving import Saving
from adaptertool.records import dataclass
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.layers import Layered
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref

BaseHas = Callable[[str], bool]  # whether the base has a tensor that the adapter calls so
Move = Callable[[str], str]  # a name -> another


class FileNames(NamedTuple):
    """What the files of an adapter are called, and what the keys of its tensors begin with.

    config: None where there is none, and metadata of the file of tensors says what is said
    weights: "" where the adapter is that file
    earlier: names of files that a training left of the same adapter before it ended; None: there are none such
    """

    config: str | None
    weights: str
    prefix: str
    patterns: tuple[str, ...]  # of all names of its files, those of other versions too: no part of a checkpoint
    in_folder: str = ""  # what the file is called where the adapter may be a folder as well
    earlier: re.Pattern[str] | None = None

    def weights_at(self, path: Path) -> str:
        """The name of its file of tensors below that path."""
        return self.in_folder if self.in_folder and is_folder(path) else self.weights

    @property
    def named(self) -> tuple[str, str]:
        """The names of both, config first. Raises UnsupportedError where there is one file without a config."""
        if self.config is None:
            raise UnsupportedError("adapters of one file, without a config, are read and not written")
        return self.config, self.weights


class Written(NamedTuple):
    """A layer of an adapter that is written."""

    path: str
    rank: int
    scale: float
    is_parameter: bool = False


class Group(NamedTuple):
    """Tensors that belong to one module, as their keys tell, of a kind that may not be handled."""

    name: str
    kind: str
    refs: tuple[Ref, ...]
    rank: int | None


class Facts(NamedTuple):
    """What a config says of its adapter, as far as it can be told without refusing anything."""

    kind: str  # as the format calls it
    version: str | None  # of the tool that wrote it
    trained_on: str | None
    initialiser: str
    rank_stabilised: bool
    rank: Any
    alpha: Any
    scale: str = "alpha/r"  # what makes it, where the adapter is not rank-stabilised
    tool: str = "PEFT"  # that wrote it, where its version is known


class Read(Protocol):
    def __call__(
        self,
        files: Parsed,
        base_has: BaseHas,
        *,
        base: Checkpoint | None = None,
        leave_out: Sequence[str] | None = (),
        expert_layout: str | None = None,
    ) -> Adapter:
        """The adapter, from its config, its header, and those of the files beside it. Every tensor is claimed once, or
        refused by name. Raises InputError.

        base_has: asked only of parameters, where config and file leave it open which of them were targeted
        base, leave_out: what the files beside it are held against, and which of them to do without (formats.beside);
        where leave_out is None they are not looked at
        expert_layout: that of lora_B of fused experts, where its config does not say
        """


ReadAsFar = Callable[[Parsed, BaseHas, str | None], Adapter]


def without_beside(read: Read) -> ReadAsFar:
    """How an adapter is read of which nothing that a merge refuses can be left open: without what lies beside it."""
    return lambda files, base_has, layout: read(files, base_has, leave_out=None, expert_layout=layout)


class ConfigText(Protocol):
    def __call__(
        self, fields: Mapping[str, Any], layers: Sequence[Written], *, targets_of: Mapping[str, Any] | None = None
    ) -> bytes:
        """The config with `fields`, but ranks, scales and targets as `layers` have them.

        targets_of: a config that targets just these layers, to be followed in how it names them
        """


class NewFields(Protocol):
    def __call__(
        self, trained_on: str, *, biases: bool, transposed: bool, saved_modules: Sequence[str], causal: bool
    ) -> dict[str, Any]:
        """The fields of an adapter that is made of a fine-tuned checkpoint, but for ranks and targets.

        biases: some are saved beside the factors of their layers; transposed: weights are stored (in, out); causal: of
        a causal language model
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How an adapter is written."""

    config_text: ConfigText
    nearest_scale: Callable[[float, int], float]  # to this scale, that a config can say of a layer of this rank
    times: Callable[[Adapter, Decimal], bytes]  # the config of the adapter whose low-rank changes are so many times
    new_fields: NewFields
    takes_factors: Callable[[object, str], bool]  # model_type of a config, path of a linear layer -> whether it loads


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format. A field that is None means that the format cannot do it."""

    name: str
    files: FileNames
    recognise: Callable[[Path], bool]  # by what the folder holds
    read: Read
    read_as_far_as_clear: ReadAsFar  # also where a merge refuses it
    by_names: Callable[[Parsed], Iterator[Group]]  # its tensors as their keys alone tell
    facts: Callable[[Mapping[str, Any]], Facts]
    layered: Callable[[Adapter], Layered]  # the adapter as layers, for what is done without a base
    renamed: Callable[[Layered, Mapping[str, Move]], Layered]  # modules by name -> what becomes of all their names
    misreadings: Callable[[Adapter], Mapping[str, Callable[[Edit], Edit]]]  # other ways to read it, by fault
    write: Writing | None = None
    save: Saving | None = None  # how adapters of other formats are written in it
