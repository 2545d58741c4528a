"""Vocabularies of another size: an adapter that holds the whole embedding and head with rows for new tokens.

They take the place of the base's tensors, and whatever else the adapter does to them is done on top.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.architectures.conversion import Pieces
from adaptertool.architectures.traits import Traits
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.kinds import BY_NAME, kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

Found = list[tuple[Module, Pieces]]


def take_resized(
    base: Checkpoint,
    tensors: Mapping[str, Ref],
    ends: Mapping[str, str],
    traits: Traits,
    adapter: Adapter,
    found: Found,
) -> tuple[dict[str, Ref], Found]:
    """The saved tensors with another number of rows than the vocabulary, by the names of those that they replace; and
    all other modules. Raises unless every tensor with a row for each token follows."""
    if not any(BY_NAME[kind].replaces for kind in {module.kind for module, _ in found}):
        return {}, found
    resized: dict[str, Ref] = {}
    rest: Found = []
    for module, pieces in found:
        ref = tensors[pieces[0].disk]
        if kind_of(module).replaces and _is_resized(traits, ref, module, pieces):
            resized[pieces[0].disk] = module.factors[TUNED]
        else:
            rest.append((module, pieces))
    if not resized:
        return {}, found
    sizes = {(tensors[name].spec.shape[0], ref.spec.shape[0]) for name, ref in resized.items()}
    if len(sizes) > 1:
        raise MismatchError(f"{adapter.path} holds embeddings and heads of different sizes: {sorted(sizes)}")
    ((old, new),) = sizes
    if base.is_file or base.config is None:
        raise UnsupportedError(f"{adapter.path} resizes the vocabulary, but {base.path} has no config.json to follow")
    for end, source in ends.items() if adapter.ties_ends else ():
        for here, there in ((source, end), (end, source)):
            if here in resized:
                resized.setdefault(there, resized[here])
    left = [name for name in (*base.tensors, *ends) if old in tensors[name].spec.shape and name not in resized]
    if left:
        raise UnsupportedError(
            f"{adapter.path} resizes {shown(min(resized))} from {old} to {new} rows, but not {shown(left[0])}, which "
            f"is {tensors[left[0]].spec}; all that has a row for each token must be saved with the adapter (PEFT: "
            "save_embedding_layers=True, or modules_to_save; tied ends also by ensure_weight_tying)"
        )
    return resized, rest


def _is_resized(traits: Traits, ref: Ref, module: Module, pieces: Pieces) -> bool:
    here, there = ref.spec.shape, module.factors[TUNED].shape
    plain = len(pieces) == 1 and pieces[0].cut is None and pieces[0].part is None and module.rows is None
    rows = here[:1] != there[:1] and len(here) == len(there) in (1, 2) and here[1:] == there[1:]
    return plain and rows and here[0] in traits.vocabularies
