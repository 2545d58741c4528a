"""A fine-tuned checkpoint beside the base: it must have the same tensors, as far as names correspond
(resolution/correspondence.py), and each is a change of its own."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from adaptertool.architectures.traits import read_traits
from adaptertool.codecs import COMPUTED
from adaptertool.errors import InputError, MismatchError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.kinds import FULL
from adaptertool.kinds.full import TUNED
from adaptertool.planning.schedules import ALL, Choice
from adaptertool.resolution.components import names_of
from adaptertool.resolution.correspondence import counterparts
from adaptertool.resolution.nearest import nearest
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref


class Pairs(NamedTuple):
    """The tensors of the base and of a tuned checkpoint."""

    computed: list[tuple[Ref, Ref]]  # arithmetic is done on these
    fixed: list[tuple[Ref, Ref]]  # integers and codes have no values between: these must be the same
    copies: list[tuple[Ref, Ref]]  # of the tuned one, a tied end that the base leaves out, and what it must be equal to
    notes: list[str]
    passed: list[str]  # unwanted, and without a counterpart that fits

    @property
    def tuned(self) -> dict[str, Ref]:
        """The tensors of the tuned checkpoint by the names of the base."""
        return {ref.spec.name: other for ref, other in (*self.computed, *self.fixed)}


def pairs_of(base: Checkpoint, tuned: Checkpoint, unwanted: Collection[str] = ()) -> Pairs:
    """Raises MismatchError unless names correspond and shapes agree, and dtypes where there is no arithmetic.

    unwanted: names of tensors that are passed over where they do not agree
    """
    if (base.gguf is None) != (tuned.gguf is None):
        one = base if base.gguf is not None else tuned
        raise MismatchError(f"{one.path} is GGUF, and what it is held against is not: give both in one format")
    found, passed = counterparts(base, tuned), list[str]()
    for names, ours, theirs in ((found.missing, base, tuned), (found.extra, tuned, base)):
        passed += [name for name in names if name in unwanted]
        if only := [name for name in names if name not in unwanted]:
            first, *more = only
            near = nearest(first, theirs.tensors)
            hint = f"; nearest there: {', '.join(map(shown, near))}" if near else ""
            raise MismatchError(
                f"{len(only)} tensors are in {ours.path} but not in {theirs.path}: "
                f"{', '.join(map(shown, (first, *more[:4])))}{' ...' if len(only) > 5 else ''}"
                f"{_in_parts(first, theirs) or hint}"
            )
    pairs = Pairs([], [], list(found.copies), list(found.notes), passed)
    for name, other in found.tensors.items():
        ref = base.tensors[name]
        here, there = ref.spec, other.spec
        computed = here.dtype in COMPUTED and there.dtype in COMPUTED
        if here.shape != there.shape or (here.dtype != there.dtype and not computed):
            if name in unwanted:
                passed.append(name)
                continue
            raise MismatchError(f"{shown(name)} is {here} in {ref.path}, but {there} in {other.path}")
        (pairs.computed if computed else pairs.fixed).append((ref, other))
    for end, source in pairs.copies:
        if end.spec[1:] != source.spec[1:]:
            raise MismatchError(no_copy(end, source))
    return pairs


def no_copy(end: Ref, source: Ref) -> str:
    """What to say of an end that the base leaves out, and that the tuned checkpoint holds with other values."""
    return (
        f"{end.path}: {shown(end.spec.name)} is not the same as {shown(source.spec.name)}, but the base ties both and "
        "stores one: save the base with both, and tie_word_embeddings: false"
    )


def _in_parts(name: str, other: Checkpoint) -> str:
    """What to say where one side has fused what the other has apart."""
    try:
        pieces = names_of(other).find(name)
    except InputError:
        return ""
    if not pieces or (len(pieces) == 1 and pieces[0].cut is None):
        return ""
    how = "a part of" if len(pieces) == 1 else f"{len(pieces)} tensors such as"
    return (
        f"; there it is {how} {shown(pieces[0].disk)}. Tensors are compared whole: save both with the same version of "
        "transformers"
    )


def full_edits(
    base: Checkpoint, tuned: Checkpoint, choice: Choice = ALL
) -> tuple[dict[str, list[Edit]], list[tuple[Ref, Ref]], list[str]]:
    """One `full` edit for each tensor that is chosen, the pairs that must be equal instead, and notes. Raises
    MismatchError."""
    choice.check(base.tensors)
    edits: dict[str, list[Edit]] = {}
    casts: set[str] = set()
    traits, pairs = read_traits(base), pairs_of(base, tuned)
    equal = [pair for pair in pairs.computed if pair[0].spec.name in traits.beside_codes]
    for ref, other in pairs.computed:
        if ref.spec.name in traits.beside_codes:
            continue
        if not choice.takes(ref.spec.name):
            continue
        traits.refuse_quantised(ref)
        name, there = ref.spec.name, other.spec.dtype
        here = ref.spec.dtype if base.stored_as is None else base.stored_as.get(ref.spec.name, ref.spec.dtype)
        edits[name] = [Edit(FULL.name, 0, name, {TUNED: other}, 1.0, 1.0)]
        if other.made is not None:
            casts.add(f"{tuned.path} is quantised: its numbers are used, decoded")
        elif here != there:
            casts.add(
                f"tuned tensors of dtype {there} are stored as {here}{'' if base.stored_as else ', as in the base'}"
            )
    notes = [*pairs.notes, *sorted(casts), *traits.notes_on(edits)]
    count = len(pairs.computed) - sum(ref.spec.name in traits.beside_codes for ref, _ in pairs.computed)
    notes += choice.notes(tuned.path, count - len(edits), count)
    if base.config is not None and tuned.config is not None and base.config != tuned.config:
        notes.append("config.json of base and tuned checkpoint differ; the base's is kept, like all its assets")
    if base.gguf != tuned.gguf:
        notes.append("the fields of both GGUF files differ; the base's are kept")
    return edits, [*equal, *pairs.fixed, *pairs.copies], notes
