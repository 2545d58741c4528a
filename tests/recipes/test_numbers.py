"""The numbers of a recipe: how their places are called, what may stand there, and the recipe with others."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.cli.fields import commands
from adaptertool.errors import UsageError
from adaptertool.files.yamlfile import parse_yaml
from adaptertool.recipes.given import node_of
from adaptertool.recipes.numbers import axes_of, require_few, start_of, text_of, with_numbers
from adaptertool.recipes.read import Recipe, read_recipe

STEPS = """
steps:
  - name: both
    sum: {adapters: [one, two], weights: [0.50, "layers.0=2"], rank: 8}
  - merge: {base: "2024", adapters: ["${both}"], weights: [1e-1], density: 0.4, method: ties, sha256: true, out: m}
  - verify: {merged: m, alpha: "0,1"}
"""


def read(text: str) -> Recipe:
    (node,) = parse_yaml(text, "r.yaml")
    return read_recipe(node, "r.yaml", Path(), commands())


def one(**fields: Any) -> Recipe:
    step = {"merge": {"base": "b", "adapters": ["a"], "out": "o", **fields}}
    return read_recipe(node_of(step), "recipe", Path(), commands())


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("both.weights.0", "both.weights.0"),
        ("steps.0.weights.0", "both.weights.0"),
        ("steps.0.sum.weights.0", "both.weights.0"),
        ("both.sum.rank", "both.rank"),
        ("rank", "both.rank"),
        ("steps.1.weights.0", "steps.1.weights.0"),
        ("merge.weights.0", "steps.1.weights.0"),
        ("density", "steps.1.density"),
        ("steps.1.density.0", "steps.1.density"),
    ],
)
def test_places(typed: str, name: str) -> None:
    recipe = read(STEPS)
    (axis,) = axes_of(recipe, {typed: "1,3"})
    assert (axis.name, axis.values) == (name, ("1", "3"))
    other = with_numbers(recipe, (axis,), ("3",))
    changed = [
        (number, field)
        for number, (old, new) in enumerate(zip(recipe.steps, other.steps, strict=True))
        for field in old.values
        if old.values[field] != new.values[field]
    ]
    assert changed == [(axis.place.step, axis.place.field.name)]
    assert with_numbers(other, (axis,), (axis.place.own,)) == recipe


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        ("weights.0", r"weights\.0 is a number of several steps: say which, both\.weights\.0 or steps\.1\.weights\.0"),
        ("both.weights.1", r"is no number: at r\.yaml:4:\d+ stands 'layers\.0=2'"),
        ("both.weights.2", r"is none of the 2 values at r\.yaml:4:\d+, which are counted from 0"),
        ("both.weights.-1", r"is none of the 2 values"),
        ("both.weights.²", r"is none of the 2 values"),
        ("both.weights", r"is a list, at r\.yaml:4:\d+: say which of its 2 values"),
        ("both.rank.0", r"is no list, at r\.yaml:4"),
        ("both.ranks", r"the recipe has no number both\.ranks; did you mean both\.rank or both"),
        ("base", "is no number: at r.yaml:5:.* stands '2024'"),
        ("method", "is no number: at r.yaml:5:.* stands 'ties'"),
        ("sha256", "is no number: at r.yaml:5:.* stands 'true'"),
        ("steps.2.alpha", "is no number: at r.yaml:6:.* stands '0,1'"),
        ("steps.3.alpha", "the recipe has no number"),
        ("steps", "the recipe has no number"),
        ("seed", "its numbers are both.weights.0, both.rank, steps.1.weights.0, steps.1.density"),
        ("", "the recipe has no number"),
        ("both", "the recipe has no number"),
        ("\x1b[1m", r"has no number \\x1b\[1m"),
    ],
)
def test_places_that_are_none(typed: str, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        axes_of(read(STEPS), {typed: "1"})


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ("0:0.3:0.1", ["0", "0.1", "0.2", "0.3"]),
        ("1:0:-0.5", ["1", "0.5", "0"]),
        ("0.50, 1e-3,-2", ["0.5", "0.001", "-2"]),
        ("1E+2,-0.0,1e20", ["100", "0", "1E+20"]),
        ([0.1, 1, Decimal("0.10000000000000000000000000000000001")],
         ["0.1", "1", "0.10000000000000000000000000000000001"]),
        ("0.00000000000000000000000000000001:0.00000000000000000000000000000003:1e-32", ["1E-32", "2E-32", "3E-32"]),
        ("1:1.0000000000000000000000000000000002:1e-34",
         ["1", "1.0000000000000000000000000000000001", "1.0000000000000000000000000000000002"]),
        (0.25, ["0.25"]),
    ],
)  # fmt: skip
def test_values_are_exact(values: Any, texts: list[str]) -> None:
    (axis,) = axes_of(one(weights=["1"]), {"weights.0": values})
    assert [*axis.values] == texts


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ("0:1:0", "STEP must not be 0"),
        ("0:1:-0.1", "STEP must be positive"),
        ("0:1", "START:STOP:STEP"),
        ("0:1e9:1", "more than 1,000 points"),
        ("nan", "not a finite number"),
        ("0,inf", "not a finite number"),
        ("0:1:nan", "not a finite number"),
        ("1e999", "not a finite number"),
        ("", "not a number"),
        ("0,,1", "not a number"),
        ("0.5,50e-2", r"a value of weights\.0 is given twice"),
        ("half", "not a number"),
        ([], r"no value of weights\.0 given"),
    ],
)
def test_values_that_are_none(values: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        axes_of(one(weights=["1"]), {"weights.0": values})


def test_whole_numbers_stay_whole() -> None:
    recipe = one(seed=3)
    assert axes_of(recipe, {"seed": "1:3:1"})[0].values == ("1", "2", "3") and start_of(axes_of(recipe, {"seed": 2}))
    with pytest.raises(UsageError, match=r"seed is a whole number, not 1\.5"):
        axes_of(recipe, {"seed": "1:3:0.5"})


def test_a_number_is_swept_once() -> None:
    with pytest.raises(UsageError, match=r"merge\.weights\.0 is weights\.0, which is swept already"):
        axes_of(one(weights=["1"]), {"weights.0": "1", "merge.weights.0": "2"})
    with pytest.raises(UsageError, match="at least"):
        axes_of(one(weights=["1"]), {})
    with pytest.raises(UsageError, match=r"merge at .* has no `weights`; write it there first"):
        axes_of(one(), {"weights.0": "1"})
    with pytest.raises(UsageError, match="it has no numbers"):
        axes_of(one(), {"wieghts.0": "1"})


def test_a_grid_has_a_limit() -> None:
    axes = axes_of(one(weights=["1"], seed=1), {"weights.0": "1:100:1", "seed": "1:10:1"})
    require_few(axes)
    more = axes_of(one(weights=["1"], seed=1), {"weights.0": "1:91:1", "seed": "1:11:1"})
    with pytest.raises(UsageError, match=r"1,001 points \(91 of weights\.0 × 11 of seed\), and 1,000 is the limit"):
        require_few(more)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(0, 3))
def test_a_number_has_one_text(number: Decimal, zeros: int) -> None:
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    same = Decimal((sign, digits + (0,) * zeros, exponent - zeros))
    if abs(exponent) < 400:
        assert text_of(same) == text_of(number) and Fraction(text_of(number)) == Fraction(number)
