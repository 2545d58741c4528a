"""The report of `diff` as text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from adaptertool.errors import shown
from adaptertool.render.text import size, starred
from adaptertool.reports.diff import DiffReport, TensorDiff

_LISTED = 40  # lines, each of a tensor or of several that are alike
STATUSES = {
    "changed": "changed",
    "dtype-changed": "of another dtype",
    "shape-changed": "of another shape",
    "missing": "only in A",
    "extra": "only in B",
}


def diff_text(report: DiffReport, *, every_tensor: bool = False) -> str:
    lines = [f"diff {report.a} {report.b}: {'equal' if report.equal else 'DIFFERENT'}"]
    counts = Counter(one.status for one in report.tensors)
    parts = [f"{counts[status]:,} {text}" for status, text in STATUSES.items() if counts[status]]
    lines.append(f"  tensors  {', '.join([f'{report.same:,} the same bits', *parts])}")
    lines.append(f"  bytes    {size(report.bytes_read)} read")
    lines.append(f"  time     {report.seconds:.2f} s, {report.threads} thread{'s' if report.threads > 1 else ''}")
    found = list(map(_line, report.tensors)) if every_tensor else list(_folded(report.tensors))
    listed = found if every_tensor else found[:_LISTED]
    lines += [f"  {text}" for text in listed]
    if len(found) > len(listed):
        lines.append(f"  ... and {len(found) - len(listed):,} more (-v lists all)")
    return "\n".join(lines)


def _folded(tensors: Sequence[TensorDiff]) -> Iterator[str]:
    """Lines in which the layers fall together: the one that has moved most of each."""
    groups: dict[tuple[str, str], list[TensorDiff]] = {}
    for one in tensors:
        groups.setdefault((starred(one.name), one.status), []).append(one)
    for (form, _), group in groups.items():
        worst = max(group, key=lambda one: (one.rel_error or 0, one.share or 0))
        if len(group) == 1:
            yield _line(worst)
        else:
            yield f"{_line(dataclasses.replace(worst, name=form))}  ({len(group):,} tensors{_which(worst)})"


def _which(worst: TensorDiff) -> str:
    return "" if worst.share is None else ", the one that changed most"


def _line(one: TensorDiff) -> str:
    text = f"{shown(one.name)}  {STATUSES[one.status]}"
    if one.status in ("dtype-changed", "shape-changed"):
        text += f": {one.a}, {one.b}"
    if one.share is not None:
        text += f"  in {one.share:.3g} of its elements"
    figures = {
        "rel": one.rel_error, "max": one.max_abs, "ulp": one.max_ulp, "not finite": one.not_finite or None,
        "stable rank": one.stable_rank, "effective rank": one.effective_rank,
    }  # fmt: skip
    for label, value in figures.items():
        if value is not None:
            text += f"  {label} {value:,}" if isinstance(value, int) else f"  {label} {value:.3g}"
    return text
