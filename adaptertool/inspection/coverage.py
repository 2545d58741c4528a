"""Which families of modules an adapter changes, and how much of the base lies in them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from adaptertool.architectures.families import SHOWN_FIRST, family_of
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.inspection.described import Found
from adaptertool.reports.inspect import Coverage
from adaptertool.spec.plan import Edit, Plan
from adaptertool.spec.tensors import Ref, View


def coverage_of(modules: Sequence[Found], base: Checkpoint | None, plan: Plan | None) -> tuple[Coverage, ...]:
    """The coverage of each family that the adapter or the base has. Without a base the sizes of what is adapted are
    those that the factors are for."""
    count = Counter(module.family for module in modules)
    trainable: Counter[str] = Counter()
    adapted: Counter[str] = Counter()
    unknown: set[str] = set()
    for module in modules:
        trainable[module.family] += sum(ref.spec.numel for ref in module.refs)
        if plan is None and (base is not None or module.adapted is None):  # a base that it does not fit
            unknown.add(module.family)
        elif plan is None:
            adapted[module.family] += module.adapted or 0
    whole: Counter[str] = Counter()
    for name, ref in (base.tensors if base else {}).items():
        whole[family_of(name)] += ref.spec.numel
    for step in plan.steps() if plan else ():
        adapted[family_of(step.spec.name)] += _touched(step.edits, step.base)
    return tuple(
        Coverage(
            family,
            count[family],
            trainable[family],
            None if family in unknown else adapted[family],
            whole[family] if base else None,
        )
        for family in SHOWN_FIRST
        if count[family] or whole[family]
    )


def _touched(edits: Iterable[Edit], ref: Ref) -> int:
    """Elements of a tensor that are changed."""
    views = [edit.view for edit in edits]
    return min(ref.spec.numel, sum(ref.spec.numel if view is None else math.prod(view.shape) for view in views))


def places_of(modules: Sequence[Found], plan: Plan) -> Mapping[int, list[tuple[Ref, View | None]]]:
    """Where in the base the weights are that low-rank modules change, by the number of the module."""
    numbers = {
        ref.spec.name: number for number, module in enumerate(modules) if module.has_spectrum for ref in module.refs
    }
    places: dict[int, list[tuple[Ref, View | None]]] = {}
    for step in plan.steps():
        for edit in step.edits:
            known = {numbers[ref.spec.name] for ref in edit.factors.values() if ref.spec.name in numbers}
            for number in known:
                places.setdefault(number, []).append((step.base, edit.view))
    return places
