"""PEFT's target_parameters: parameters of modules that are no layers, fused experts above all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from adaptertool.errors import InputError, MismatchError, shown
from adaptertool.formats.peft.config import LoraConfig
from adaptertool.kinds import LORA
from adaptertool.kinds.lora import A, B
from adaptertool.records import dataclass
from adaptertool.spec.adapter import Module
from adaptertool.spec.choices import GROUPED
from adaptertool.spec.tensors import Ref


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter that is targeted as such: PEFT wraps its module, once for each."""

    module: str
    name: str


def parameters_in(
    config: LoraConfig, file: Path, names: Iterable[str], base_has: Callable[[str], bool]
) -> dict[str, Parameter]:
    """Which parameter the factors below a name belong to. Of several the first is the innermost, and has the most
    base_layer in its name.

    target_parameters may name more than there is: a list for several architectures, or bare names, which fit below any
    module. Then those count that the base has.

    Raises InputError where the factors are not as many as the parameters, or there are none.
    """
    if not config.parameters:
        return {}
    wrappers: dict[str, list[str]] = {}
    for name in names:
        wrappers.setdefault(re.sub(r"(\.base_layer)+$", "", name), []).append(name)
    found: dict[str, Parameter] = {}
    for module, nested in wrappers.items():
        parameters = config.parameters_of(module)
        if len(parameters) != len(nested) or config.names_bare_parameters:
            parameters = [name for name in parameters if base_has(f"{module}.{name}")]
            if "gate_up_proj" in parameters:  # stored apart a base has both; a module holds one or the other
                parameters = [name for name in parameters if name not in ("up_proj", "up_proj_bias")]
        if not parameters:
            continue
        nested.sort(key=len, reverse=True)
        if nested[-1] != module or len(nested) != len(parameters):
            raise InputError(
                f"{file} holds factors for {len(nested)} parameters of {shown(module)}, but target_parameters in "
                f"{config.path.name} names {len(parameters)} that the base has: {', '.join(map(shown, parameters))}"
            )
        config.require_known_order(module, parameters)
        found |= {name: Parameter(module, parameter) for name, parameter in zip(nested, parameters, strict=True)}
    if not found:
        raise InputError(
            f"{config.path}: target_parameters names {', '.join(map(shown, config.parameters[:3]))}, but {file.name} "
            "holds factors for none of them; were they lost on saving? If they never were, empty the field"
        )
    return found


def on_parameter(config: LoraConfig, file: Path, parameter: Parameter, roles: Mapping[str, Ref]) -> Module:
    """The low-rank change of a parameter; of fused experts one for each, in factors of E·r rows and columns. Raises
    InputError for other factors than lora_A and lora_B, and MismatchError where their rank is not that of the
    config."""
    target = f"{parameter.module}.{parameter.name}"
    rank = config.rank_of(target)
    if roles.keys() != LORA.roles:
        raise InputError(f"{file}: {shown(target)} has {', '.join(sorted(roles))}, not {A} and {B}")
    shapes = [roles[role].spec.shape for role in (A, B)]
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1] or shapes[0][0] % rank:
        raise MismatchError(
            f"{file}: the factors of {shown(target)} are {roles[A].spec} and {roles[B].spec}, but {config.path.name} "
            f"gives it rank {rank} (r and rank_pattern); the scale alpha/r would be ambiguous"
        )
    grouped = config.packing.of(parameter.name) == GROUPED and shapes[0][0] > rank > 1
    scale = config.scale_of(target)
    return Module(parameter.module, target, LORA.name, roles, scale, rank, grouped=grouped, layer=target)


def packing_notes(config: LoraConfig, modules: Iterable[Module]) -> list[str]:
    """What to say of the packing of lora_B, where it matters: of several experts, and more than rank 1."""
    own = (one for one in modules if one.target == one.layer and one.factors[A].shape[0] > one.rank > 1)
    return list(config.packing.notes({one.target.rpartition(".")[2] for one in own}))
