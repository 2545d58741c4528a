"""What a configuration of mergekit says, as records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from adaptertool.files.yamlfile import At, Scalar

BASE, UNION = "base", "union"  # as sources of tokenizers
DTYPES: Mapping[str, str] = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}


class Typed(At):
    """The place of what was typed, and stands in no file."""

    def __str__(self) -> str:
        return self.file


class Model(NamedTuple):
    """A checkpoint, or what an adapter makes of one (`model+adapter`)."""

    path: str
    adapter: str | None = None

    def __str__(self) -> str:
        return self.path if self.adapter is None else f"{self.path}+{self.adapter}"


class Case(NamedTuple):
    """What a parameter is for tensors whose names have `filter` in them; several values are a gradient over layers."""

    filter: str | None  # None: all
    values: tuple[Scalar, ...]
    at: At


Parameters = Mapping[str, tuple[Case, ...]]  # of several cases the first that fits counts


class Source(NamedTuple):
    """Layers of a model that take part in a slice."""

    model: Model
    layers: range | None  # None: all there are
    parameters: Parameters
    at: At


class Slice(NamedTuple):
    """Layers of the output, made of as many of each source."""

    sources: tuple[Source, ...]
    base: Model | None
    parameters: Parameters
    at: At


class Token(NamedTuple):
    """The row of a token in embeddings: that of `token` of a model (None: the same token), or zeros (model None)."""

    model: Model | None
    token: str | int | None
    force: bool  # also for models that have the token


class Tokenizer(NamedTuple):
    """Which tokens the output has, and where their rows come from."""

    source: Model | str  # BASE or UNION
    tokens: Mapping[str, Token]
    multiple: int | None  # rows are filled up to a multiple of it
    at: At


class Config(NamedTuple):
    """A whole configuration."""

    method: str
    method_at: At
    base: Model | None
    slices: tuple[Slice, ...]
    whole: bool  # the one slice is whole models (`models`), to which the base is added
    parameters: Parameters
    inner: Parameters  # of the module, which come before
    at: At
    dtype: str | None = None  # of safetensors
    tokenizer: Tokenizer | None = None
    chat_template: str | None = None

    def models(self) -> tuple[Model, ...]:
        """All that take part, the base first, each once."""
        some = [*([self.base] if self.base else ()), *(one.base for one in self.slices if one.base)]
        return tuple(dict.fromkeys([*some, *(source.model for one in self.slices for source in one.sources)]))
