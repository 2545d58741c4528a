"""Patterns for names, and gradients over layers."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.spec.schedule import Rule, Schedule, at_place, fits, places_of

NAME = "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("layers.0-15.mlp", True),
        ("layers.4-15.mlp", False),
        ("layers.3", True),
        ("layers.03", False),
        ("layers.0-3.mlp.up_proj.weight", True),
        (NAME, True),
        ("layers.3.up_proj", False),  # parts follow one another
        ("layers.*.*.up_proj", True),
        ("*_proj", True),
        ("up*", True),
        ("p_proj", False),  # a part is meant whole
        ("mlp.up.proj", False),
        ("*", True),
        ("/layers\\.[0-3]\\.mlp/", True),
        ("/^layers/", False),
        ("/mlp.*=weight/", False),
    ],
)
def test_patterns(pattern: str, wanted: bool) -> None:
    assert fits(pattern, NAME) is wanted


@pytest.mark.parametrize("pattern", ["", "a..b", ".a", "a.", "9-3", "0-99999", "/(/", "/a{99999999999}/"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        fits(pattern, NAME)


PART = st.text("ab1-*+[", min_size=1, max_size=3)


@given(
    st.lists(PART, min_size=1, max_size=3), st.lists(st.text("ab1+[", min_size=1, max_size=3), min_size=1, max_size=5)
)
def test_a_pattern_is_a_run_of_parts(pattern: list[str], name: list[str]) -> None:
    """Against a search part by part, in names, which have one at least."""

    def one(part: str, text: str) -> bool:
        if span := re.fullmatch(r"(\d+)-(\d+)", part):
            return text.isdecimal() and str(int(text)) == text and int(span[1]) <= int(text) <= int(span[2])
        first, *rest = part.split("*")
        if not rest:
            return first == text
        if not text.startswith(first):
            return False
        text, last = text[len(first) :], rest.pop()
        for middle in rest:
            found = text.find(middle)
            if found < 0:
                return False
            text = text[found + len(middle) :]
        return text.endswith(last)

    joined = ".".join(pattern)
    if re.search(r"(?:^|\.)(\d+)-(\d+)(?:\.|$)", joined) and any(
        int(part.split("-")[0]) > int(part.split("-")[1]) for part in pattern if re.fullmatch(r"\d+-\d+", part)
    ):
        return
    places = range(len(name) - len(pattern) + 1)
    wanted = any(all(map(one, pattern, name[place:])) for place in places)
    assert fits(joined, ".".join(name)) is (wanted or joined == "*")


def test_layers_are_counted_by_what_stands_before_their_number() -> None:
    names = ["m.layers.0.a", "m.layers.2.a", "m.layers.1.experts.7.w", "vision.blocks.0.x", "embed", "layer1.x"]
    assert places_of(names) == {
        "m.layers.0.a": 0,
        "m.layers.2.a": 1,
        "m.layers.1.experts.7.w": Fraction(1, 2),
        "vision.blocks.0.x": 1,  # the only one
    }


@given(st.lists(st.decimals(-2, 2, places=2), min_size=1, max_size=5), st.integers(1, 40), st.data())
def test_gradients(numbers: list[Decimal], layers: int, data: st.DataObject) -> None:
    """Between the two that are nearest, in rationals; at the ends the ends."""
    layer = data.draw(st.integers(0, layers - 1))
    place = Fraction(layer, layers - 1) if layers > 1 else Fraction(1)
    found, gaps = at_place(numbers, place), len(numbers) - 1
    if place == 1:
        assert found == Fraction(numbers[-1])
    elif layer == 0:
        assert found == Fraction(numbers[0])
    hats = [max(Fraction(0), 1 - abs(place * gaps - number)) for number in range(len(numbers))]
    assert found == sum(hat * Fraction(number) for hat, number in zip(hats, numbers, strict=True))


def test_the_last_rule_that_fits_counts() -> None:
    half, zero, gradient = (
        Rule("mlp", (Decimal("0.5"),)),
        Rule("layers.3", (Decimal(0),)),
        Rule("*", (Decimal(0), Decimal(1))),
    )
    assert Schedule(Decimal(1), (half, zero)).at(NAME, None) == 0
    assert Schedule(Decimal(1), (zero, half)).at(NAME, None) == Fraction(1, 2)
    assert Schedule(Decimal("0.1"), (half,)).at("model.norm.weight", None) == Fraction(1, 10)
    assert Schedule(Decimal(7), (gradient,)).at(NAME, Fraction(1, 3)) == Fraction(1, 3)
    assert Schedule(Decimal(7), (gradient,)).at("model.norm.weight", None) == 7  # in no layer
