"""The report of `truncate` as a page."""

from __future__ import annotations

import statistics
from typing import Any

from adaptertool.render.adapters import limit, span
from adaptertool.render.drift import number
from adaptertool.render.layer_map import layer_map
from adaptertool.render.page import render
from adaptertool.render.spectra import spectra
from adaptertool.reports.adapters import TruncateReport


def truncate_page(report: TruncateReport) -> str:
    """The page of a report with spectra, as HTML."""
    return render(
        "truncate.html",
        filters={"number": number},
        report=report,
        limit=limit(report.cut),
        facts=_facts(report),
        figures=_figures(report),
    )


def _facts(report: TruncateReport) -> list[tuple[str, str]]:
    layers = report.layers
    found = [
        ("layers", f"{len(layers):,}"),
        ("rank before", span(one.rank_before for one in layers)),
        ("rank kept", span(one.rank for one in layers)),
        ("energy kept, at least", f"{min(one.energy for one in layers):.4g}"),
        ("error, at most", number(max(one.error for one in layers))),
    ]
    if effects := [one.effect for one in layers if one.effect is not None]:
        found.append(("effect, at most", number(max(effects))))
    return found


def _figures(report: TruncateReport) -> list[tuple[Any, str]]:
    layers = report.layers
    ranks: dict[str, list[int]] = {}
    for one in layers:
        ranks.setdefault(one.family, []).append(one.rank)
    kept = {family: statistics.median(some) for family, some in ranks.items()}
    cells = [(one.layer, one.error, False) for one in layers]
    found = [
        spectra(((one.family, one.values) for one in layers), kept),
        (layer_map(cells, title="Error by layer and module"), "Error, |Δ - Δ'| / |Δ| of what was cut off."),
    ]
    if len({one.rank for one in layers}) > 1:
        cells = [(one.layer, one.rank, False) for one in layers]
        found.append((layer_map(cells, title="Rank by layer and module"), "Rank kept."))
    if effects := [(one.layer, one.effect, False) for one in layers if one.effect is not None]:
        moved = layer_map(effects, title="Effect by layer and module")
        found.append((moved, "Effect, |W'' - W'| / |W' - W| of the merged weights."))
    return found
