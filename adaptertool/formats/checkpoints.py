"""Checkpoints, held apart from adapters: files of adapters that stand among a checkpoint's own are no part of it. A
checkpoint may be a pipeline, or one model of a pipeline."""

from __future__ import annotations

from pathlib import Path

from adaptertool.architectures.decoded_gguf import decoded_gguf
from adaptertool.architectures.in_four_bits import in_four_bits
from adaptertool.architectures.kept import kept
from adaptertool.architectures.quantised import decoded
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files import checkpoint as files
from adaptertool.files.checkpoint import Adapters, Checkpoint
from adaptertool.files.pipeline import is_component, is_pipeline, open_component, open_pipeline
from adaptertool.formats import FORMATS, is_adapter
from adaptertool.patterns import regex
from adaptertool.spec.choices import KEEP

_UNMERGED = regex(r"\.base_layer\.|\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")
_ADAPTERS = Adapters(is_adapter, tuple(pattern for one in FORMATS for pattern in one.files.patterns))


def open_checkpoint(
    path: Path, dtype: str | None = None, quantise: str | None = None, as_trained: str | None = None
) -> Checkpoint:
    """Read all headers, the index and the config of a checkpoint. Raises InputError, and as `as_asked` does; reads no
    weights."""
    if is_pipeline(path):
        opened = open_pipeline(path, _ADAPTERS)
    elif is_component(path):
        opened = open_component(path, _ADAPTERS)
    else:
        opened = files.open_checkpoint(path, _ADAPTERS)
    return as_asked(opened, dtype, quantise, as_trained)


def as_asked(
    opened: Checkpoint, dtype: str | None = None, quantise: str | None = None, as_trained: str | None = None
) -> Checkpoint:
    """A checkpoint as it is to be read. Raises UnsupportedError for GGUF that is to stay codes, and for pipelines.

    dtype: decoded, and to be stored so (architectures.quantised)
    quantise: KEEP: weights stay codes (architectures.kept)
    as_trained: as a QLoRA run saw it (architectures.in_four_bits)
    """
    path = opened.path
    option = "--dtype" if quantise is None else "--quantise"
    if (quantise or as_trained) and opened.gguf is not None:
        raise UnsupportedError(
            f"{path} is GGUF; {option if quantise else '--as-trained'} is for checkpoints. --dtype decodes its blocks: "
            "quantise the merged model by llama.cpp's own tools"
        )
    if (dtype or quantise) and opened.components:
        raise UnsupportedError(
            f"{path} is a pipeline; {option} is for single models: give the folder of the component as BASE"
        )
    if quantise == KEEP:
        opened = kept(opened)
    elif dtype is not None:
        opened = decoded(opened, dtype) if opened.gguf is None else decoded_gguf(opened, dtype)
    return opened if as_trained is None else in_four_bits(opened, as_trained)


def require_named(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, merged. Raises UnsupportedError for GGUF, whose names and rows no written adapter has."""
    if checkpoint.gguf is not None:
        raise UnsupportedError(
            f"{checkpoint.path} is GGUF, whose names, and rows of some tensors, are others than those of the adapter "
            "that would be written: give the checkpoint that it was made from"
        )
    return require_merged(checkpoint)


def require_merged(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint. Raises UnsupportedError where it holds a model of PEFT's with an adapter that is not merged, and
    InputError where it is an adapter itself."""
    if checkpoint.gguf is not None and is_adapter(checkpoint.path):
        raise InputError(
            f"{checkpoint.path} is an adapter, not a checkpoint; the checkpoint comes first, then the adapters"
        )
    own = (checkpoint.config or {}).get("model_type") == "phi4mm"  # Phi-4-multimodal has such tensors of its own
    if name := next((name for name in checkpoint.tensors if not own and _UNMERGED.search(name)), None):
        raise UnsupportedError(
            f"{checkpoint.path} holds {shown(name)}: it was saved from a model of PEFT's with an adapter in it, and is "
            "no checkpoint. Give the base that the adapter was trained on; or merge it there first (PEFT: "
            "model.merge_and_unload())"
        )
    return checkpoint
