"""The models of a configuration, opened: each file and each config once, whatever refers to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.architectures.traits import read_traits
from adaptertool.arguments import as_input
from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats import is_adapter
from adaptertool.formats.checkpoints import open_checkpoint, require_merged
from adaptertool.mergekit_yaml.records import Config, Model
from adaptertool.planning.edits import adapter_edits
from adaptertool.planning.sources import Reading, open_adapter
from adaptertool.resolution.renaming import renaming
from adaptertool.resolution.resolve import Base, open_base
from adaptertool.resolution.ties import STAY_TIED
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref

FIRST = -1  # the number of the model that gives config and tokenizer, which is the base of the plan

# What must be the same, where config.json says it, for layers of one model to work in another; and what had better be
_SAME = ("model_type", "hidden_size", "n_embd", "num_attention_heads", "num_key_value_heads", "head_dim", "n_head")
_ALIKE = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act", "sliding_window")


class Opened(NamedTuple):
    """A model that takes part.

    tensors: of its checkpoint, and the ends that are tied and not stored
    edits:   what its adapter changes, by the names of these
    number:  as plans count sources; FIRST
    """

    model: Model
    checkpoint: Checkpoint
    tensors: Mapping[str, Ref]
    stored: frozenset[str]
    edits: Mapping[str, Sequence[Edit]]
    number: int

    @property
    def config(self) -> Mapping[str, Any]:
        return self.checkpoint.config or {}


class Models(NamedTuple):
    """All that take part, and what there is to say of them."""

    opened: Mapping[Model, Opened]
    sources: Sequence[Adapter | Checkpoint]  # by their numbers
    files: Sequence[Mapping[str, Path]]  # of these
    notes: Sequence[str]

    @property
    def first(self) -> Checkpoint:
        """The checkpoint that gives config and tokenizer."""
        return next(iter(self.opened.values())).checkpoint


def open_models(config: Config) -> Models:
    """Open all that take part; the base first, or else the first that is named. Raises InputError for what is no
    checkpoint of safetensors with a config.json, MismatchError for models that are not of one architecture, and
    UnsupportedError for those that are quantised."""
    paths, bases = dict[Path, Checkpoint](), dict[Path, Base]()
    opened, sources, files, notes = dict[Model, Opened](), list[Adapter | Checkpoint](), list[Mapping[str, Path]](), []
    for model in config.models():
        path = as_input(model.path, "model")
        if path not in paths:
            paths[path] = _checkpoint(path)
            bases[path] = open_base(paths[path])
            notes += [note for note in paths[path].notes if note not in notes]
            notes += _alike(next(iter(paths.values())), paths[path])
        checkpoint, base = paths[path], bases[path]
        number, edits = FIRST, dict[str, list[Edit]]()
        if model.adapter is not None:
            adapter, edits, more = _adapter(as_input(model.adapter, "adapter"), base, number := len(sources))
            notes += more
            sources.append(adapter)
            files.append(
                {**adapter.named, **(checkpoint.named if checkpoint is not next(iter(paths.values())) else {})}
            )
        elif checkpoint is not next(iter(paths.values())):
            number = len(sources)
            sources.append(checkpoint)
            files.append(checkpoint.named)
        own = dict(base.tensors)
        opened[model] = Opened(model, checkpoint, own, frozenset(checkpoint.tensors), edits, number)
    return Models(opened, sources, files, notes)


def _checkpoint(path: Path) -> Checkpoint:
    if is_adapter(path):
        raise InputError(
            f"{path} is an adapter, not a checkpoint; in a configuration it stands behind its model: MODEL+{path}"
        )
    checkpoint = require_merged(open_checkpoint(path))
    if checkpoint.gguf is not None or checkpoint.components:
        what = "GGUF" if checkpoint.gguf is not None else "a pipeline"
        raise UnsupportedError(
            f"{path} is {what}; models of mergekit are folders with safetensors and a config.json: "
            + ("name what it was converted from" if checkpoint.gguf is not None else "name the folder of one")
        )
    if checkpoint.is_file or checkpoint.config is None:
        raise InputError(
            f"{path} has no config.json; models of mergekit are folders with safetensors and a config.json"
        )
    if why := read_traits(checkpoint).quantised:
        raise UnsupportedError(
            f"{path} is quantised ({shown(why)}): use the checkpoint that it was made from, or decode it first "
            f"(adaptertool wise {path} {path} --alpha 0 --dtype bf16 -o DENSE)"
        )
    return checkpoint


def _alike(first: Checkpoint, other: Checkpoint) -> list[str]:
    """A note where configs say what changes how layers compute. Raises MismatchError where one model's layers do not
    fit the other."""
    ours, theirs = first.config or {}, other.config or {}
    for key in _SAME:
        if key in ours and key in theirs and ours[key] != theirs[key]:
            raise MismatchError(
                f"{other.path} has {key} {shown(theirs[key])}, and {first.path} {shown(ours[key])}: these are "
                "models of different forms"
            )
    which = [key for key in _ALIKE if key in ours and key in theirs and ours[key] != theirs[key]]
    return (
        [f"{other.path} has another {' and '.join(which)} than {first.path}, whose config.json is kept"]
        if which
        else []
    )


def _adapter(path: Path, base: Base, number: int) -> tuple[Adapter, dict[str, list[Edit]], list[str]]:
    """An adapter, its edits with that number, and notes. Raises UnsupportedError where the set of tensors changes."""
    with renaming(()) as own:
        adapter = open_adapter(path, base.base, Reading(), own)
    edits, changes, notes = adapter_edits(base, [adapter], [1.0])
    if changes.grown or changes.head or changes.apart:
        raise UnsupportedError(
            f"{path} resizes the vocabulary, brings a head, or changes one of two tied ends: merge it first "
            f"(adaptertool merge {base.base.path} {path}), and name what that makes"
        )
    found = {name: [edit._replace(adapter=number) for edit in some] for name, some in edits.items()}
    # An end that is tied here is one of its own in the output where another model stores it
    found |= {end: found[source] for end, source in base.ends.items() if source in found}
    return adapter, found, [note.removesuffix(STAY_TIED) for note in notes]
