"""What a path is that is no adapter of a known format, where that can be told: what it is, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.gguf import is_gguf
from adaptertool.files.header import read_header
from adaptertool.files.hints import PICKLES, from_pickle
from adaptertool.files.reader import exists, is_file, is_folder, names_in
from adaptertool.files.trainer import is_trainer_file

_NEMO = ".nemo"
_OF_MODELS = ("pytorch_model", "model")  # how names of pickles begin that are of no adapter
_IN_FOLDERS = ("adapters.safetensors", "adapter_model.safetensors")  # of MLX, of PEFT
_PEFT, _CONFIG = "base_model.model.", "adapter_config.json"
_LISTED = 5  # files that an error names
# A pattern of names in a folder -> what it is
_FOLDERS = {
    "xlora_config.json": "is an X-LoRA: it mixes several adapters for every input by a classifier, so no one weight "
    "has its change: keep it beside the base, or give its parts to `adaptertool sum` or `merge`, with weights of your "
    "choice",
    "*.distcp": "is a distributed checkpoint of torch, as NeMo and Megatron write it, and is not read: export the "
    "adapter from there as PEFT's (Megatron-Bridge does)",
}


def explain(path: Path, is_adapter: Callable[[Path], bool]) -> None:
    """Raises UnsupportedError or InputError where there is more to say of a path than that it is no adapter."""
    if is_folder(path):
        _explain_folder(path, is_adapter)
    elif exists(path):
        _explain_file(path)


def _explain_folder(path: Path, is_adapter: Callable[[Path], bool]) -> None:
    for pattern, what in _FOLDERS.items():
        if any(is_folder(folder) and names_in(folder, pattern) for folder in (path, path / "weights")):
            raise UnsupportedError(f"{path} {what}")
    files = [path / name for name in names_in(path, "*.safetensors") if is_adapter(path / name)]
    if files:
        listed = ", ".join(shown(one) for one in files[:_LISTED]) + (" ..." if len(files) > _LISTED else "")
        raise InputError(f"{path} is a folder, and what is an adapter is a file in it; give its path: {listed}")
    for one in (path / name for name in names_in(path, "*")):
        known = one.name.startswith(_OF_MODELS) or is_trainer_file(one.name)
        if one.suffix.lower() in (*PICKLES, _NEMO) and not known:
            _explain_file(one)


def _explain_file(path: Path) -> None:
    if path.suffix.lower() in PICKLES:
        raise UnsupportedError(
            f"{path} is a pickle, and pickles are never opened. This makes a safetensors file of it; give that:\n"
            f"  {from_pickle(path, path.with_suffix('.safetensors'))}"
        )
    if path.suffix.lower() == _NEMO:
        raise UnsupportedError(
            f"{path} is an archive of NeMo's: export the adapter from there as PEFT's, or merge it there"
        )
    if is_file(path) and is_gguf(path):
        raise InputError(f"{path} is a GGUF model, not an adapter; the model comes first, then the adapters")
    if path.suffix.lower() != ".safetensors":
        return
    keys = read_header(path).tensors
    if any(key.startswith(_PEFT) for key in keys):
        raise InputError(
            f"{path} holds the factors of an adapter of PEFT's; its scales are in {_CONFIG}: give the folder with both"
        )
    if path.name in _IN_FOLDERS and exists(path.parent / _CONFIG):
        raise InputError(
            f"{path} is read with {_CONFIG} beside it, which tells its scales: give the folder {path.parent}"
        )
    example = f", such as {shown(next(iter(keys)))}," if keys else ""
    raise InputError(
        f"{path} is no adapter: none of its {len(keys):,} keys{example} is that of a factor. A fine-tuned checkpoint "
        "is mixed with its base by `wise`, and made an adapter by `extract`"
    )
