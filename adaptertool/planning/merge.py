"""The plan of a merge of adapters: what becomes of every tensor, made from headers and configs alone. No weights are
read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptertool.errors import UnsupportedError, shown
from adaptertool.kinds import kind_of
from adaptertool.planning.assemble import make_plan
from adaptertool.planning.edits import adapter_edits, changed_by
from adaptertool.planning.schedules import ALL, Choice, Weigher, Weight, usual
from adaptertool.resolution.resolve import Base
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Edit, Output, Plan


def plan_merge(
    subject: Base, adapters: Sequence[Adapter], weights: Sequence[Weight], choice: Choice = ALL, *, mixed: bool = False
) -> Plan:
    """Each adapter is applied, with its weight, to what the ones before it produced; rounded once at the end.

    mixed: the adapters act together, as unmerged ones do at inference: the norms of DoRA are those of the base
    weight and its own delta. For LoRA the two are the same. Source: PEFT 0.21.2, checked against it in the tests.
    """
    edits, changes, notes = adapter_edits(subject, adapters, weights, choice, mixed=mixed)
    if mixed:
        require_mixable(edits)
    notes += Weigher(weights, subject.tensors).notes(changed_by(edits, len(adapters)))
    notes += _replacements(edits)
    notes += [f"{adapter.path} is given twice, and is applied twice" for adapter in _repeated(adapters)]
    own = list(map(usual, weights))
    return make_plan("merge", subject.base, adapters, own, edits, changes, (Output("", 1.0),), notes)


def _replacements(edits: Mapping[str, Sequence[Edit]]) -> list[str]:
    """Say where a saved tensor takes the place of what an adapter before it did."""
    return [
        f"{shown(target)}: the saved tensor of adapter {last.adapter + 1} replaces the changes of those before it"
        for target, chain in edits.items()
        for last in chain
        if kind_of(last).replaces and last.weight != 0 and last.adapter > chain[0].adapter
    ]


def require_mixable(edits: Mapping[str, Sequence[Edit]]) -> None:
    """Refuse what has no agreed meaning when adapters act together: DoRA with a weight, or on a replaced weight, and a
    saved tensor beside another adapter's change. Raises UnsupportedError."""
    for target, chain in edits.items():
        several = len({edit.adapter for edit in chain}) > 1
        if several and (own := next((edit.kind for edit in chain if kind_of(edit).of_weight), None)):
            raise UnsupportedError(
                f"{shown(target)}: what {own} changes depends on the weight; in mixed composition it is not supported"
            )
        if any(kind_of(edit).replaces for edit in chain) and several:
            raise UnsupportedError(f"{shown(target)}: a replaced weight and another adapter in mixed composition")
        if len(chain) > 1 and any(kind_of(edit).norms for edit in chain):
            if any(edit.weight != 1 for edit in chain):
                raise UnsupportedError(f"{shown(target)}: weights other than 1 with DoRA in mixed composition")
            if any(kind_of(edit).replaces for edit in chain):
                raise UnsupportedError(f"{shown(target)}: a replaced weight with DoRA in mixed composition")


def _repeated(adapters: Sequence[Adapter]) -> list[Adapter]:
    paths = [adapter.path.resolve() for adapter in adapters]
    return [adapter for number, adapter in enumerate(adapters) if paths[number] in paths[:number]]
