"""Steps of a plan that are alike: the same arithmetic, of factors of the same dtypes and shapes, into tensors of one
dtype and shape. Those of layers and experts are, so there are few forms where there are tens of thousands of
tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from adaptertool.spec.plan import Plan, Step


class Forms(NamedTuple):
    """What is alike in a plan."""

    firsts: list[Step]  # the first step of each form
    numbers: list[int]  # of each step, in the order of the plan: which form it has

    def members(self, plan: Plan) -> Iterator[tuple[Step, int]]:
        """Each step of the plan, and its form."""
        return zip(plan.steps(), self.numbers, strict=True)


def forms_of(plan: Plan) -> Forms:
    """The forms of the steps of a plan."""
    return forms_among(plan.steps())


def forms_among(steps: Iterable[Step]) -> Forms:
    """The forms of steps. Those of one form differ in nothing but names, modules and places."""
    known: dict[tuple[object, ...], int] = {}
    firsts, numbers = list[Step](), list[int]()
    for step in steps:
        number = known.setdefault(_form(step), len(firsts))
        if number == len(firsts):
            firsts.append(step)
        numbers.append(number)
    return Forms(firsts, numbers)


def _form(step: Step) -> tuple[object, ...]:
    spec, _, base, edits, blend, fisher, makes, keeps, share = step
    form: list[object] = [spec[1:], None if base.spec is spec else base.spec[1:], makes, share]
    if blend is not None:
        form.append((blend.method, blend.weights, blend.sources, *blend.settings.items()))
    if base.made is not None or keeps is not None or fisher is not None:
        form.append(id(step))  # a form of its own: codes may be cut in ways of their own
    for edit in edits:
        form.append(edit[:2])  # kind and source
        form.append(edit[4:9])  # from its scale on, all but the names
        for role, ref in edit.factors.items():
            form.append(role)
            form.append(ref.spec[1:])
            if ref.columns is not None or ref.made is not None:
                form.append((ref.columns, ref.made and ref.made.costly))
    return tuple(form)
