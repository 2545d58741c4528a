"""What models are in GGUF: the names of their tensors there, and how their numbers differ from the checkpoint's.

The table, gguf.json, was made by asking llama.cpp's converter (tools/derive_gguf.py). Of some architectures the rows of
q_proj and k_proj are put in another order within each head, or 1 is added to the weights of norms. What the table does
not have is refused: it would be edited in the wrong place.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.architectures.change import Change
from adaptertool.architectures.conversion import architecture_of
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.records import dataclass

ARCHITECTURE, EMBEDDING, HEAD = "general.architecture", "token_embd.weight", "output.weight"
_SHIFTED = "+1"
_SIZE = "head_dim"
_HEADS = {"num_attention_heads": "attention.head_count", "num_key_value_heads": "attention.head_count_kv"}


@dataclass(frozen=True, slots=True)
class Layout:
    """A row of the table: modules by name -> what they are called in GGUF, with * for the number of a layer."""

    arch: str
    names: Mapping[str, str]
    changes: Mapping[str, str]  # by names in GGUF: a key of a config with the number of heads, or +1

    def change_of(self, name: str, heads: Mapping[str, object], *, into_gguf: bool) -> Change:
        """How the numbers of a tensor differ, by its name in GGUF. heads: numbers of heads, by the keys of a config.
        Raises UnsupportedError where they are needed, and are not there."""
        how = self.changes.get(_starred(name.rpartition(".")[0])[0])
        if how is None or how == _SHIFTED:
            return Change(shifted=how is not None)
        count = heads.get(how)
        if type(count) is not int or count < 1:
            raise UnsupportedError(
                f"{shown(name)}: in GGUF the rows of each head are in another order, and the base does not say how "
                f"many there are ({how}, {_HEADS[how]})"
            )
        size = heads.get(_SIZE)
        return Change(count, into_gguf, size=size if type(size) is int else None)


class Found(NamedTuple):
    name: str
    change: Change


class Across:
    """Finds tensors on one side of GGUF by their names on the other."""

    def __init__(self, layouts: Sequence[Layout], heads: Mapping[str, object], *, into_gguf: bool) -> None:
        """heads: numbers of heads by the keys of a config; into_gguf: names of a checkpoint are given, else those in
        GGUF"""
        self.layouts, self._into_gguf = layouts, into_gguf
        self._heads = {"num_key_value_heads": heads.get("num_attention_heads")}
        self._heads |= {key: heads[key] for key in (*_HEADS, _SIZE) if heads.get(key) is not None}
        count, wide = heads.get("num_attention_heads"), heads.get("hidden_size")
        if type(count) is int and type(wide) is int and count > 0:
            self._heads.setdefault(_SIZE, wide // count)

    @functools.cached_property
    def others(self) -> frozenset[str]:
        """Names of modules on the other side."""
        return frozenset(name for layout in self.layouts for name in self._names(layout))

    def __call__(self, name: str) -> Iterator[Found]:
        """What a tensor of the other side may be here. Raises UnsupportedError as `Layout.change_of` does."""
        module, dot, parameter = name.rpartition(".")
        starred, number = _starred(module)
        for layout in self.layouts:
            if (own := self._names(layout).get(starred)) is not None:
                found = own.replace("*", number) + dot + parameter
                in_gguf = found if self._into_gguf else name
                yield Found(found, layout.change_of(in_gguf, self._heads, into_gguf=self._into_gguf))

    def _names(self, layout: Layout) -> Mapping[str, str]:
        """What modules are called on the other side -> here."""
        return layout.names if self._into_gguf else {new: old for old, new in layout.names.items()}


def onto(config: Mapping[str, Any] | None, fields: Mapping[str, Any] | None) -> Across:
    """From the other side onto a base: a checkpoint with this config, or a GGUF file with these fields."""
    if fields is None:
        own = _table().get(architecture_of(config))
        return Across([] if own is None else [own], config or {}, into_gguf=False)
    arch = fields.get(ARCHITECTURE)
    said = {**_HEADS, _SIZE: "attention.key_length", "hidden_size": "embedding_length"}
    counts = {key: fields.get(f"{arch}.{name}") for key, name in said.items()}
    return Across([layout for layout in _table().values() if layout.arch == arch], counts, into_gguf=True)


def into_gguf(config: Mapping[str, Any] | None) -> tuple[str, Across] | None:
    """The architecture in GGUF of a model of this config, and what its tensors are there; None where that is not
    known."""
    own = _table().get(architecture_of(config))
    return None if own is None else (own.arch, Across([own], config or {}, into_gguf=True))


def known() -> str:
    """The architectures of which it is known what they are in GGUF, as a text."""
    return ", ".join(sorted(_table()))


def require_architecture(base: Checkpoint, adapter: Path, arch: str) -> None:
    """Raise unless the base is of the architecture that a GGUF adapter names: MismatchError, and UnsupportedError where
    it is not known what that is in GGUF."""
    if base.gguf is not None:
        theirs = base.gguf.get(ARCHITECTURE)
    elif (layout := _table().get(name := architecture_of(base.config))) is not None:
        theirs = layout.arch
    else:
        raise UnsupportedError(
            f"{adapter} is for {shown(arch)} in GGUF, and what the tensors of {base.path} are there is not known: "
            f"{f'it is a {shown(name)}' if name else 'no config.json says what it is'}, and known are {known()}. Merge "
            "it into the model as GGUF"
        )
    if theirs != arch:
        raise MismatchError(f"{adapter} is for the architecture {shown(arch)}, and {base.path} is {shown(theirs)}")


def _starred(module: str) -> tuple[str, str]:
    """The path with * for the number of a layer, and that number."""
    match = re.search(r"(?<=\.)\d+(?=\.|$)", module)
    return (module, "") if match is None else (module[: match.start()] + "*" + module[match.end() :], match[0])


@functools.cache
def _table() -> Mapping[str, Layout]:
    rows = json.loads(Path(__file__).with_name("gguf.json").read_text())["architectures"]
    return {name: Layout(**row) for name, row in rows.items()}
