"""Checkpoints, held apart from adapters: files of adapters that stand among a checkpoint's own are no part of it. A
checkpoint may be a pipeline, or one model of a pipeline."""

from __future__ import annotations

import re
from pathlib import Path

from adaptertool.errors import UnsupportedError, shown
from adaptertool.files import checkpoint as files
from adaptertool.files.checkpoint import Adapters, Checkpoint
from adaptertool.files.pipeline import is_component, is_pipeline, open_component, open_pipeline
from adaptertool.formats import FORMATS, is_adapter

_UNMERGED = re.compile(r"\.base_layer\.|\.lora_(A|B|embedding_A|embedding_B|magnitude_vector)\b")
_ADAPTERS = Adapters(is_adapter, tuple(pattern for one in FORMATS for pattern in one.files.patterns))


def open_checkpoint(path: Path) -> Checkpoint:
    """Read all headers, the index and the config of a checkpoint. Raises InputError; reads no weights."""
    if is_pipeline(path):
        return open_pipeline(path, _ADAPTERS)
    if is_component(path):
        return open_component(path, _ADAPTERS)
    return files.open_checkpoint(path, _ADAPTERS)


def require_merged(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint. Raises UnsupportedError where it holds a model of PEFT's with an adapter that is not merged."""
    own = (checkpoint.config or {}).get("model_type") == "phi4mm"  # Phi-4-multimodal has such tensors of its own
    if name := next((name for name in checkpoint.tensors if not own and _UNMERGED.search(name)), None):
        raise UnsupportedError(
            f"{checkpoint.path} holds {shown(name)}: it was saved from a model of PEFT's with an adapter in it, and is "
            "no checkpoint. Give the base that the adapter was trained on; or merge it there first (PEFT: "
            "model.merge_and_unload())"
        )
    return checkpoint
