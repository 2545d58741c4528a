"""A file of kohya's or LyCORIS's as an adapter. The alpha of each module is a tensor of its own, and is read here."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
from adaptertool.formats.kohya.keys import ALPHA, FILES, FORMAT, KNOWN, ON_BIAS, by_module
from adaptertool.kinds import SPELLED, Kind
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
    alphas = {ref for module in by_module(header.tensors).values() if (ref := module.get(ALPHA)) is not None}
    scales = _alphas(header, sorted(alphas, key=lambda ref: ref.offset))
    return Adapter(
        files.path,
        {header.path: header.stamp},
        tuple(_scaled(module, scales.get(f"{module.name}{ALPHA}")) for module in modules),
        trained_on=header.metadata.get("ss_sd_model_name", ""),
        format=FORMAT,
        fields=header.metadata,
        tensors={key: ref for key, ref in header.tensors.items() if not key.endswith(ALPHA)},
        metadata=header.metadata,
    )


def _modules(header: Header, name: str, tensors: Mapping[str, Ref]) -> Iterator[Module]:
    """What a module's tensors change: its weight, and its bias."""
    for ending, ref in tensors.items():
        if ending not in KNOWN:
            raise UnsupportedError(f"{header.path}: {shown(ref.spec.name)}: this tensor is not known")
        if ref.spec.dtype not in COMPUTED and ending != ALPHA:
            raise UnsupportedError(
                f"{header.path}: {shown(ref.spec.name)} is {ref.spec.dtype}; factors are {', '.join(COMPUTED)}"
            )
    weight = {ending: ref for ending, ref in tensors.items() if ending != ALPHA and ending not in ON_BIAS}
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


def _alphas(header: Header, refs: Sequence[Ref]) -> Mapping[str, float]:
    """The alpha of each module that has one, by its key. Raises InputError for what is no number, or 0."""
    found: dict[str, float] = {}
    with Inputs({header.path: header.stamp}) as inputs:
        for ref in refs:
            found[ref.spec.name] = _alpha(inputs, ref)
    if zero := [key for key, alpha in found.items() if alpha == 0]:
        raise UnsupportedError(
            f"{header.path}: {', '.join(map(shown, zero[:_SEVERAL]))} {'is' if len(zero) == 1 else 'are'} 0, which "
            "trainers take for the rank, and those who merge for 0: what was meant is not known; write the rank there"
        )
    return found


def _alpha(inputs: Inputs, ref: Ref) -> float:
    where = f"{ref.path}: {shown(ref.spec.name)}"
    if ref.spec.numel != 1 or (ref.spec.dtype not in COMPUTED and not ref.spec.dtype.startswith("I")):
        raise InputError(f"{where} is {ref.spec}; alpha is one number")
    if ref.spec.dtype.startswith("I"):
        return float(int.from_bytes(inputs.read(ref.path, ref.offset, ref.spec.nbytes), "little", signed=True))
    (alpha,) = read_tensor(inputs, ref, 0, 1).tolist()
    if not math.isfinite(alpha):
        raise InputError(f"{where} is {alpha}; the adapter is damaged")
    return float(alpha)


def _scaled(module: Module, alpha: float | None) -> Module:
    """The module with its scale: without alpha it is 1, as all who load such files take it."""
    if alpha is None or not module.rank:
        return module
    ((_, spelling),) = (found for found in _SPELLED if found[0].name == module.kind)
    return module._replace(scale=spelling.scaling(alpha, module.rank))


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
