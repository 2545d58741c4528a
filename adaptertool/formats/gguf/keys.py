"""What a GGUF adapter holds: fields, and two matrices for each tensor of the base. As llama.cpp reads them
(src/llama-adapter.cpp) and its convert_lora_to_gguf.py writes them, with gguf-py 0.19."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool.architectures.gguf import ARCHITECTURE
from adaptertool.errors import InputError
from adaptertool.files.gguf import is_gguf, read_gguf
from adaptertool.files.header import Header
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import is_file
from adaptertool.formats.format import Facts, FileNames, Group
from adaptertool.kinds import LORA
from adaptertool.kinds.lora import A, B
from adaptertool.spec.tensors import Ref

FORMAT = "gguf"
FILES = FileNames(None, "", "", patterns=())
ENDINGS = {".lora_a": A, ".lora_b": B}

TYPE, KIND = "general.type", "adapter.type"
ADAPTER, MODEL, LORA_TYPE, CONTROL = "adapter", "model", "lora", "controlvector"
ALPHA = "adapter.lora.alpha"
# What a task and a prompt are called; llama.cpp applies the adapter in all of them
HARMLESS = frozenset({KIND, ALPHA, "adapter.lora.task_name", "adapter.lora.prompt_prefix"})
REFUSED = {
    "adapter.alora.invocation_tokens": "an aLoRA acts from certain tokens on, and no weights do that",
}


def recognise(path: Path) -> bool:
    """Whether it is a GGUF file that says it is no model; also one that cannot be read, for `read` to say so."""
    try:
        if not is_file(path) or not is_gguf(path):
            return False
    except (InputError, OSError):
        return False
    try:
        return is_adapter(read_gguf(path).fields)
    except InputError:
        return True


def is_adapter(fields: Mapping[str, Any]) -> bool:
    """Whether the fields are those of an adapter of llama.cpp's, of whatever kind."""
    return fields.get(TYPE) == ADAPTER or KIND in fields or fields.get(ARCHITECTURE) == CONTROL


def by_module(header: Header) -> Mapping[str, dict[str, Ref]]:
    """Tensor of the base -> what follows its name in a key -> the tensor."""
    found: dict[str, dict[str, Ref]] = {}
    for key, ref in header.tensors.items():
        ending = next((end for end in ENDINGS if key.endswith(end)), "")
        found.setdefault(key.removesuffix(ending), {})[ending] = ref
    return found


def by_names(files: Parsed) -> Iterator[Group]:
    """The tensors by the one of the base that their keys name."""
    for name, tensors in by_module(files.header(FILES.weights)).items():
        yield Group(name, LORA.name if ENDINGS.keys() >= tensors.keys() else FORMAT, tuple(tensors.values()), None)


def facts(fields: Mapping[str, Any]) -> Facts:
    """What the fields say of the training; the tensors have the ranks."""
    return Facts(
        kind=str(fields.get(KIND, FORMAT)),
        version=None,
        trained_on=fields.get("general.base_model.0.name"),
        initialiser="default",
        rank_stabilised=False,
        rank=None,
        alpha=fields.get(ALPHA),
    )
