"""Experts in adapters as Tinker saves them (tinker-cookbook 0.6): the factors of all experts of a projection in one
tensor, lora_A (E, r, in) and lora_B (E, out, r), where one that all have in common has a 1 for E. w1 is the gate, w3
what goes up, and w2 down; of experts that have no gate w1 goes up.

They are read as factors of single experts, which is what tinker_cookbook.weights.build_lora_adapter makes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.formats.peft.keys import PREFIX
from adaptertool.patterns import regex
from adaptertool.spec.tensors import Ref

_KEY = regex(r"(?P<before>.*)\.experts\.(?P<layer>w[123])\.lora_(?P<role>[AB])(?:\.weight)?")
_NAMES = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def apart(
    file: Path, tensors: Mapping[str, Ref], base_has: Callable[[str], bool]
) -> tuple[Mapping[str, Ref], list[str]]:
    """The tensors with a key for each expert, and a note of it. Raises MismatchError where the two factors are not of
    as many experts, UnsupportedError where nothing tells how many there are."""
    stacked = {
        key: match for key, ref in tensors.items() if len(ref.spec.shape) == 3 and (match := _KEY.fullmatch(key))
    }
    if not stacked:
        return tensors, []
    experts: dict[tuple[str, str], set[int]] = {}
    for key, match in stacked.items():
        experts.setdefault((match["before"], match["layer"]), set()).add(tensors[key].shape[0])
    found = dict[str, Ref]()
    for key, ref in tensors.items():
        if (one := stacked.get(key)) is None:
            found[key] = ref
            continue
        before, layer = one["before"], one["layer"]
        counts = experts[before, layer]
        if len(counts - {1}) > 1:
            raise MismatchError(f"{file}: {shown(key)} is {ref.spec}, and its other factor is of other experts")
        if counts == {1}:
            raise UnsupportedError(
                f"{file}: both factors of {shown(before)}.experts.{layer} are those of all experts, and how many there "
                "are is not known: make an adapter of PEFT's of it (tinker_cookbook.weights.build_lora_adapter)"
            )
        name = _NAMES[layer]
        if layer == "w1" and (before, "w3") not in experts and _has_no_gate(before, base_has):
            name = _NAMES["w3"]
        for expert in range(max(counts)):
            new = f"{before}.experts.{expert}.{name}.lora_{one['role']}.weight"
            found[new] = _of_expert(ref, expert if ref.shape[0] > 1 else 0).renamed(new)
    return found, [f"{file}: its experts are stacked, as Tinker saves them, and are read one by one"]


def _has_no_gate(before: str, base_has: Callable[[str], bool]) -> bool:
    gate, up = (f"{before.removeprefix(PREFIX)}.experts.0.{_NAMES[layer]}.weight" for layer in ("w1", "w3"))
    return base_has(up) and not base_has(gate)


def _of_expert(ref: Ref, expert: int) -> Ref:
    """One of the matrices (rows, columns) of a stack (E, rows, columns)."""
    one = ref.rows(expert, expert + 1)
    return one._replace(spec=one.spec._replace(shape=ref.shape[1:]))
