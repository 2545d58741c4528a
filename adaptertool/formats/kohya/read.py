"""A single file as an adapter, of kohya's tools, ComfyUI or diffusers. What alphas it has are tensors, and are read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from adaptertool.architectures.flat import DOTTED, PREFIXES
from adaptertool.codecs import COMPUTED
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import Header
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import exists
from adaptertool.formats.beside import Beside, read_beside
from adaptertool.formats.format import BaseHas, FileNames
from adaptertool.formats.kohya import keys, xlabs
from adaptertool.formats.kohya.keys import BESIDE, FILES, FOLDED, KOHYA, OF_FACTOR, ON_BIAS
from adaptertool.formats.kohya.metadata import KEY, Said
from adaptertool.formats.kohya.padded import with_shapes
from adaptertool.formats.kohya.refused import why_refused
from adaptertool.formats.kohya.scales import Numbers, note_on_parts
from adaptertool.kinds import LORA, SPELLED, Kind, kind_of
from adaptertool.kinds.spelling import Spelling
from adaptertool.patterns import regex
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

_SPELLED = [found for (name, _), found in SPELLED.items() if name in keys.NAMES]
# What names of modules begin with where a scale that is not said is 1: those of parts of pipelines, and of denoisers
_WITHOUT_ALPHA = (
    *PREFIXES, *DOTTED, "down_blocks.", "mid_block.", "up_blocks.", "transformer_blocks.", "single_transformer_blocks.",
    "double_blocks.", "single_blocks.", "joint_blocks.", "blocks.",
)  # fmt: skip
_OF_LANGUAGE = ("transformer.h.", "transformer.layers.", "transformer.encoder.")
# As diffusers alone calls layers: those of Lumina and Z-Image are in transformer.layers, too
_OF_DIFFUSERS = regex(r"\.to_(q|k|v|out)\b")
_IN_FOLDER = FileNames(None, FOLDED, "", FILES.patterns)


def read_adapter(
    form: str,
    files: Parsed,
    base_has: BaseHas,
    *,
    base: Checkpoint | None = None,
    leave_out: Sequence[str] | None = (),
    expert_layout: str | None = None,  # noqa: ARG001
) -> Adapter:
    """The adapter, from the header of its file, its alphas and its metadata; no factor is read. Raises InputError.

    form: the name of the format. The others are those of `formats.format.Read`; beside a single file nothing lies.
    """
    name = FILES.weights_at(files.path)
    header = files.header(name)
    _require_supported(header)
    own = keys.by_module(header.path, header.tensors)
    modules = [module for owner, some in own.items() for module in _modules(header.path, owner, some, base_has)]
    if not modules:
        raise InputError(f"{header.path} holds no tensors")
    scaled = [
        part for module in with_shapes(header, own, _scaled(header, own, modules)) for part in xlabs.apart(module)
    ]
    beside = Beside()
    if name and leave_out is not None:
        beside = read_beside(files, _IN_FOLDER, scaled, base, base_has, leave_out)
    return Adapter(
        files.path,
        {header.path: header.stamp, **beside.files},
        (*scaled, *beside.modules),
        trained_on=header.metadata.get("ss_sd_model_name", ""),
        left=beside.left,
        notes=(*note_on_parts(header, scaled), *beside.notes),
        format=form,
        fields=header.metadata,
        tensors={key: ref for key, ref in header.tensors.items() if not key.endswith(BESIDE)},
        metadata=header.metadata,
    )


def _require_supported(header: Header) -> None:
    for key in header.tensors:
        if why := why_refused(key):
            raise UnsupportedError(f"{header.path}: {shown(key)}: {why}")


def _modules(file: Path, name: str, tensors: Mapping[str, Ref], base_has: BaseHas) -> Iterator[Module]:
    """What a module's tensors change: its weight, and its bias."""
    for ending, ref in tensors.items():
        if not keys.known(ending):
            raise UnsupportedError(f"{file}: {shown(ref.spec.name)}: this tensor is not known")
        if ref.spec.dtype not in COMPUTED and ending not in BESIDE:
            raise UnsupportedError(
                f"{file}: {shown(ref.spec.name)} is {ref.spec.dtype}; factors are {', '.join(COMPUTED)}"
            )
    weight = {ending: ref for ending, ref in tensors.items() if ending not in (*BESIDE, *ON_BIAS)}
    bias = {ON_BIAS[ending]: ref for ending, ref in tensors.items() if ending in ON_BIAS}
    if not weight and not bias:
        raise InputError(f"{file} holds {shown(next(iter(tensors.values())).spec.name)}, and no factors for it")
    for parameter, own in (("weight", weight), ("bias", bias)):
        if own:
            kind, spelling = _kind_of(file, name, own)
            if kind.follows and weight.keys() != LORA.spellings[KOHYA].keys.keys():
                raise UnsupportedError(f"{file}: {shown(own[OF_FACTOR].spec.name)} stands beside no plain LoRA")
            factors = {spelling.keys[ending]: ref for ending, ref in own.items()}
            if not kind.elementwise and (scalars := [ref for ref in factors.values() if not ref.shape]):
                raise InputError(f"{file}: {shown(scalars[0].spec.name)} is {scalars[0].spec}, and no factor")
            target, alone = f"{name}.{parameter}", kind.elementwise and not bias
            if alone and not base_has(target) and base_has(name):  # a parameter of its own
                target = name
            rank = spelling.rank_of({role: ref.shape for role, ref in factors.items()})
            yield Module(name, target, kind.name, factors, 1.0, rank or 0, layer=name)


def _kind_of(file: Path, name: str, tensors: Mapping[str, Ref]) -> tuple[Kind, Spelling]:
    """The kind that has all of these tensors, and needs no more."""
    found = [
        (kind, spelling)
        for kind, spelling in _SPELLED
        if tensors.keys() <= spelling.keys.keys()
        and kind.roles - kind.optional <= {spelling.keys[ending] for ending in tensors}
        and len({spelling.keys[ending] for ending in tensors}) == len(tensors)
    ]
    if len(found) != 1:
        _refuse_mixture(file, name, tensors)
    return found[0]


def _refuse_mixture(file: Path, name: str, tensors: Mapping[str, Ref]) -> NoReturn:
    missing = [
        (kind, more)
        for kind, spelling in _SPELLED
        if tensors.keys() <= spelling.keys.keys()
        and (more := {ending for ending, role in spelling.keys.items() if role not in kind.optional} - tensors.keys())
        and len({spelling.keys[ending] for ending in tensors}) == len(tensors)
    ]
    beside = next(iter(tensors.values()))
    held = ", ".join(sorted(shown(keys.as_written(ending, ref)) for ending, ref in tensors.items()))
    if missing:
        kind, more = min(missing, key=lambda pair: len(pair[1]))
        lacks = ", ".join(sorted(keys.as_written(ending, beside) for ending in more))
        raise InputError(f"{file}: module {shown(name)} has {held}, and no {lacks} ({kind.name})")
    raise UnsupportedError(f"{file}: module {shown(name)} has {held}; together these are not supported")


def _scaled(header: Header, tensors: Mapping[str, Mapping[str, Ref]], modules: Sequence[Module]) -> list[Module]:
    """The modules with their scales. Raises InputError where nothing tells them."""
    numbers, said = Numbers(header, tensors), Said(header.path, header.metadata)
    numbers.require_meant(modules)
    if said.fields and numbers.alphas:
        raise UnsupportedError(
            f"{header.path}: both {KEY} and {shown(numbers.alphas[0].spec.name)} tell scales, and which of them counts "
            "is not known: save the file without one of them"
        )
    if not said.fields and not numbers.alphas:
        _require_convention(header, modules)
    found = list[Module]()
    for module in modules:
        if kind_of(module).follows:  # the bias of the second factor of the weight, which came before
            found.append(module._replace(scale=found[-1].scale))
        elif said.fields:
            found.append(said.scaled(module, bias=OF_FACTOR in tensors[module.name]))
        else:
            found.append(numbers.scaled(module))
    return found


def _require_convention(header: Header, modules: Sequence[Module]) -> None:
    """Raises UnsupportedError unless the scales are known to be 1: where nothing is said, names tell. Of adapters of
    language models it is in a config of PEFT's."""
    file = header.path
    if exists(config := file.parent / "adapter_config.json"):
        raise UnsupportedError(f"{file} has no alphas; {config.name} beside it tells them: give {file.parent}")
    names = [module.name for module in modules]
    of_language = any(name.startswith(_OF_LANGUAGE) for name in names) and not any(map(_OF_DIFFUSERS.search, names))
    if of_language or not any(name.startswith(_WITHOUT_ALPHA) for name in names):
        raise UnsupportedError(
            f"{file} has no alphas and no {KEY}, and {shown(names[0])} is no name that models of images have: "
            "its scales are not known; give the folder with its adapter_config.json"
        )
