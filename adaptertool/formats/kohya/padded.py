"""The shapes that weights are to be padded to beside their LoRA: `reshape_weight` of ComfyUI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptertool.codecs.tensors import INTEGERS, read_tensor
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.header import Header
from adaptertool.files.reader import Inputs
from adaptertool.formats.kohya.keys import SHAPE
from adaptertool.kinds import LORA
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

_MOST = 8  # dimensions of a weight


def with_shapes(header: Header, tensors: Mapping[str, Mapping[str, Ref]], modules: Sequence[Module]) -> list[Module]:
    """The modules, those of weights that grow with the shape. tensors: by module, and what follows its name.

    Raises InputError for what is no shape, UnsupportedError for one beside another kind than LoRA.
    """
    refs = {name: own[SHAPE] for name, own in tensors.items() if SHAPE in own}
    if not refs:
        return list(modules)
    with Inputs({header.path: header.stamp}) as inputs:
        shapes = {name: _shape(inputs, ref) for name, ref in refs.items()}
    grown = {f"{name}.weight": shape for name, shape in shapes.items()}
    found = [
        module._replace(padded=grown.pop(module.target))
        if module.kind == LORA.name and module.target in grown
        else module
        for module in modules
    ]
    if grown:
        ref = refs[next(iter(grown)).removesuffix(".weight")]
        raise UnsupportedError(
            f"{header.path}: {shown(ref.spec.name)} stands beside no plain LoRA; ComfyUI pads weights of these alone"
        )
    return found


def require_none_padded(adapter: Adapter) -> None:
    """Raises UnsupportedError for weights that are to grow: adapters that are written anew say nothing of that."""
    if module := next((module for module in adapter.modules if module.padded is not None), None):
        raise UnsupportedError(
            f"{adapter.path}: {shown(module.name + SHAPE)}: the weight is padded with zeros before the change, which "
            "no format but ComfyUI's says: merge it into its base"
        )


def _shape(inputs: Inputs, ref: Ref) -> tuple[int, ...]:
    where, size = f"{ref.path}: {shown(ref.spec.name)}", ref.spec.numel
    if ref.spec.dtype not in INTEGERS or len(ref.shape) != 1 or not 0 < size <= _MOST:
        raise InputError(f"{where} is {ref.spec}; it is to be the shape of a weight, whole numbers")
    shape = tuple(map(int, read_tensor(inputs, ref, 0, size).tolist()))
    if not all(0 < one < 1 << 48 for one in shape):
        raise InputError(f"{where} says {list(shape)}, which is the shape of no weight")
    return shape
