"""The keys of such a file: the flat name of a module, a dot, and what the tensor is to it. As sd-scripts (2026-02) and
LyCORIS 4.1.3 write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from adaptertool.architectures.flat import PREFIXES
from adaptertool.errors import InputError
from adaptertool.files.header import read_header
from adaptertool.files.parsed import Parsed
from adaptertool.formats.format import FileNames, Group
from adaptertool.kinds import SPELLED
from adaptertool.spec.tensors import Ref

FORMAT = "kohya"
FILES = FileNames(None, "", "", patterns=())
ALPHA, ON_INPUT = ".alpha", ".on_input"
NUMBERS = (ALPHA, ON_INPUT)  # no factors, but single numbers that say what factors mean
ON_BIAS = {".diff_b": ".diff", ".b_norm": ".w_norm"}  # of the bias, what the other is of the weight
KNOWN = frozenset(
    {*NUMBERS, *ON_BIAS, *(key for (name, _), (_, own) in SPELLED.items() if name == FORMAT for key in own.keys)}
)
# Understood, and not handled (yet)
REFUSED = {
    (".set_weight", ".reshape_weight"): "files of ComfyUI that replace weights are not supported yet",
    (".lokr_t1",): "no tool that is known uses it",
}


def recognise(path: Path) -> bool:
    """Whether it is a file of safetensors with a key that begins as those of a module do."""
    try:
        return path.is_file() and any(key.startswith(tuple(PREFIXES)) for key in read_header(path).tensors)
    except (InputError, OSError):
        return False


def by_module(tensors: Mapping[str, Ref]) -> Mapping[str, dict[str, Ref]]:
    """Module -> what follows its name in a key -> the tensor."""
    found: dict[str, dict[str, Ref]] = {}
    for key, ref in tensors.items():
        module, _, rest = key.partition(".")
        found.setdefault(module, {})[f".{rest}"] = ref
    return found


def by_names(files: Parsed) -> Iterator[Group]:
    """The tensors by the module that their keys name."""
    for module, tensors in by_module(files.header(FILES.weights).tensors).items():
        yield Group(module, FORMAT, tuple(tensors.values()), None)
