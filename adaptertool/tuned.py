"""A fine-tuned checkpoint beside the base: it must have the same tensors, and each is a change of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from adaptertool.errors import MismatchError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.kinds import FULL
from adaptertool.kinds.full import TUNED
from adaptertool.resolve import nearest
from adaptertool.spec import COMPUTED, Edit, Ref
from adaptertool.traits import read_traits


def pairs_of(base: Checkpoint, tuned: Checkpoint, unwanted: Collection[str] = ()) -> Iterator[tuple[Ref, Ref, bool]]:
    """The tensors of both, and whether arithmetic is done on them: integers and codes have no values between.

    Raises MismatchError unless names and shapes agree, and dtypes where there is no arithmetic. Those of `unwanted`
    that do not agree are passed over.
    """
    for ours, theirs in ((base, tuned), (tuned, base)):
        if only := [name for name in ours.tensors if name not in theirs.tensors and name not in unwanted]:
            near = nearest(only[0], theirs.tensors)
            hint = f"; nearest there: {', '.join(map(shown, near))}" if near else ""
            raise MismatchError(
                f"{len(only)} tensors are in {ours.path} but not in {theirs.path}: "
                f"{', '.join(shown(name) for name in only[:5])}{' ...' if len(only) > 5 else ''}{hint}"
            )
    for name, ref in base.tensors.items():
        if (other := tuned.tensors.get(name)) is None:
            continue
        here, there = ref.spec, other.spec
        computed = here.dtype in COMPUTED and there.dtype in COMPUTED
        if here.shape != there.shape or (here.dtype != there.dtype and not computed):
            if name in unwanted:
                continue
            raise MismatchError(f"{shown(name)} is {here} in {ref.path}, but {there} in {other.path}")
        yield ref, other, computed


def full_edits(base: Checkpoint, tuned: Checkpoint) -> tuple[dict[str, list[Edit]], list[tuple[Ref, Ref]], list[str]]:
    """One `full` edit for each tensor, the pairs that must be equal instead, and notes. Raises MismatchError."""
    edits: dict[str, list[Edit]] = {}
    equal: list[tuple[Ref, Ref]] = []
    casts: set[str] = set()
    traits = read_traits(base)
    for ref, other, computed in pairs_of(base, tuned):
        if not computed or ref.spec.name in traits.beside_codes:
            equal.append((ref, other))
            continue
        traits.refuse_quantised(ref)
        name, here, there = ref.spec.name, ref.spec.dtype, other.spec.dtype
        edits[name] = [Edit(FULL.name, 0, name, {TUNED: other}, 1.0, 1.0)]
        if here != there:
            casts.add(f"tuned tensors of dtype {there} are stored as {here}, as in the base")
    notes = [*sorted(casts), *traits.notes_on(edits)]
    if base.config is not None and tuned.config is not None and base.config != tuned.config:
        notes.append("config.json of base and tuned checkpoint differ; the base's is kept, like all its assets")
    return edits, equal, notes
