"""A picture of the spectra of what an adapter changes."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adaptertool.render.colours import INK, of_family
from adaptertool.render.page import figure

_HEIGHT = 3.4  # inches

Spectrum = Sequence[float]  # singular values over the largest, descending


def spectra(modules: Iterable[tuple[str, Spectrum]], kept: Mapping[str, float] | None = None) -> tuple[str, str]:
    """The figure of spectra, with its caption. modules: family and spectrum of each; kept: of a family, how many of
    them stay."""
    families: dict[str, list[Spectrum]] = {}
    for family, values in modules:
        families.setdefault(family, []).append(values)
    drawn = figure(lambda axes: _draw(axes, families, kept or {}), _HEIGHT, title="Spectra by family of modules")
    caption = "Singular values over the largest: the median of each family, and the range."
    return drawn, caption + (" A diamond is the rank that was kept, by the median." if kept else "")


def _draw(axes: Any, families: Mapping[str, Sequence[Spectrum]], kept: Mapping[str, float]) -> None:
    """Draw by position: the median, and the range."""
    for family, found in families.items():
        colour = of_family(family)
        places = range(max(map(len, found)))
        columns = [[values[place] for values in found if place < len(values)] for place in places]
        numbers = [place + 1 for place in places]
        axes.fill_between(
            numbers, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.2, linewidth=0
        )
        medians = list(map(statistics.median, columns))
        axes.plot(numbers, medians, color=colour, marker=".", label=family)
        if family in kept:
            height = medians[min(round(kept[family]), len(medians)) - 1]
            axes.plot(kept[family], height, color=colour, marker="D", markersize=8, markeredgecolor=INK, zorder=3)
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("singular value")
    axes.set_ylabel("over the largest")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
