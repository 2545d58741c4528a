"""The report of `truncate` as a page."""

from __future__ import annotations

import dataclasses
import statistics

from adaptertool.render.adapters import limit, span
from adaptertool.render.drift import number
from adaptertool.render.layer_map import layer_map
from adaptertool.render.made import Made
from adaptertool.render.page import page
from adaptertool.render.sheet import Figure, Sheet, SheetTable, tail, without_empty
from adaptertool.render.spectra import spectra
from adaptertool.reports.adapters import TruncateReport

_STORING = (
    "Energy is the share of the squared spectrum that is kept; storing is what rounding to the stored dtype adds to "
    "the error, at most"
)
_EFFECT = "; effect is how far the merged weight moves, over the change that the adapter made"


def truncate_page(report: TruncateReport, made: Made | None = None) -> str:
    """The page of a report with spectra, as HTML."""
    return page(dataclasses.replace(truncate_sheet(report), figures=_figures(report)), made)


def truncate_sheet(report: TruncateReport) -> Sheet:
    """What the page says, without its pictures."""
    about = [("adapter", report.sources[0]), ("cut", limit(report.cut)), ("written to", report.out)]
    if report.dry_run:
        about[-1] = "written to", f"{report.out} (dry run: nothing is written)"
    if report.base:
        about.append(("effect on", report.base))
    return Sheet(
        command="truncate",
        heading=f"{tail(report.sources[0])} truncated to a smaller rank",
        about=about,
        facts=_facts(report),
        tables=[_layers(report)],
        notes=report.notes,
    )


def _layers(report: TruncateReport) -> SheetTable:
    names, rows = without_empty(
        ("layer", "rank", "kept", "energy", "error", "storing", "effect"),
        [
            [
                one.layer,
                f"{one.rank_before}",
                f"{one.rank}",
                f"{one.energy:.6g}",
                number(one.error),
                number(one.storing),
                number(one.effect),
            ]
            for one in report.layers
        ],
    )
    about = _STORING + (_EFFECT if report.base else "") + "."
    return SheetTable(title="Layers", about=about, head=names, rows=rows)


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


def _figures(report: TruncateReport) -> list[Figure]:
    layers = report.layers
    ranks: dict[str, list[int]] = {}
    for one in layers:
        ranks.setdefault(one.family, []).append(one.rank)
    kept = {family: statistics.median(some) for family, some in ranks.items()}
    cells = [(one.layer, one.error, False) for one in layers]
    errors = layer_map(cells, title="Error by layer and module", label="error (relative)")
    found = [
        spectra(((one.family, one.values) for one in layers), kept),
        (errors, "Error, |Δ - Δ'| / |Δ| of what was cut off."),
    ]
    if len({one.rank for one in layers}) > 1:
        cells = [(one.layer, one.rank, False) for one in layers]
        ranks_kept = layer_map(cells, title="Rank by layer and module", label="rank", whole=True)
        found.append((ranks_kept, "Rank kept."))
    if effects := [(one.layer, one.effect, False) for one in layers if one.effect is not None]:
        moved = layer_map(effects, title="Effect by layer and module", label="effect (relative)")
        found.append((moved, "Effect, |W'' - W'| / |W' - W| of the merged weights."))
    return found
