"""Reports on adapters that were made of adapters, as text for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from adaptertool.adapter_reports import AdapterReport, LayerSummed, LayerTruncated, SumReport, TruncateReport
from adaptertool.render.text import size

Layer = LayerSummed | LayerTruncated


def truncate_text(report: TruncateReport, *, every_layer: bool = False) -> str:
    limit = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in report.cut.items())
    lines = [f"truncate {report.sources[0]} {limit} -> {report.out}" + _dry(report)]
    before, after = (one.rank_before for one in report.layers), (one.rank for one in report.layers)
    kept = sum(one.rank == one.rank_before for one in report.layers)
    as_they_are = f", {kept:,} with their bytes as they are" if kept else ""
    lines.append(f"  layers   {len(report.layers):,}: rank {_span(before)} to {_span(after)}{as_they_are}")
    lines += _cut_off(report.layers)
    return "\n".join([*lines, *_costs(report), *_layers(report.layers, one_by_one=every_layer)])


def sum_text(report: SumReport, *, every_layer: bool = False) -> str:
    sources = [
        source + (f" (weight {weight:g})" if weight != 1 else "")
        for source, weight in zip(report.sources, report.weights, strict=True)
    ]
    lines = [f"sum {' + '.join(sources)} -> {report.out}" + _dry(report)]
    dtypes = ", ".join(sorted({one.dtype for one in report.layers}))
    lines.append(f"  layers   {len(report.layers):,}: rank {_span(one.rank for one in report.layers)}, {dtypes}")
    if report.saved:
        lines.append(f"  saved    {len(report.saved):,} tensors that take the place of the base's, as they are")
    if cut := _cut_off([one for one in report.layers if one.error or one.storing]):
        lines += cut
    elif several := sum(not one.exact for one in report.layers):
        count = sum(one.rounded for one in report.layers)
        lines.append(f"  rounded  {count:,} elements of B in {several:,} layers, each by half a unit at most")
    else:
        lines.append("  exact    nothing was rounded")
    return "\n".join([*lines, *_costs(report), *_layers(report.layers, one_by_one=every_layer)])


def _dry(report: AdapterReport) -> str:
    return "   (dry run: nothing is written)" if report.dry_run else ""


def _cut_off(layers: Sequence[Layer]) -> list[str]:
    """The worst of all."""
    if not layers:
        return []
    energy, error, storing = min(x.energy for x in layers), max(x.error for x in layers), max(x.storing for x in layers)
    return [
        f"  energy   {energy:.6g} of the squared spectrum kept, at least",
        f"  error    {error:.3g} of a change cut off, at most, and {storing:.2g} by storing (relative, Frobenius norm)",
    ]


def _costs(report: AdapterReport) -> list[str]:
    return [
        f"  bytes    {size(report.bytes_read)} read, {size(report.bytes_written)} written",
        f"  time     {report.seconds:.2f} s, {report.threads} thread{'s' if report.threads > 1 else ''}",
        f"  memory   {size(report.peak_memory)} at the peak",
    ]


def _layers(layers: Sequence[Layer], *, one_by_one: bool) -> list[str]:
    """Layers whose names differ in numbers only are told together."""
    groups: dict[str, list[Layer]] = {}
    for one in layers:
        name = one.layer
        if not one_by_one:
            name = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        groups.setdefault(name, []).append(one)
    return [f"  {name}  {_told(some)}" for name, some in groups.items()]


def _told(layers: Sequence[Layer]) -> str:
    text = f"rank {_span(one.rank for one in layers)} of {_span(_before(one) for one in layers)}"
    if any(one.error for one in layers):
        text += f"  energy {min(one.energy for one in layers):.4g}  error {max(one.error for one in layers):.3g}"
    return text + (f"  ({len(layers)} layers)" if len(layers) > 1 else "")


def _before(layer: Layer) -> int:
    return layer.rank_before if isinstance(layer, LayerTruncated) else sum(layer.ranks)


def _span(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return f"{found[0]}" if not found or found[0] == found[-1] else f"{found[0]}–{found[-1]}"
