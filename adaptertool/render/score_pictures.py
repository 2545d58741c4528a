"""What pictures of scores share: which are drawn, on what scales, and how names and legends stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from adaptertool.errors import shown
from adaptertool.render.colours import INK, OTHER, of_series
from adaptertool.render.page import WIDE
from adaptertool.reports.scores import MEAN, Scored, value_of

_LEAST, _MOST = 1e-99, 1e99  # of what is drawn; beyond, what is computed for the axes may overflow
_LONGEST = 28  # letters of a name in a picture
TOO_LARGE = "Some scores are too large, or too small, to be drawn."
AXES = {"logit": ", on logit axes", "log": ", on logarithmic axes", "linear": ""}


class Style(NamedTuple):
    """How the line of a score is drawn. label: in the legend; None where it has no colour of its own."""

    colour: str
    line: str
    label: str | None


def styles(names: Sequence[str], asked: Sequence[str | None], *, has_mean: bool) -> list[Style]:
    """How each score is drawn; the last is the mean of the others, where there is one.

    asked: scores that have a colour first."""
    real = names[:-1] if has_mean else names
    colours = of_series(real, [name for name in real if name in asked])
    found = []
    for name in names:
        mean = has_mean and name == MEAN
        colour = INK if mean else colours.get(name, OTHER)
        found.append(Style(colour, "--" if mean else "-", short(name) if mean or name in colours else None))
    return found


def drawable(points: Sequence[Scored], names: list[str]) -> bool:
    """Whether all scores are of a size that can be drawn; False where there are none."""
    sizes = [abs(value_of(point, name)) for point in points if point.scores for name in names]
    return bool(sizes) and all(not size or _LEAST <= size <= _MOST for size in sizes)


def scale_of(values: Sequence[float]) -> str:
    """The scale of an axis: logit where all values lie in (0, 1), as shares do; else by how far apart they are."""
    if all(0 < value < 1 for value in values):
        return "logit"
    return "log" if min(values) > 0 and max(values) >= WIDE * min(values) else "linear"


def legend(axes: Any) -> None:
    """A grid, and above the picture what is drawn."""
    axes.grid(color=OTHER, alpha=0.25, linewidth=0.6)
    if labels := axes.get_legend_handles_labels()[1]:
        columns = 4 if max(map(len, labels)) <= _LONGEST // 2 else 2
        axes.legend(
            frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2
        )


def short(name: str) -> str:
    """The beginning and the end of a name: names that are long differ there."""
    half = _LONGEST // 2
    return text if len(text := shown(name)) <= _LONGEST else f"{text[: half - 1]}…{text[-half:]}"
