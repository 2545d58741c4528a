"""Models and tokenizers from local files, by transformers: nothing is fetched, no code of a checkpoint is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers

from adaptertool.errors import AdapterToolError, InputError, shown
from adaptertool.formats import is_adapter
from adaptertool.live.device import OUT_OF_MEMORY, reason

_HF: Any = transformers  # whose types are not those that it has when it runs
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def load_tokenizer(path: Path) -> Any:
    with explained(f"{path} has no tokenizer that transformers can load without a network", InputError):
        return _HF.AutoTokenizer.from_pretrained(path, **_LOCAL)


def load_model(path: Path, device: torch.device) -> tuple[Any, list[str]]:
    """The causal language model in the dtype of its checkpoint; and notes. Raises InputError for missing weights."""
    with explained(f"{path} cannot be loaded by transformers as a causal language model", InputError):
        model, info = _HF.AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", use_safetensors=True, output_loading_info=True, **_LOCAL
        )
        model = model.eval().to(device)
    kind = type(model).__name__
    for what, names in (("lacks", info["missing_keys"]), ("has in other shapes", info["mismatched_keys"])):
        if names:  # transformers would draw them at random
            raise InputError(f"{path} {what} {len(names)} weights of {kind}: {shown(min(map(str, names)))}")
    # Greedy decoding by the model alone: no penalty, no sampling that a generation_config.json may ask for
    plain = model.generation_config
    model.generation_config = _HF.GenerationConfig(
        eos_token_id=plain.eos_token_id, pad_token_id=plain.pad_token_id, bos_token_id=plain.bos_token_id
    )
    unused = sorted(info["unexpected_keys"])
    notes = [f"{path}: {kind} does not use {len(unused)} tensors: {shown(unused[0])}"] if unused else []
    return model, notes


def context_of(model: Any) -> int | None:
    """The longest text that the model takes, in tokens, where it says so."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def vocabulary_of(model: Any) -> int:
    """How many tokens the model has an embedding of."""
    size: int = model.get_input_embeddings().weight.shape[0]
    return size


def has_tokenizer(path: Path) -> bool:
    return any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"))


def check_folder(path: Path) -> None:
    """Raises InputError for what is no folder of a model; transformers would take it for a name on the hub."""
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is no directory with a config.json, so no model can be made of it")
    if is_adapter(path):  # transformers would load what it is an adapter of, too
        raise InputError(f"{path} is an adapter; give it after BASE, not as a checkpoint")


@contextlib.contextmanager
def explained(what: str, kind: type[AdapterToolError]) -> Iterator[None]:
    """Raises what transformers raises within it as an error of that kind, which begins with `what`."""
    try:
        yield
    except (AdapterToolError, MemoryError, OUT_OF_MEMORY):
        raise
    except Exception as error:  # anything may come of the code of hundreds of models, and of a malformed config
        raise kind(f"{what}: {reason(error)}") from error


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Without a network, whatever a config asks for (`attn_implementation` may name a kernel to download, and run).

    And without the bars and reports of transformers: what they say of missing weights is an error here.
    """
    logs, hub = _HF.utils.logging, huggingface_hub.constants
    level, bars, offline = logs.get_verbosity(), logs.is_progress_bar_enabled(), hub.HF_HUB_OFFLINE
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    hub.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        hub.HF_HUB_OFFLINE = offline
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()
