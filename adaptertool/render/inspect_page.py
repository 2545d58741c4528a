"""The report of `inspect` as a page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

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
from adaptertool.render.page import NEUTRAL, figure, render
from adaptertool.render.spectra import spectra
from adaptertool.render.text import size
from adaptertool.reports.inspect import AdapterFacts, CheckpointFacts, InspectedModule, InspectReport

_HEIGHT = 3.4  # inches


def inspect_page(report: InspectReport) -> str:
    adapter, checkpoint = report.adapter, report.checkpoint
    measured = [module for module in adapter.modules if module.spectrum] if adapter else []
    return render(
        "inspect.html",
        filters={},
        report=report,
        title=title(report),
        verdict=_verdict(report),
        compatibility=compatibility(report),
        facts=_adapter(adapter) if adapter else _checkpoint(checkpoint) if checkpoint else (),
        lines=_lines(report),
        figures=_figures(measured, checkpoint),
        coverage=coverage_table(adapter) if adapter else None,
        spectra=spectra_table(measured) if measured else None,
        portions=portions_tables(checkpoint) if checkpoint else (),
    )


def _verdict(report: InspectReport) -> tuple[str, str] | None:
    """A word, and whether it is good."""
    if report.refusal is not None:
        return "refused", "wrong"
    return None if report.fits is None else ("fits", "right")


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


def _figures(modules: Sequence[InspectedModule], checkpoint: CheckpointFacts | None) -> list[tuple[Any, str]]:
    if checkpoint is not None:
        bars = figure(lambda axes: _bars(axes, checkpoint), _HEIGHT, title="Parameters by family of modules")
        return [(bars, "Parameters by family of modules.")]
    if not modules:
        return []
    ranks = [(module.name, module.spectrum.entropy_rank if module.spectrum else 0.0, False) for module in modules]
    found = [(layer_map(ranks, title="Effective rank by layer and module"), "Effective rank, exp of the entropy.")]
    relative = [(module.name, one, False) for module in modules if (one := relative_norm(module)) is not None]
    if relative:
        found.append((layer_map(relative, title="Size of the change by layer and module"), "Size, |Δ| / |W|."))
    return [*found, spectra((module.family, module.spectrum.values) for module in modules if module.spectrum)]


def _bars(axes: Any, facts: CheckpointFacts) -> None:
    from matplotlib.ticker import EngFormatter  # noqa: PLC0415  # an extra

    families = facts.families[::-1]
    axes.barh([one.name for one in families], [one.parameters for one in families], color=NEUTRAL)
    axes.set_xlabel("parameters")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(left=False)
