"""The report of `inspect` as a page."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

from adaptertool.render.colours import of_family
from adaptertool.render.drift import number, share
from adaptertool.render.inspect import (
    adapted,
    base_size,
    base_summary,
    capacity_lines,
    compatibility,
    config_rows,
    coverage_table,
    manifest_summary,
    module_summary,
    portions_tables,
    relative_norm,
    size_summary,
    span,
    spectra_table,
    title,
)
from adaptertool.render.layer_map import layer_map
from adaptertool.render.made import Made
from adaptertool.render.page import figure, page
from adaptertool.render.sheet import RIGHT, WRONG, Figure, Sheet, SheetTable, tail, without_empty
from adaptertool.render.spectra import spectra
from adaptertool.render.text import size
from adaptertool.reports.inspect import AdapterFacts, CheckpointFacts, InspectedModule, InspectReport

_HEIGHT = 3.4  # inches
_SPECTRA = (
    "Modules whose names differ in numbers only are told together: effective and stable rank, and norms, by their "
    "median; 99% energy and 1% error are the ranks that truncate would leave."
)


def inspect_page(report: InspectReport, made: Made | None = None) -> str:
    figures = _figures(_measured(report), report.checkpoint)
    return page(dataclasses.replace(inspect_sheet(report), figures=figures), made)


def inspect_sheet(report: InspectReport) -> Sheet:
    """What the page says, without its pictures."""
    adapter, checkpoint = report.adapter, report.checkpoint
    about = [("path", report.path), ("base", report.base)]
    return Sheet(
        command="inspect",
        heading=f"{tail(report.path)}: {title(report)}",
        badge=_verdict(report),
        verdict=compatibility(report) or "",
        about=[(name, value) for name, value in about if value],
        facts=_adapter(adapter) if adapter else _checkpoint(checkpoint) if checkpoint else (),
        alerts=report.findings,
        lines=_lines(report),
        tables=_tables(report),
        notes=report.rules + report.notes,
    )


def _measured(report: InspectReport) -> list[InspectedModule]:
    return [module for module in report.adapter.modules if module.spectrum] if report.adapter else []


def _tables(report: InspectReport) -> list[SheetTable]:
    found = []
    if report.adapter is not None:
        head, rows = coverage_table(report.adapter)
        head = (*head[:-1], "parameters it acts on" if report.base is None else head[-1])
        found.append(SheetTable(title="Coverage", head=head, rows=rows))
    if measured := _measured(report):
        names, cells = without_empty(*spectra_table(measured))
        missing = " The size beside the weight needs a base: --base." if report.base is None else ""
        found.append(SheetTable(title="Spectra", about=_SPECTRA + missing, head=names, rows=cells))
    for head, rows in portions_tables(report.checkpoint) if report.checkpoint else ():
        found.append(SheetTable(title=f"Tensors by {head[0]}", head=head, rows=rows))
    return found


def _verdict(report: InspectReport) -> tuple[str, str] | None:
    """A word, and whether it is good."""
    if report.refusal is not None:
        return "refused", WRONG
    return None if report.fits is None else ("fits", RIGHT)


def _adapter(facts: AdapterFacts) -> list[tuple[str, str]]:
    found = [
        ("rank", span(module.rank for module in facts.modules)),
        ("trainable parameters", f"{facts.capacity.trainable:,}"),
    ]
    ranks = [module.spectrum.entropy_rank for module in facts.modules if module.spectrum]
    if ranks:
        found.append(("effective rank (median)", number(statistics.median(ranks))))
    relative = [one for module in facts.modules if (one := relative_norm(module)) is not None]
    if relative:
        found.append(("|Δ| / |W| (median)", number(statistics.median(relative))))
    if (whole := base_size(facts)) is not None and (part := adapted(facts)) is not None:
        found.append(("of the base adapted", share(part / whole)))
    if facts.capacity.load is not None:
        found.append(("data / capacity", number(facts.capacity.load)))
    return found


def _checkpoint(facts: CheckpointFacts) -> list[tuple[str, str]]:
    dtypes = ", ".join(one.name for one in facts.dtypes)
    return [
        ("parameters", f"{facts.parameters:,}"),
        ("bytes", size(facts.bytes)),
        ("tensors", f"{facts.tensors:,}"),
        ("shards", f"{len(facts.shards)}"),
        ("dtypes", dtypes),
    ]


def _lines(report: InspectReport) -> list[tuple[str, str]]:
    if report.adapter is not None:
        facts = report.adapter
        said = [("modules", module_summary(facts)), ("file", size_summary(facts)), ("base", base_summary(facts))]
        return [*said, ("capacity", "; ".join(capacity_lines(facts.capacity)))]
    if report.checkpoint is None:
        return []
    found = [*config_rows(report.checkpoint), ("tied", report.checkpoint.tied)]
    if report.checkpoint.quantised:
        found.append(("quantised", report.checkpoint.quantised))
    if report.checkpoint.stray:
        found.append(("left behind by a merge", ", ".join(report.checkpoint.stray)))
    return [*found, ("made by", manifest_summary(report.checkpoint))]


def _figures(modules: Sequence[InspectedModule], checkpoint: CheckpointFacts | None) -> list[Figure]:
    if checkpoint is not None:
        bars = figure(lambda axes: _bars(axes, checkpoint), _HEIGHT, title="Parameters by family of modules")
        return [(bars, "Parameters by family of modules.")]
    if not modules:
        return []
    ranks = [(module.name, module.spectrum.entropy_rank if module.spectrum else 0.0, False) for module in modules]
    drawn = layer_map(ranks, title="Effective rank by layer and module", label="effective rank")
    found = [(drawn, "Effective rank, exp of the entropy.")]
    relative = [(module.name, one, False) for module in modules if (one := relative_norm(module)) is not None]
    if relative:
        sizes = layer_map(relative, title="Size of the change by layer and module", label="|Δ| / |W|")
        found.append((sizes, "Size of the change, beside that of the weight."))
    return [*found, spectra((module.family, module.spectrum.values) for module in modules if module.spectrum)]


def _bars(axes: Any, facts: CheckpointFacts) -> None:
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415  # an extra

    families = facts.families[::-1]
    colours = [of_family(one.name) for one in families]
    axes.barh([one.name for one in families], [one.parameters for one in families], color=colours)
    axes.set_xlabel("parameters")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(left=False)
