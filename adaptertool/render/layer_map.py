"""A picture of what there is for each module of each layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from adaptertool.errors import shown
from adaptertool.render.colours import ALARMING
from adaptertool.render.page import figure

_OUTSIDE = "other"  # the row of what belongs to no layer

Cells = dict[tuple[str, str], tuple[float, bool]]  # by layer and module: the largest value, and whether it is marked


def layer_map(modules: Iterable[tuple[str, float, bool]], *, title: str, label: str, whole: bool = False) -> str:
    """modules: name, value from 0 on, and whether it is marked with a cross. label: what the colours mean; whole:
    values are counts. The scale begins at 0, so that what differs little looks alike."""
    rows, columns, cells = _grid(modules)
    height = min(12.0, max(3.4, 1.6 + 0.2 * len(rows)))
    return figure(lambda axes: _draw(axes, (rows, columns, cells), label, whole=whole), height, title=title)


def _grid(modules: Iterable[tuple[str, float, bool]]) -> tuple[list[str], list[str], Cells]:
    """Layers, modules, and what there is of each."""
    cells: Cells = {}
    for name, value, marked in modules:
        parts = name.removesuffix(".weight").split(".")
        layer = next((part for part in parts if part.isdecimal()), _OUTSIDE)
        after = parts[parts.index(layer) + 1 :] if layer != _OUTSIDE else parts[-2:]
        place = layer, shown(".".join("*" if part.isdecimal() else part for part in after) or parts[-1])
        largest, before = cells.get(place, (0.0, False))
        cells[place] = max(largest, value), before or marked
    rows = sorted({row for row, _ in cells}, key=lambda row: (row == _OUTSIDE, int(row) if row.isdecimal() else 0))
    return rows, sorted({column for _, column in cells}), cells


def _draw(axes: Any, grid: tuple[list[str], list[str], Cells], label: str, *, whole: bool) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator  # noqa: PLC0415  # an extra

    rows, columns, cells = grid
    values = np.ma.masked_invalid(
        [[cells.get((row, column), (np.nan, False))[0] for column in columns] for row in rows]
    )
    top = float(values.max() or 1) if values.count() else 1.0
    mesh = axes.pcolormesh(values, cmap="cividis", vmin=0, vmax=top, edgecolors="face", linewidth=0.3)
    for (row, column), (_, marked) in cells.items():
        if marked:
            place = columns.index(column) + 0.5, rows.index(row) + 0.5
            axes.plot(*place, marker="X", color=ALARMING, markeredgecolor="white", markeredgewidth=0.5)
    step = max(1, len(rows) // 40)
    axes.set_xticks([n + 0.5 for n in range(len(columns))], columns, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks([n + 0.5 for n in range(0, len(rows), step)], rows[::step])
    axes.set_ylabel("layer")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    plain = FuncFormatter(lambda value, _: f"{value:g}")  # never two ticks that read the same
    bar = axes.figure.colorbar(mesh, ax=axes, pad=0.02, ticks=MaxNLocator(5, integer=whole), format=plain, label=label)
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face")  # no gaps between its colours
