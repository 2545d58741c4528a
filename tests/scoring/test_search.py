"""Searches over points, against all that there are, and against the same search written plainly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.scoring.search import Point, coordinate_search, grid

Table = dict[Point, float | None]


def searched(start: Point, values: Sequence[Sequence[str]], table: Table, minimise: bool) -> tuple[Point, list[Point]]:
    asked: list[Point] = []

    def score(point: Point) -> float | None:
        asked.append(point)
        return table[point]

    return coordinate_search(start, values, score, minimise=minimise), asked


def plainly(start: Point, values: Sequence[Sequence[str]], table: Table, minimise: bool) -> Point:
    """Whole rounds over all numbers, until one changes nothing."""

    def worth(point: Point) -> float:
        found = table[point]
        return float("-inf") if found is None else -found if minimise else found

    here = start
    while True:
        before = here
        for place, own in enumerate(values):
            line = [(*here[:place], value, *here[place + 1 :]) for value in own]
            here = max([here, *line], key=worth)  # the first of equal ones, and where it is if none is better
        if here == before:
            return here


@st.composite
def tables(draw: st.DrawFn) -> tuple[Point, list[list[str]], Table, bool]:
    values = draw(
        st.lists(st.lists(st.sampled_from("01234"), min_size=1, max_size=4, unique=True), min_size=1, max_size=3)
    )
    start = tuple(draw(st.sampled_from("01234x")) for _ in values)
    every = itertools.product(*({*own, first} for own, first in zip(values, start, strict=True)))
    few = st.one_of(st.none(), st.integers(-3, 3).map(float))  # few, so that many are equal
    return start, values, {point: draw(few) for point in sorted(every)}, draw(st.booleans())


@given(tables())
def test_it_ends_where_no_number_makes_it_better(case: tuple[Point, list[list[str]], Table, bool]) -> None:
    start, values, table, minimise = case
    best, asked = searched(*case)
    assert best == plainly(*case) and asked[0] == start
    scores = [found for point in asked if (found := table[point]) is not None]
    if scores:
        assert table[best] == (min(scores) if minimise else max(scores))
        # So the first of all that were asked for with the best score is the one, as a table of them says too
        assert next(point for point in asked if table[point] == table[best]) == best
    else:
        assert best == start
    for place, own in enumerate(values):
        for value in own:
            assert (*best[:place], value, *best[place + 1 :]) in asked


def test_a_grid_is_every_combination() -> None:
    assert [*grid([["0", "1"], ["a"], ["2", "3"]])] == [
        ("0", "a", "2"), ("0", "a", "3"), ("1", "a", "2"), ("1", "a", "3"),
    ]  # fmt: skip


@pytest.mark.parametrize("minimise", [False, True])
def test_of_equal_ones_it_is_the_first(minimise: bool) -> None:
    flat: Table = dict.fromkeys(itertools.product("012", "012"), 1.0)
    assert searched(("1", "2"), [["0", "1"], ["0"]], flat, minimise)[0] == ("1", "2")  # none is better than the start
    flat["1", "2"] = None
    assert searched(("1", "2"), [["2", "0", "1"], ["0"]], flat, minimise)[0] == ("2", "2")
