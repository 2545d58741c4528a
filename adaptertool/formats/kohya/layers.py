"""A file with flat names as layers: what shares one rank and one alpha. Each has a pair of factors."""

from __future__ import annotations

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.formats.kohya.padded import require_none_padded
from adaptertool.formats.unpaired import unpaired_layer
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.dora_scale import SCALE
from adaptertool.kinds.equivalent import reshaped
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.lora_tucker import CORE
from adaptertool.kinds.parts import parts_of
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.layers import Layer, Layered, Pair


def layered(adapter: Adapter) -> Layered:
    """The layers of such a file, by their names; what adds a whole tensor is kept as it is.

    Raises UnsupportedError for a layer of which more than its weight is changed.
    """
    require_none_padded(adapter)
    layers: dict[str, Layer] = {}
    saved = []
    for module in adapter.modules:
        if kind_of(module).elementwise:
            saved.append(module)
        elif module.name in layers:
            raise UnsupportedError(
                f"{adapter.path}: {shown(module.name)} is of kind {module.kind}, and more than one tensor of the layer "
                "is changed, as its bias: no LoRA is made of that; merge it into its base, and extract a LoRA"
            )
        else:
            layers[module.name] = _layer(module)
    return Layered(adapter, layers, tuple(saved))


def _layer(module: Module) -> Layer:
    factors = module.factors
    if factors.keys() == {A, B, CORE}:
        module = _with_core(module)
    elif factors.keys() - {SCALE, MAGNITUDE} != {A, B}:
        return unpaired_layer(module, (f"{module.name}.lora_down.weight", f"{module.name}.lora_up.weight"))
    a, b = module.factors[A], module.factors[B]
    if b.shape[1:2] != a.shape[:1] or len(a.shape) < 2 or not a.spec.numel or not b.spec.numel:
        raise MismatchError(f"{a.path}: {shown(module.name)} has {a.spec} and {b.spec}; these make no product")
    magnitude = factors.get(SCALE) or factors.get(MAGNITUDE)
    return Layer(module.name, module.rank, module.scale, (Pair(a, b),), None, magnitude, is_parameter=False)


def _with_core(module: Module) -> Module:
    """A product of two with a core between them as a product of two, of a larger rank."""
    a, b, core = (module.factors[role] for role in (A, B, CORE))
    if len(a.shape) < 2 or len(core.shape) < 3:
        raise MismatchError(f"{a.path}: {shown(module.name)} has {a.spec} and {core.spec}; these make no product")
    weight = (b.shape[0], a.shape[1], *core.shape[2:])
    (part,) = parts_of(module, weight) or (module,)
    ones = [1] * (len(weight) - 2)
    shapes = {A: (part.rank, *weight[1:]), B: (weight[0], part.rank, *ones)}
    return part._replace(factors={role: reshaped(part.factors[role], shape) for role, shape in shapes.items()})
