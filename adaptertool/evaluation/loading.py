"""Models and tokenizers from local files, by transformers: nothing is fetched, no code of a checkpoint is run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from adaptertool.errors import AdapterToolError, InputError, UsageError, shown

_HF: Any = transformers  # whose types are not those that it has when it runs
_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def device_of(name: str) -> torch.device:
    """Raises UsageError where this machine has no such device."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} cannot be used: {_reason(error)}") from error
    if device.type == "meta":
        raise UsageError("device 'meta' computes nothing")
    return device


def load_tokenizer(path: Path) -> Any:
    with _explained(path, "has no tokenizer that transformers can load without a network"):
        return _HF.AutoTokenizer.from_pretrained(path, **_LOCAL)


def load_model(path: Path, device: torch.device) -> tuple[Any, list[str]]:
    """The causal language model in the dtype of its checkpoint; and notes. Raises InputError for missing weights."""
    _check_folder(path)
    with _explained(path, "cannot be loaded by transformers as a causal language model"):
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


def _check_folder(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise InputError(f"{path} is no directory with a config.json, so no model can be made of it")
    if (path / "adapter_config.json").exists():  # transformers would load what it is an adapter of, too
        raise InputError(f"{path} is an adapter; give it after BASE, not as a checkpoint")


@contextlib.contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    if not path.is_dir():  # else transformers takes it for a name on the hub
        raise InputError(f"{path} is not a directory")
    try:
        yield
    except (AdapterToolError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # anything may come of the code of hundreds of models, and of a malformed config
        raise InputError(f"{path} {what}: {_reason(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the bars and reports of transformers; what they say of missing weights is an error here."""
    logs = _HF.utils.logging
    level, bars = logs.get_verbosity(), logs.is_progress_bar_enabled()
    logs.set_verbosity_error()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        logs.set_verbosity(level)
        if bars:
            logs.enable_progress_bar()


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[0])[:300] if lines else type(error).__name__
