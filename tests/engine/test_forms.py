"""Steps that are alike are told by one of them: what is said of a plan is what each step by itself would say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import FIXTURES

import adaptertool
from adaptertool.arithmetic.stretch import small_of
from adaptertool.arithmetic.verbatim import only_cast, verbatim
from adaptertool.engine.budget import bytes_to_read, count_elements, count_tensors
from adaptertool.engine.forms import forms_among, forms_of
from adaptertool.output.preview import sketched, tensors_of
from adaptertool.render.run import alike
from adaptertool.spec.plan import Plan

BASE, LORA, RSLORA, TUNED = (FIXTURES / name for name in ("base", "lora", "rslora", "tuned"))


def merge(*sources: Any, **more: Any) -> Callable[[], Plan]:
    return lambda: adaptertool.prepare_merge(BASE, [*sources], **more)


PLANS: dict[str, Callable[[], Plan]] = {
    "lora": merge(LORA),
    "two": merge(LORA, RSLORA, weights=["0.5", "1", "mlp=0,2"]),
    "layers": merge(LORA, weights=["0.5", "layers.0-1=0:1"]),
    "cast": merge(LORA, dtype="f32"),
    "ties": merge(LORA, TUNED, method="ties", density=["0.5", "mlp=0.3"]),
    "wise": lambda: adaptertool.prepare_wise(BASE, TUNED, [0, 0.5, 1], weights=["mlp=0.3:0.6"]),
    "mergekit": lambda: adaptertool.prepare_mergekit("fixtures/ties.yml"),
}


@pytest.mark.parametrize("case", PLANS)
def test_what_is_told_of_forms_is_told_of_each_step(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FIXTURES.parent)
    plan = PLANS[case]()
    forms, steps = forms_of(plan), list(plan.steps())
    assert len(forms.firsts) < len(steps) == len(forms.numbers)
    for step, number in zip(steps, forms.numbers, strict=True):  # of all that a form stands for
        first = forms.firsts[number]
        assert (step.spec[1:], step.blend, step.share) == (first.spec[1:], first.blend, first.share)
        for mine, other in zip(step.edits, first.edits, strict=True):
            assert mine._replace(module="", factors={}) == other._replace(module="", factors={})
            shapes = ({role: ref.spec[1:] for role, ref in one.factors.items()} for one in (mine, other))
            assert next(shapes) == next(shapes)
    told = tensors_of(plan)
    report, sketches = sketched(plan, "out")
    for every in (False, True):
        assert alike(sketches(), report, one_by_one=every) == alike(told, report, one_by_one=every)
    alphas = [output.alpha for output in plan.outputs]
    other = {s.spec.name for s in steps if any(verbatim(s, s.at(alpha)) is not s.stored for alpha in alphas)}
    cast = {s.spec.name for s in steps if s.spec.name in other and all(only_cast(s, s.at(alpha)) for alpha in alphas)}
    assert count_tensors(plan) == (len({s.spec.name for s in steps}), len(other - cast), len(cast))
    changed = [s for s in steps if s.spec.name in other - cast]  # each of the base's size: one that is cast is not
    assert count_elements(plan) == count_elements(plan, forms) == sum(s.spec.numel for s in changed)
    places = {}
    for step in steps:
        for ref in (step.base, *(ref for edit in step.edits for ref in edit.factors.values())):
            places[str(ref.path), ref.offset] = ref.spec.nbytes
    small = sum(shard.data_start for shard in plan.shards) + sum(asset.size for asset in plan.assets)
    assert bytes_to_read(plan) == report.bytes_read == sum(places.values()) + small


@pytest.mark.parametrize("case", PLANS)
def test_the_kernel_makes_all_of_a_form_alike(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which tensors may be part of a stretch, and how each is then made, is asked of the first of its form."""
    monkeypatch.chdir(FIXTURES.parent)
    plan = PLANS[case]()
    forms = forms_of(plan)
    assert forms == forms_among(list(plan.steps()))
    for step, number in forms.members(plan):
        first = forms.firsts[number]
        assert small_of(step) == small_of(first)
        assert (verbatim(step, 1) is step.stored) == (verbatim(first, 1) is first.stored)


def test_what_differs_in_a_number_is_another_form() -> None:
    """A weight, a scale, a dtype: each layer of a gradient over four has a form of its own."""
    plain, graded, two = (merge(LORA, **more)() for more in ({}, {"weights": ["*=0:1"]}, {"weights": ["q_proj=2"]}))
    edited = [len([step for step in forms_of(plan).firsts if step.edits]) for plan in (plain, graded, two)]
    layers = 4
    assert edited[1] == layers * edited[0] and edited[0] < edited[2] <= 2 * edited[0]
