"""What becomes of the tensors that a fine-tuned checkpoint changed, in an adapter that PEFT loads.

The weight of a linear layer becomes factors. All else is saved whole: embeddings and output heads (whose changes are
seldom of low rank, and which may be tied), norms, convolutions, routers, biases, and linear layers that PEFT takes no
factors for. PEFT saves whole modules, so with a tensor go the others of its module. What has no layer of its own in
memory is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from adaptertool.architectures.conversion import (
    Memory,
    Piece,
    architecture_of,
    into_memory,
    newest_parameter,
    rules_for,
    ties_of,
)
from adaptertool.codecs import COMPUTED
from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.formats import DEFAULT, writing
from adaptertool.patterns import regex
from adaptertool.records import dataclass
from adaptertool.resolution.resolve import Base
from adaptertool.spec.tensors import Ref

FACTORS, SAVED, LEFT_OUT = "factors", "saved", "left out"

# Modules with a weight of two dimensions that are not linear layers, or may not be: tables that are looked up, and the
# routers of experts, which transformers 5 has as modules of their own.
_NO_LINEAR = regex(r"embed|(^|\.)(wpe|wte|relative_attention_bias|gate|router)$")
_HINT = "leave it out with --leave-out"


class Choice(NamedTuple):
    """What becomes of one tensor. `module` as PEFT names it; `keys` are what follows its prefix in the adapter: of an
    embedding that is the output head too there are two."""

    base: Ref
    tuned: Ref
    how: str
    module: str = ""
    keys: tuple[str, ...] = ()
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Selection:
    choices: tuple[Choice, ...]  # in the order of the base
    saved_modules: tuple[str, ...]  # modules_to_save
    biases: bool  # some are saved beside their layers' factors

    def of(self, how: str) -> list[Choice]:
        return [choice for choice in self.choices if choice.how == how]


def left_out(patterns: Sequence[str], names: Iterable[str]) -> frozenset[str]:
    """The names in which a pattern is found. Raises UsageError for one that is malformed, or found nowhere."""
    names, found = list(names), set[str]()
    for pattern in patterns:
        try:
            own = {name for name in names if re.search(pattern, name)}
        except re.error as error:
            raise UsageError(f"the pattern {pattern!r} is no valid regex: {error}") from error
        if not own:
            raise UsageError(f"the pattern {pattern!r} is found in no name of a tensor")
        found |= own
    return frozenset(found)


def select(subject: Base, tuned: Mapping[str, Ref], changed: Collection[str], unwanted: Collection[str]) -> Selection:
    """What becomes of the changed tensors. Raises UnsupportedError, naming one, for what an adapter cannot hold."""
    base, memory = subject.base.tensors, in_memory(subject)
    choices: dict[str, Choice] = {}
    for name in base:
        if name in changed:
            how = _left_out if name in unwanted else _choice
            choices[name] = how(subject, tuned[name], memory.get(name, ""))
    whole = {choice.module for choice in choices.values() if choice.how == SAVED and choice.module}
    whole = _with_namesakes(whole, memory.values())
    for name, path in memory.items() if whole else ():
        if module := _inside(path, whole):
            if name in unwanted:
                raise UsageError(
                    f"{shown(name)} is left out, but PEFT saves all of {shown(module)}: leave out all or none"
                )
            _require_numbers(base[name])
            ends = [end for end, source in subject.ends.items() if source == name]
            choices[name] = Choice(base[name], tuned[name], SAVED, module, (path, *ends))
    factored = {choice.module for choice in choices.values() if choice.how == FACTORS}
    ordered = [_beside_factors(choices[name], factored) for name in base if name in choices]
    whole |= {end.rpartition(".")[0] for choice in ordered for end in choice.keys[1:]}
    biases = any(choice.how == SAVED and not choice.module for choice in ordered)
    return Selection(tuple(ordered), tuple(sorted(whole)), biases)


def _left_out(subject: Base, tuned: Ref, name: str) -> Choice:  # noqa: ARG001
    return Choice(subject.base.tensors[tuned.spec.name], tuned, LEFT_OUT)


def _beside_factors(choice: Choice, factored: Collection[str]) -> Choice:
    """PEFT has the bias of a layer with factors in the layer below them."""
    module = choice.keys[0].removesuffix(".bias") if choice.keys else ""
    return choice._replace(keys=(f"{module}.base_layer.bias",)) if module in factored else choice


def _choice(subject: Base, tuned: Ref, name: str) -> Choice:
    ref = subject.base.tensors[tuned.spec.name]
    _require_numbers(ref)
    subject.traits.refuse_quantised(ref)
    if not name:
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)} was changed, but is no tensor of its own in memory (joined with "
            f"others, cut or turned on loading), so no layer of PEFT's holds it; {_HINT}"
        )
    module, _, kind = name.rpartition(".")
    if kind == "weight" and _is_linear(subject, ref, module):
        return Choice(ref, tuned, FACTORS, module, transposed=subject.traits.is_transposed(ref, claimed=False))
    subject.traits.refuse_tied(ref)
    if kind not in ("weight", "bias") or not module:
        if len(ref.shape) > 2:
            raise UnsupportedError(
                f"{ref.path}: {shown(ref.spec.name)} {ref.spec} was changed, and is a parameter of no layer (fused "
                f"experts?); extraction from such is not supported yet: {_HINT}"
            )
        return Choice(ref, tuned, SAVED, "", (name,))
    weight = subject.base.tensors.get(f"{tuned.spec.name.removesuffix(kind)}weight")
    of_linear = kind == "bias" and weight is not None and _is_linear(subject, weight, module)
    return Choice(ref, tuned, SAVED, "" if of_linear else module, (name,))


def _is_linear(subject: Base, ref: Ref, module: str) -> bool:
    """Whether the change of a tensor is to be factors."""
    plain = len(ref.shape) == 2 and ref.spec.numel > 0 and not _NO_LINEAR.search(module)
    allowed = writing(DEFAULT).takes_factors((subject.base.config or {}).get("model_type"), module)
    return plain and allowed and not subject.traits.may_be_end(ref)


def _require_numbers(ref: Ref) -> None:
    if ref.spec.dtype not in COMPUTED:
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}, which an adapter cannot hold; {_HINT}, with all of its "
            "module"
        )


def in_memory(subject: Base) -> dict[str, str]:
    """Name on the disk -> name in memory, as PEFT sees it, of the tensors that are the same in both.

    A checkpoint that was saved from the model without its head lacks a first part of all names: that of the embedding
    which the head would be tied to tells it.
    """
    base = subject.base
    architecture = architecture_of(base.config)
    rules = rules_for(architecture)
    converted = Memory(tuple(base.tensors), rules).converted
    found = {disk: into_memory(rules, disk) for disk in base.tensors if disk not in converted}
    names = {
        disk: newest_parameter(own[0][0]) for disk, own in found.items() if [piece for _, piece in own] == [Piece(disk)]
    }
    present, prefix = set(names.values()), ""
    for source in (ties_of(architecture) or {}).values():
        first, _, rest = source.partition(".")
        if source not in present and rest in present:
            prefix = f"{first}."
    return {disk: prefix + name for disk, name in names.items()}


def _with_namesakes(modules: Collection[str], tensors: Iterable[str]) -> set[str]:
    """PEFT takes each name for the end of a path, and then wants all that it names."""
    paths = {tensor[:at] for tensor in tensors for at, letter in enumerate(tensor) if letter == "."}
    return {path for path in paths if any(path.endswith(module) for module in modules)}


def _inside(name: str, modules: Collection[str]) -> str:
    """The module of `modules` that holds the tensor."""
    return next((name[:at] for at, letter in enumerate(name) if letter == "." and name[:at] in modules), "")
