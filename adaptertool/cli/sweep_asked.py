"""What a sweep is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from adaptertool.cli.making import keys_of
from adaptertool.cli.steps import How, Run
from adaptertool.recipes.numbers import Axis, Point, with_numbers
from adaptertool.recipes.read import Recipe
from adaptertool.records import dataclass
from adaptertool.reports.scores import BEST
from adaptertool.scoring.scorer import Scorer
from adaptertool.scoring.settings import ScoreSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a sweep is asked for."""

    recipe: Recipe
    out: str | None  # in the place of what the recipe says
    axes: tuple[Axis, ...]
    search: str
    scorer: Scorer
    wishes: ScoreSettings
    how: How
    results: Path | None

    def run(self, point: Point, out: str | None, *, apart: bool) -> Run:
        """The run of a point."""
        how = dataclasses.replace(self.how, prints=False, verbose=False)
        if apart:
            how = dataclasses.replace(how, quiet=True, force=False, clean=False)
        return Run(with_numbers(self.recipe, self.axes, point), out, how, apart)

    @property
    def key(self) -> str:
        """What scores belong to: the recipe but for its swept numbers, the inputs as they are now, what scores."""
        run = Run(with_numbers(self.recipe, self.axes, ("*",) * len(self.axes)), self.out, self.how)
        names = [axis.name for axis in self.axes]
        return blake3(repr((sorted(keys_of(run).items()), names, self.scorer.identity)).encode()).hexdigest(8)

    @property
    def target(self) -> Path | None:
        """OUT, if the best is published."""
        text = Run(self.recipe, self.out, self.how).target if self.wishes.keep == BEST else None
        return None if text is None else Path(text)

    def point(self, found: Mapping[str, str]) -> Point:
        """The point that a file has by names. Raises KeyError for one of other numbers."""
        if found.keys() != {axis.name for axis in self.axes}:
            raise KeyError("at")
        return tuple(str(found[axis.name]) for axis in self.axes)
