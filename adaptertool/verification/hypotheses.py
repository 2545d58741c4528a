"""What known faults would have made of a base: other edits than the right ones, with the name of the fault."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from adaptertool.architectures.changed import as_trained
from adaptertool.kinds import kind_of
from adaptertool.kinds.made import turned
from adaptertool.kinds.parts import misread
from adaptertool.spec.plan import Edit
from adaptertool.verification.other_rows import at_thirds, in_own_halves
from adaptertool.verification.subject import Candidate

Edits = tuple[Edit, ...]
Reading = Callable[[Edit], Edit]


class Hypothesis(NamedTuple):
    code: str
    edits: Edits
    detail: str = ""


def hypotheses(subject: Candidate, readings: Mapping[str, Reading], names: Sequence[str]) -> Iterator[Hypothesis]:
    """What the edits of a tensor may be instead.

    readings: other ways to read the adapters' configs, by code: an edit -> as it would be then
    names: of the adapters
    """
    edits = subject.step.edits
    if not edits:
        return
    yield Hypothesis("not-applied", ())
    adapters = sorted({edit.adapter for edit in edits})
    if len(adapters) > 1:
        said = {one: f"adapter {one + 1}" + (f", {names[one]}," if one < len(names) else "") for one in adapters}
        for one in adapters:
            yield Hypothesis(
                "not-applied", tuple(edit for edit in edits if edit.adapter != one), f"{said[one]} is not in it"
            )
        for one in adapters:
            own = tuple(edit for edit in edits if edit.adapter == one)
            yield Hypothesis("not-applied", own, f"only {said[one]} is in it")
            yield Hypothesis("applied-twice", edits + own, f"{said[one]} is in it twice")
    yield Hypothesis("applied-twice", edits + edits)
    yield Hypothesis("negated", tuple(edit._replace(weight=-edit.weight) for edit in edits))
    yield from _misreadings(subject, edits)
    for code, reading in readings.items():
        if (read := tuple(map(reading, edits))) != edits:
            yield Hypothesis(code, read)
    before = tuple(edit._replace(factors=as_trained(edit.factors)) for edit in edits)
    if before != edits:
        yield Hypothesis("rows-not-reordered", before, "its heads have their rows as the adapter has them")
    (out, *inner), kinds = subject.step.spec.shape or (1,), [kind_of(edit) for edit in edits]
    if (as_named := in_own_halves(edits, out)) != edits:
        yield Hypothesis("halves-not-swapped", as_named, "its halves are in the order that the adapter has them in")
    for cut in at_thirds(edits, out) if len(inner) == 1 else ():
        yield Hypothesis("cut-in-thirds", cut, "q, k and v are put at thirds of its rows")
    plain = all(kind.linear or kind.is_product for kind in kinds) and all(edit.view is None for edit in edits)
    if plain and out == math.prod(inner) and (len(inner) == 1 or not any(kind.elementwise for kind in kinds)):
        yield Hypothesis("transposed", tuple(map(_turned, edits)))


def _turned(edit: Edit) -> Edit:
    if kind_of(edit).elementwise:
        return edit._replace(factors={role: turned(ref) for role, ref in edit.factors.items()})
    return edit._replace(transposed=not edit.transposed)


def _misreadings(subject: Candidate, edits: Edits) -> Iterator[Hypothesis]:
    """Those of the kinds of the changes, and of what these come down to: each in all edits that it may be in."""
    changes = [
        list(some)
        for _, some in itertools.groupby(edits, lambda edit: id(edit if edit.part_of is None else edit.part_of))
    ]
    faults: dict[tuple[str, str], None] = {}
    for change in changes:
        kinds = [kind_of(edit.part_of) for edit in change[:1] if edit.part_of] + [kind_of(edit) for edit in change]
        faults |= {(one.code, one.detail): None for kind in kinds for one in kind.misreadings}
    for code, detail in faults:
        made = [_read_so(subject, change, (code, detail)) for change in changes]
        if any(made):
            meant = itertools.chain(*(new or old for new, old in zip(made, changes, strict=True)))
            yield Hypothesis(code, tuple(meant), detail)


def _read_so(subject: Candidate, change: Sequence[Edit], fault: tuple[str, str]) -> Sequence[Edit]:
    """The edits of one change as a tool with this fault has them; empty where it makes no difference."""
    first, step = change[0], subject.step
    shape = step.spec.shape if first.view is None else first.view.shape
    base = step.base if first.view is None and step.base.shape == shape else None
    if first.part_of is not None:
        for one in kind_of(first.part_of).misreadings:
            if (one.code, one.detail) == fault and (found := misread(first, one, shape, base, whole=True)):
                return found
    made, changed = [], False
    for edit in change:
        own = [one for one in kind_of(edit).misreadings if (one.code, one.detail) == fault]
        found = [new for one in own for new in misread(edit, one, shape, base, whole=False)]
        changed |= bool(found)
        made += found or [edit]
    return made if changed else []
