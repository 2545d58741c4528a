"""The scales of what a single file holds: by the alphas beside its factors, each module by its own."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.tensors import read_tensor
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.header import Header
from adaptertool.files.reader import Inputs
from adaptertool.formats.kohya.keys import ALPHA, NAMES, NUMBERS, ON_INPUT
from adaptertool.kinds import kind_of
from adaptertool.kinds.lycoris_oft import BOUND
from adaptertool.kinds.spelling import Spelling
from adaptertool.patterns import regex
from adaptertool.spec.adapter import Module
from adaptertool.spec.tensors import Ref

_SEVERAL = 3  # modules that an error names


_FUSED = regex(r"(?:qkv|linear1)$")  # ends of the names of layers that sd-scripts trains in parts, with split_qkv


def note_on_parts(header: Header, modules: Sequence[Module]) -> list[str]:
    """What to say of layers whose parts were trained apart (split_qkv of sd-scripts): their factors are joined, of 3 or
    4 times the rank, and beside them is the alpha of one."""
    said = header.metadata.get("ss_network_dim", "")
    rank = int(said) if said.isdecimal() and len(said) < 9 else 0  # 9 digits are no rank
    parts = [
        module for module in modules if _FUSED.search(module.name) and module.rank in (3 * rank, 4 * rank) and rank
    ]
    if not parts or "split_qkv" not in header.metadata.get("ss_network_args", ""):
        return []
    times = parts[0].rank // rank
    return [
        f"{header.path}: {len(parts):,} layers, such as {shown(parts[0].name)}, have {times} times the rank of the "
        f"training ({rank}), and the alpha that it had: so sd-scripts saves what it trained with split_qkv, and the "
        f"scale, alpha/r as everywhere, is {times} times smaller than in training"
    ]


class Numbers:
    """The tensors of a file that are single numbers."""

    def __init__(self, header: Header, tensors: Mapping[str, Mapping[str, Ref]]) -> None:
        """tensors: by module, and what follows its name. Raises InputError for what is no number."""
        self._header = header
        self._refs = {
            (name, ending): ref for name, own in tensors.items() for ending, ref in own.items() if ending in NUMBERS
        }
        with Inputs({header.path: header.stamp}) as inputs:
            self._numbers = {place: _number(inputs, ref) for place, ref in self._refs.items()}

    @property
    def alphas(self) -> list[Ref]:
        return [ref for (_, ending), ref in self._refs.items() if ending == ALPHA]

    def require_meant(self, modules: Sequence[Module]) -> None:
        """Raises UnsupportedError for an alpha of 0, and for none, or one of an unknown tool, where it is a bound of
        the factors; and for a setting of the training that one of the kinds refuses."""
        file, unbounded = self._header.path, {module.name for module in modules if _spelling_of(module).unbounded}
        lycoris = self._header.metadata.get("ss_network_module", "").startswith("lycoris.")
        for name in sorted(unbounded):
            found = self._numbers.get((name, ALPHA))
            if found == 0 or (found and 0 < found < 2**100 and (lycoris or name.startswith("lycoris_"))):
                continue
            raise UnsupportedError(
                f"{file}: {shown(name + ALPHA)} is {'not there' if found is None else found}; LyCORIS has a bound of "
                "OFT's blocks there, or 0, and names itself in ss_network_module of the metadata, or in the names of "
                "modules (lycoris_). Without that they may be those of sd-scripts, which mean something else, and are "
                "not supported"
            )
        zero = [
            self._refs[name, ending].spec.name
            for (name, ending), alpha in self._numbers.items()
            if ending == ALPHA and alpha == 0 and name not in unbounded
        ]
        if zero:
            raise UnsupportedError(
                f"{file}: {', '.join(map(shown, zero[:_SEVERAL]))} {'is' if len(zero) == 1 else 'are'} 0, which "
                "trainers take for the rank, and those who merge for 0: what was meant is not known; write the rank "
                "there"
            )
        said = self._header.metadata.get("ss_network_args", "")
        for name, why in {pair for module in modules for pair in _spelling_of(module).refused.items()}:
            if re.search(rf"{name}\W+true", said, re.IGNORECASE):
                raise UnsupportedError(f"{file}: ss_network_args has {name}: {why}")

    def scaled(self, module: Module) -> Module:
        """The module with its scale, which is 1 without alpha, as all who load such files take it; and with the side
        that its factor is for. Raises InputError where that is not told."""
        spelling, side = _spelling_of(module), self._numbers.get((module.name, ON_INPUT))
        if spelling.settings:
            if side not in (0, 1):
                said = "is not there" if side is None else f"is {side:g}"
                raise InputError(
                    f"{self._header.path}: {shown(module.name + ON_INPUT)} {said}; (IA)³ of LyCORIS has 0 or 1 there, "
                    "and others no such factors"
                )
            return module._replace(settings={ON_INPUT[1:]: side == 1})
        if spelling.unbounded and (bound := self._numbers[module.name, ALPHA]):
            return module._replace(settings={BOUND: bound})
        if side is not None:
            raise UnsupportedError(
                f"{self._header.path}: {shown(module.name + ON_INPUT)} stands beside factors of another kind than (IA)³"
            )
        alpha = self._numbers.get((module.name, ALPHA))
        if alpha is None or not module.rank:
            return module
        return module._replace(scale=spelling.scaling(alpha, module.rank))


def _number(inputs: Inputs, ref: Ref) -> float:
    where, dtype = f"{ref.path}: {shown(ref.spec.name)}", ref.spec.dtype
    whole = dtype.startswith(("I", "U"))
    if ref.spec.numel != 1 or (dtype not in COMPUTED and not whole):
        raise InputError(f"{where} is {ref.spec}; it is to be one number")
    if whole:
        stored = inputs.read(ref.path, ref.offset, ref.spec.nbytes)
        return float(int.from_bytes(stored, "little", signed=dtype.startswith("I")))
    (number,) = read_tensor(inputs, ref, 0, 1).tolist()
    if not math.isfinite(number):
        raise InputError(f"{where} is {number}; the adapter is damaged")
    return float(number)


def _spelling_of(module: Module) -> Spelling:
    return next(own for name, own in kind_of(module).spellings.items() if name in NAMES)
