"""Reports on adapters that were made, as text for a person."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from adaptertool.methods import ON_FACTORS
from adaptertool.render.text import ruled, size, starred
from adaptertool.reports.adapters import (
    AdapterReport,
    ConvertReport,
    ExtractReport,
    LayerSummed,
    LayerTruncated,
    SumReport,
    TensorExtracted,
    TruncateReport,
)

Layer = LayerSummed | LayerTruncated
Told = TypeVar("Told", LayerSummed | LayerTruncated, TensorExtracted)


def truncate_text(report: TruncateReport, *, one_by_one: bool = False) -> str:
    lines = [f"truncate {report.sources[0]} {limit(report.cut)} -> {report.out}" + _dry(report)]
    before, after = (one.rank_before for one in report.layers), (one.rank for one in report.layers)
    kept = sum(one.rank == one.rank_before for one in report.layers)
    as_they_are = f", {kept:,} with their bytes as they are" if kept else ""
    lines.append(f"  layers   {len(report.layers):,}: rank {span(before)} to {span(after)}{as_they_are}")
    lines += _cut_off(report.layers)
    if effects := [one.effect for one in report.layers if one.effect is not None]:
        lines.append(
            f"  effect   the merged weights of {report.base} move by {max(effects):.3g} of their change, at most"
        )
    return "\n".join([*lines, *_costs(report), *_layers(report.layers, one_by_one=one_by_one)])


def sum_text(report: SumReport, *, one_by_one: bool = False) -> str:
    sources = [
        source + (f" (weight {weight:g})" if weight != 1 else "")
        for source, weight in zip(report.sources, report.weights, strict=False)  # the base may come after them
    ]
    how = "" if report.method == "cat" else f" by {report.method}"
    share = "" if report.density in (None, 1) else f" at density {report.density:g}"
    lines = [f"sum {' + '.join(sources)}{how}{share} -> {report.out}" + _dry(report)]
    lines += ruled(report.weight_rules)
    dtypes = ", ".join(sorted({one.dtype for one in report.layers}))
    lines.append(f"  layers   {len(report.layers):,}: rank {span(one.rank for one in report.layers)}, {dtypes}")
    if report.saved:
        lines.append(f"  saved    {len(report.saved):,} tensors that take the place of the base's, as they are")
    if report.method in ON_FACTORS:
        lines.append(
            f"  differs  by {max(one.error for one in report.layers):.3g} of the sum, at most: factors were mixed"
        )
    elif cut := _cut_off([one for one in report.layers if one.error or one.storing]):
        lines += cut
    elif several := sum(not one.exact for one in report.layers):
        count = sum(one.rounded for one in report.layers)
        lines.append(f"  rounded  {count:,} elements of B in {several:,} layers, each by half a unit at most")
    else:
        lines.append("  exact    nothing was rounded")
    return "\n".join([*lines, *_costs(report), *_layers(report.layers, one_by_one=one_by_one)])


def extract_text(report: ExtractReport, *, one_by_one: bool = False) -> str:
    lines = [f"extract {' -> '.join(report.sources)} {limit(report.cut)} -> {report.out}" + _dry(report)]
    by_how: dict[str, list[TensorExtracted]] = {"factors": [], "saved": [], "left out": []}
    for one in report.tensors:
        by_how[one.how].append(one)
    factors = by_how["factors"]
    ranks = span(one.rank for one in factors)
    lines.append(f"  factors  {len(factors):,} layers: rank {ranks}, {report.dtype}; {_worst(factors)}, at worst")
    if saved := by_how["saved"]:
        lines.append(f"  saved    {len(saved):,} tensors whole, as they were tuned")
    if lost := by_how["left out"]:
        lines.append(f"  lost     what was changed in {len(lost):,} tensors, which are left out")
    lines.append(f"  the rest {report.unchanged:,} tensors that are the same in both")
    groups = [f"  {name}  {_became(some)}" for name, some in _groups(report.tensors, one_by_one=one_by_one)]
    return "\n".join([*lines, *_costs(report), *groups])


def convert_text(report: ConvertReport, *, one_by_one: bool = False) -> str:
    way = f"{report.format_before} -> {report.format}"
    lines = [f"convert {report.sources[0]} -> {report.out}, {way}" + _dry(report)]
    lines.append(
        f"  layers   {report.layers:,}: {report.tensors:,} tensors, {report.copied:,} with their bytes as they are"
    )
    if report.rounded:
        lines.append(
            f"  rounded  {report.rounded:,} elements in {len(report.rounded_tensors):,} tensors, each by half a unit "
            "at most: a scale that the format does not say was multiplied in"
        )
    else:
        lines.append("  exact    nothing was rounded")
    lines += _costs(report)
    return "\n".join([*lines, *(f"  rounded  {name}" for name in report.rounded_tensors if one_by_one)])


def _became(some: Sequence[TensorExtracted]) -> str:
    """What tensors of one group became, which may differ in how they are kept."""
    told = []
    for how in dict.fromkeys(one.how for one in some):
        alike = [one for one in some if one.how == how]
        text = f"rank {span(one.rank for one in alike)}  {_worst(alike)}" if how == "factors" else how
        if how == "left out":
            text += f"  |T - W| {max(one.norm for one in alike):.3g}"
        told.append(text + (f"  ({len(alike)} tensors)" if len(alike) > 1 else ""))
    return "; ".join(told)


def _worst(some: Sequence[TensorExtracted]) -> str:
    return f"energy {min(one.energy for one in some):.4g}  error {max(one.error for one in some):.3g}"


def limit(cut: Mapping[str, str | int]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in cut.items())


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
    return [f"  {name}  {_told(some)}" for name, some in _groups(layers, one_by_one=one_by_one)]


def _groups(found: Sequence[Told], *, one_by_one: bool) -> Iterable[tuple[str, list[Told]]]:
    """The tensors or layers to tell of, by name: names that differ in numbers only are told together."""
    groups: dict[str, list[Told]] = {}
    for one in found:
        name = one.tensor if isinstance(one, TensorExtracted) else one.layer
        groups.setdefault(name if one_by_one else starred(name), []).append(one)
    return groups.items()


def _told(layers: Sequence[Layer]) -> str:
    text = f"rank {span(one.rank for one in layers)} of {span(_before(one) for one in layers)}"
    if (energy := min(one.energy for one in layers)) < 1:
        text += f"  energy {energy:.4g}"
    if any(one.error for one in layers):
        text += f"  error {max(one.error for one in layers):.3g}"
    if effects := [one.effect for one in layers if isinstance(one, LayerTruncated) and one.effect]:
        text += f"  effect {max(effects):.3g}"
    return text + (f"  ({len(layers)} layers)" if len(layers) > 1 else "")


def _before(layer: Layer) -> int:
    return layer.rank_before if isinstance(layer, LayerTruncated) else sum(layer.ranks)


def span(numbers: Iterable[int]) -> str:
    found = sorted(numbers)
    return f"{found[0]}" if not found or found[0] == found[-1] else f"{found[0]}–{found[-1]}"
