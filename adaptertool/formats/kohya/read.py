"""A file of kohya's or LyCORIS's as an adapter. The alpha of each module is a tensor of its own, and is read here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NoReturn

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.tensors import read_tensor
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import Header
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import Inputs
from adaptertool.formats.format import BaseHas, Facts
from adaptertool.formats.kohya.keys import ALPHA, FILES, FORMAT, KNOWN, NUMBERS, ON_BIAS, ON_INPUT, REFUSED, by_module
from adaptertool.kinds import SPELLED, Kind, kind_of
from adaptertool.kinds.spelling import Spelling
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

_SPELLED = [found for (name, _), found in SPELLED.items() if name == FORMAT]
_SEVERAL = 3  # modules that an error names


def read_adapter(
    files: Parsed,
    base_has: BaseHas,  # noqa: ARG001
    *,
    base: Checkpoint | None = None,  # noqa: ARG001
    leave_out: Sequence[str] | None = (),  # noqa: ARG001
    expert_layout: str | None = None,  # noqa: ARG001
) -> Adapter:
    """The adapter of the file, from its header and its alphas; no factor is read. Raises InputError.

    The arguments are those of `formats.format.Read`; nothing lies beside such a file.
    """
    header = files.header(FILES.weights)
    modules = [module for name, own in by_module(header.tensors).items() for module in _modules(header, name, own)]
    if not modules:
        raise InputError(f"{header.path} holds no tensors")
    scales = _numbers(header)
    unbounded = {f"{module.name}{ALPHA}" for module in modules if _spelling_of(module).unbounded}
    _require_bounds(header.path, scales, unbounded)
    _require_settings(header, modules)
    return Adapter(
        files.path,
        {header.path: header.stamp},
        tuple(_with_numbers(header.path, module, scales) for module in modules),
        trained_on=header.metadata.get("ss_sd_model_name", ""),
        format=FORMAT,
        fields=header.metadata,
        tensors={key: ref for key, ref in header.tensors.items() if not key.endswith(NUMBERS)},
        metadata=header.metadata,
    )


def _modules(header: Header, name: str, tensors: Mapping[str, Ref]) -> Iterator[Module]:
    """What a module's tensors change: its weight, and its bias."""
    for ending, ref in tensors.items():
        if ending not in KNOWN:
            why = next((why for keys, why in REFUSED.items() if ending in keys), "this tensor is not known")
            raise UnsupportedError(f"{header.path}: {shown(ref.spec.name)}: {why}")
        if ref.spec.dtype not in COMPUTED and ending not in NUMBERS:
            raise UnsupportedError(
                f"{header.path}: {shown(ref.spec.name)} is {ref.spec.dtype}; factors are {', '.join(COMPUTED)}"
            )
    weight = {ending: ref for ending, ref in tensors.items() if ending not in (*NUMBERS, *ON_BIAS)}
    bias = {ON_BIAS[ending]: ref for ending, ref in tensors.items() if ending in ON_BIAS}
    if not weight and not bias:
        raise InputError(f"{header.path} holds {shown(f'{name}{ALPHA}')}, and no factors for it")
    for parameter, own in (("weight", weight), ("bias", bias)):
        if own:
            kind, spelling = _kind_of(header.path, name, own)
            factors = {spelling.keys[ending]: ref for ending, ref in own.items()}
            if not kind.elementwise and (scalars := [ref for ref in factors.values() if not ref.shape]):
                raise InputError(f"{header.path}: {shown(scalars[0].spec.name)} is {scalars[0].spec}, and no factor")
            rank = spelling.rank_of({role: ref.shape for role, ref in factors.items()})
            yield Module(name, f"{name}.{parameter}", kind.name, factors, 1.0, rank or 0, layer=name)


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
    held = ", ".join(sorted(shown(ending) for ending in tensors))
    if missing:
        kind, more = min(missing, key=lambda pair: len(pair[1]))
        raise InputError(f"{file}: module {shown(name)} has {held}, and no {', '.join(sorted(more))} ({kind.name})")
    raise UnsupportedError(f"{file}: module {shown(name)} has {held}; together these are not supported")


def _numbers(header: Header) -> Mapping[str, float]:
    """The tensors that are single numbers, by their keys. Raises InputError for what is no number."""
    refs = [ref for key, ref in header.tensors.items() if key.endswith(NUMBERS)]
    with Inputs({header.path: header.stamp}) as inputs:
        return {ref.spec.name: _number(inputs, ref) for ref in refs}


def _require_bounds(file: Path, alphas: Mapping[str, float], unbounded: Set[str]) -> None:
    """Raises UnsupportedError for an alpha of 0, and for any other, or none, where it is a bound of the factors."""
    if bounded := sorted(key for key in unbounded if alphas.get(key) != 0):
        found = alphas.get(bounded[0])
        raise UnsupportedError(
            f"{file}: {shown(bounded[0])} is {'not there' if found is None else found}; LyCORIS has 0 there where the "
            "blocks of OFT have no bound. Those of sd-scripts always have one, and mean something else: neither is "
            "supported"
        )
    if zero := [key for key, alpha in alphas.items() if alpha == 0 and key.endswith(ALPHA) and key not in unbounded]:
        raise UnsupportedError(
            f"{file}: {', '.join(map(shown, zero[:_SEVERAL]))} {'is' if len(zero) == 1 else 'are'} 0, which "
            "trainers take for the rank, and those who merge for 0: what was meant is not known; write the rank there"
        )


def _require_settings(header: Header, modules: Sequence[Module]) -> None:
    """Raises UnsupportedError for a setting of the training, as the metadata has it, that one of the kinds refuses."""
    said = header.metadata.get("ss_network_args", "")
    for name, why in {pair for module in modules for pair in _spelling_of(module).refused.items()}:
        if re.search(rf"{name}\W+true", said, re.IGNORECASE):
            raise UnsupportedError(f"{header.path}: ss_network_args has {name}: {why}")


def _number(inputs: Inputs, ref: Ref) -> float:
    where = f"{ref.path}: {shown(ref.spec.name)}"
    if ref.spec.numel != 1 or (ref.spec.dtype not in COMPUTED and not ref.spec.dtype.startswith("I")):
        raise InputError(f"{where} is {ref.spec}; it is to be one number")
    if ref.spec.dtype.startswith("I"):
        return float(int.from_bytes(inputs.read(ref.path, ref.offset, ref.spec.nbytes), "little", signed=True))
    (number,) = read_tensor(inputs, ref, 0, 1).tolist()
    if not math.isfinite(number):
        raise InputError(f"{where} is {number}; the adapter is damaged")
    return float(number)


def _with_numbers(file: Path, module: Module, numbers: Mapping[str, float]) -> Module:
    """The module with its scale, which is 1 without alpha, as all who load such files take it; and with the side that
    its factor is for. Raises InputError where that is not told."""
    spelling, key = _spelling_of(module), f"{module.name}{ON_INPUT}"
    if spelling.settings:
        if numbers.get(key) not in (0, 1):
            said = f"is {numbers[key]:g}" if key in numbers else "is not there"
            raise InputError(
                f"{file}: {shown(key)} {said}; (IA)³ of LyCORIS has 0 or 1 there, and others no such factors"
            )
        return module._replace(settings={ON_INPUT[1:]: numbers[key] == 1})
    if key in numbers:
        raise UnsupportedError(f"{file}: {shown(key)} stands beside factors of another kind than (IA)³")
    alpha = numbers.get(f"{module.name}{ALPHA}")
    return module if alpha is None or not module.rank else module._replace(scale=spelling.scaling(alpha, module.rank))


def _spelling_of(module: Module) -> Spelling:
    return kind_of(module).spellings[FORMAT]


def facts(fields: Mapping[str, Any]) -> Facts:
    """What the metadata says of the training; the tensors count."""
    return Facts(
        kind=str(fields.get("ss_network_module", FORMAT)),
        version=fields.get("ss_sd_scripts_commit_hash"),
        trained_on=fields.get("ss_sd_model_name") or fields.get("ss_base_model_version"),
        initialiser="default",
        rank_stabilised="rs_lora" in str(fields.get("ss_network_args", "")),
        rank=fields.get("ss_network_dim"),
        alpha=fields.get("ss_network_alpha"),
    )
