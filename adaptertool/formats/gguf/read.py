"""A GGUF adapter as an adapter. What it changes has the names of the tensors of a GGUF model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.architectures.gguf import ARCHITECTURE, EMBEDDING, require_architecture
from adaptertool.codecs import COMPUTED
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.parsed import Parsed
from adaptertool.formats.format import BaseHas
from adaptertool.formats.gguf.blocks import Q8_0, unpacked
from adaptertool.formats.gguf.keys import (
    ALPHA,
    CONTROL,
    ENDINGS,
    FILES,
    FORMAT,
    HARMLESS,
    KIND,
    LORA_TYPE,
    REFUSED,
    by_module,
)
from adaptertool.kinds import LORA
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import turned
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref


def read_adapter(
    files: Parsed,
    base_has: BaseHas,  # noqa: ARG001
    *,
    base: Checkpoint | None = None,
    leave_out: Sequence[str] | None = (),  # noqa: ARG001
    expert_layout: str | None = None,  # noqa: ARG001
) -> Adapter:
    """The adapter of the file, from its header. Raises InputError; MismatchError where the base is of another
    architecture.

    The arguments are those of `formats.format.Read`; nothing lies beside such a file.
    """
    header = files.header(FILES.weights)
    fields = header.fields
    alpha = _alpha(header.path, fields)
    if base is not None:
        require_architecture(base, header.path, fields[ARCHITECTURE])
    modules = tuple(_module(header.path, name, own, alpha) for name, own in by_module(header).items())
    if not modules:
        raise InputError(f"{header.path} holds no tensors")
    return Adapter(
        files.path,
        {header.path: header.stamp},
        modules,
        trained_on=str(fields.get("general.base_model.0.name", "")),
        format=FORMAT,
        fields=fields,
        tensors=header.tensors,
        metadata=header.metadata,
    )


def _alpha(file: Path, fields: Mapping[str, Any]) -> float:
    """adapter.lora.alpha; 0 where it is not there, as llama.cpp has it. Raises UnsupportedError for fields that say
    something that is not handled, and InputError."""
    if fields.get(ARCHITECTURE) == CONTROL:
        raise UnsupportedError(
            f"{file} is a control vector: it is added to what layers give, and changes no weight; llama.cpp takes it "
            "at inference (--control-vector)"
        )
    if (kind := fields.get(KIND)) != LORA_TYPE:
        raise UnsupportedError(f"{file}: {KIND} is {shown(kind)}; {LORA_TYPE} is what is known")
    for key in fields:
        if key.startswith("adapter.") and key not in HARMLESS:
            raise UnsupportedError(f"{file}: {shown(key)}: {REFUSED.get(key, 'this field is not known')}")
    if not isinstance(fields.get(ARCHITECTURE), str):
        raise InputError(f"{file} does not say for which architecture it is ({ARCHITECTURE})")
    alpha = fields.get(ALPHA, 0.0)
    if type(alpha) is not float or not math.isfinite(alpha):
        raise InputError(f"{file}: {ALPHA} is {shown(alpha)}; it is to be a finite number (FLOAT32)")
    return alpha


def _module(file: Path, name: str, tensors: Mapping[str, Ref], alpha: float) -> Module:
    for ending, ref in tensors.items():
        if ending not in ENDINGS:
            why = (
                "llama.cpp leaves tensors of norms out in silence; without it"
                if name.endswith("_norm.weight")
                else ("it is neither lora_a nor lora_b; without it")
            )
            raise UnsupportedError(f"{file}: {shown(ref.spec.name)}: {why} the adapter would be another")
        if ref.spec.dtype not in (*COMPUTED, Q8_0):
            raise UnsupportedError(
                f"{file}: {shown(ref.spec.name)} is {ref.spec.dtype}; factors are {', '.join((*COMPUTED, Q8_0))}"
            )
    if len(tensors) < len(ENDINGS):
        (lost,) = ENDINGS.keys() - tensors.keys()
        raise InputError(f"{file} has no {shown(name + lost)}, and the other half of it")
    a, b = (unpacked(ref) if ref.spec.dtype == Q8_0 else ref for ref in (tensors[end] for end in ENDINGS))
    rank = b.shape[-1] if b.shape else 0
    ranks = (a.shape[-1] if name == EMBEDDING else a.shape[-2]) if len(a.shape) > 1 else 0
    stacked = len(a.shape) == 3
    if rank != ranks or not rank or len(a.shape) != len(b.shape) or not 2 <= len(a.shape) <= 2 + (name != EMBEDDING):
        raise InputError(
            f"{file}: {shown(name)} has lora_a {tensors['.lora_a'].spec} and lora_b {tensors['.lora_b'].spec}; "
            "these make no product"
        )
    factors = {A: turned(b), B: a} if name == EMBEDDING else {A: a, B: b}
    scale = alpha / rank if alpha else 1.0
    module = name.removesuffix(".weight")
    return Module(module, name, LORA.name, factors, scale, rank, transposed=False, layer=module, stacked=stacked)
