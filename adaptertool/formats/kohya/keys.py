"""The keys of single files: the name of a module, and what the tensor is to it. As sd-scripts (2026-02), LyCORIS 4.1.3,
ComfyUI (2026) and diffusers 0.42.1 write them.

Names have dots, or _ in place of each; by what they begin with, the tool that wrote them is told. What follows them is
the same for all, but that the factors of LoRA have several names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from adaptertool.architectures.flat import PREFIXES
from adaptertool.errors import InputError, shown
from adaptertool.files.header import read_header
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import exists, stamp_of
from adaptertool.formats.format import FileNames, Group
from adaptertool.formats.kohya import xlabs
from adaptertool.kinds import SPELLED
from adaptertool.patterns import regex
from adaptertool.spec.tensors import Ref, Stamp

KOHYA, COMFY, DIFFUSERS = NAMES = ("kohya", "comfy", "diffusers")
FOLDED = "pytorch_lora_weights.safetensors"  # what diffusers calls the file, where the adapter is a folder
FILES = FileNames(None, "", "", patterns=("pytorch_lora_weights.*",), in_folder=FOLDED)

ALPHA, ON_INPUT = ".alpha", ".on_input"
NUMBERS = (ALPHA, ON_INPUT)  # no factors, but single numbers that say what factors mean
SHAPE = ".reshape_weight"  # nor is this: that of the weight once it has grown, which ComfyUI does before the change
BESIDE = (*NUMBERS, SHAPE)
_IA3 = ".weight"  # where ON_INPUT stands beside it; else it is the weight of a model
# Of the bias, what the other is of the weight; or what is of the bias alone
OF_FACTOR = ".lora_B.bias"
ON_BIAS = {".diff_b": ".diff", ".b_norm": ".w_norm", OF_FACTOR: OF_FACTOR}
_MAGNITUDE = ".lora_magnitude_vector"

# What the two factors are called. The first names stand for all others in the spellings of kinds
_PAIRS = (
    (".lora_down.weight", ".lora_up.weight"),
    (".lora_A.weight", ".lora_B.weight"),  # PEFT, and so diffusers, and most trainers of transformers
    (".lora_A", ".lora_B"),
    (".lora_A.default.weight", ".lora_B.default.weight"),  # a model of PEFT's in memory
    (".lora.down.weight", ".lora.up.weight"),  # diffusers in 2023
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),  # and its text encoders
    ("_lora.down.weight", "_lora.up.weight"),  # and its attention processors, and those of XLabs
    ("_lora1.down.weight", "_lora1.up.weight"),  # for images
    ("_lora2.down.weight", "_lora2.up.weight"),  # for texts
)
_ALIASES = {
    **{other: own for pair in _PAIRS[1:] for other, own in zip(pair, _PAIRS[0], strict=True)},
    ".lora_B.default.bias": OF_FACTOR,
    **{f"{_MAGNITUDE}{more}": _MAGNITUDE for more in (".weight", ".default", ".default.weight")},
}
_OF_KINDS = {key for (name, _), (_, own) in SPELLED.items() if name in NAMES for key in own.keys}
_KNOWN = frozenset({*BESIDE, *ON_BIAS, *_OF_KINDS, *_ALIASES})

_DOTTED_KEY = regex(rf"(.+?)({'|'.join(map(re.escape, _KNOWN - {_IA3}))})")
_FLAT, _COMFY = tuple(PREFIXES), ("diffusion_model.", "model.diffusion_model.", "text_encoders.")
# What no tensor of a model is called; of some that are refused, too
_FACTORS = (
    *(end for end in _KNOWN if end.startswith((".lora", "_lora", ".hada_", ".lokr_", ".oft_", ".dora_"))),
    *("_custom_diffusion.weight", "lora_controlnet", "_stream_k_proj.weight"),
)
_OF_COMFY = (*_FACTORS, *(_OF_KINDS - {_IA3}), *ON_BIAS, ON_INPUT, ".set_weight", SHAPE)
_PEFT = ("base_model.model.", ".base_layer.")  # of its own file, which has a config; of a model that is not merged
# Attention processors, by what diffusers called their layers; in text encoders otherwise
_PROCESSED, _IN_TEXT = {"to_out": "to_out.0"}, {"to_out": "out_proj", **{f"to_{x}": f"{x}_proj" for x in "qkv"}}


def recognise(name: str, path: Path) -> bool:
    """Whether it is a file of safetensors, or a folder with one of diffusers', whose keys are of that format."""
    try:
        file = path / FILES.weights_at(path)
        return exists(path) and name in _formats_at(file, stamp_of(file))
    except (InputError, OSError):
        return False


@functools.lru_cache(maxsize=16)
def _formats_at(file: Path, stamp: Stamp) -> frozenset[str]:  # noqa: ARG001
    return formats_in(read_header(file).tensors)


def formats_in(keys: Mapping[str, object]) -> frozenset[str]:
    """The formats whose prefixes, or factors, these keys have."""
    if any(part in key for key in keys for part in _PEFT):
        return frozenset()
    found = set()
    for key in keys:
        if key.startswith(_FLAT):
            found.add(KOHYA)
        elif key.endswith(_OF_COMFY if key.startswith(_COMFY) else _FACTORS):
            found.add(COMFY if key.startswith(_COMFY) else DIFFUSERS)
    return frozenset(found)


def split(key: str, *, ia3: bool) -> tuple[str, str]:
    """(the name of the module, what follows it as kohya's tools have it). ia3: .weight is a factor."""
    if key.startswith(_FLAT):
        name, _, rest = key.partition(".")
        return name, _ALIASES.get(f".{rest}", f".{rest}")
    if ia3 and key.endswith(_IA3):
        return key.removesuffix(_IA3), _IA3
    if (match := _DOTTED_KEY.fullmatch(key)) is None:
        return key, ""
    name, ending = match.groups()
    if (own := xlabs.name_of(name, ending)) is not None:
        name = own
    elif ending.startswith(("_lora1", "_lora2")):
        return key, ""
    elif ending.startswith("_"):
        before, _, layer = name.rpartition(".")
        before = before.removesuffix(".processor")
        name = f"{before}.{(_IN_TEXT if before.endswith('.self_attn') else _PROCESSED).get(layer, layer)}"
    return name, _ALIASES.get(ending, ending)


def by_module(file: Path, tensors: Mapping[str, Ref]) -> Mapping[str, dict[str, Ref]]:
    """Module -> what follows its name, as kohya's tools have it -> the tensor. Raises InputError where two are one."""
    found: dict[str, dict[str, Ref]] = {}
    for key, ref in tensors.items():
        name, ending = split(key, ia3=f"{key.removesuffix(_IA3)}{ON_INPUT}" in tensors)
        other = found.setdefault(name, {}).setdefault(ending, ref)
        if other is not ref:
            raise InputError(f"{file}: {shown(other.spec.name)} and {shown(key)} are the same factor of one module")
    return found


def known(ending: str) -> bool:
    return ending in _KNOWN


def as_written(ending: str, beside: Ref) -> str:
    """What an ending is called in a file in which this tensor is, of the same module, where that can be told."""
    at = _PAIRS[0].index(ending) if ending in _PAIRS[0] else None
    pairs = [pair for pair in _PAIRS if beside.spec.name.endswith(pair)]
    return ending if at is None or not pairs else max(pairs, key=lambda pair: len(pair[0]))[at]


def by_names(files: Parsed) -> Iterator[Group]:
    """The tensors by the module that their keys name."""
    tensors, found = files.header(FILES.weights_at(files.path)).tensors, dict[str, list[Ref]]()
    for key, ref in tensors.items():
        name, ending = split(key, ia3=False)
        found.setdefault(name if ending else key.rpartition(".")[0] or key, []).append(ref)
    for name, refs in found.items():
        yield Group(name, KOHYA, tuple(refs), None)
