"""Reports as text for a person."""

from __future__ import annotations

import itertools
from collections import Counter

from adaptertool.errors import by
from adaptertool.reports import PlanReport, RunReport, TensorPlan
from adaptertool.spec import EXACT


def size(count: int) -> str:
    """Bytes in decimal units, as disks and hubs count them."""
    if count < 1000:
        return f"{count} B"
    number = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.5 or unit == "TB":
            break
    return f"{number:.3g} {unit}"


def run_text(report: RunReport) -> str:
    lines = [f"{_what(report)} -> {report.out}"]
    lines.append(f"  tensors  {report.tensors_edited:,} edited, {report.tensors_copied:,} copied")
    lines.append(f"  bytes    {size(report.bytes_read)} read, {size(report.bytes_written)} written")
    if report.precision == EXACT:
        lines.append(f"  exact    {report.settled:,} elements near the middle of two values, settled exactly")
    rate = size(round(report.bytes_per_second))
    lines.append(f"  time     {report.seconds:.2f} s, {rate}/s, {_threads(report.threads)}")
    lines.append(f"  memory   {size(report.peak_memory)} at the peak")
    if len(report.outputs) > 1:
        lines += [f"  {path}" for path in report.outputs]
    return "\n".join(lines)


def plan_text(report: PlanReport, *, every_tensor: bool) -> str:
    lines = [f"{_what(report)} -> {report.out}   (dry run: nothing is written)"]
    lines.append(f"  tensors  {report.tensors_edited:,} to edit, {report.tensors_copied:,} to copy")
    lines.append(f"  bytes    {size(report.bytes_read)} to read, {size(report.bytes_written)} to write")
    lines.append(f"  disk     {size(report.disk_needed)} needed, {size(report.disk_free)} free")
    lines.append(f"  memory   at most {size(report.memory_predicted)} ({_threads(report.threads)})")
    if len(report.outputs) > 1:
        lines.append(f"  outputs  {len(report.outputs)}: {report.outputs[0]} ... {report.outputs[-1]}")
    counts: Counter[str] = Counter()
    for tensor in report.tensors:
        counts[_tensor(tensor, report, one_by_one=every_tensor)] += 1
    lines += [f"  {line}" + (f"  ({count} tensors)" if count > 1 else "") for line, count in counts.items()]
    return "\n".join(lines)


def _what(report: RunReport | PlanReport) -> str:
    sources = [
        source + (f" (weight {weight:g})" if weight != 1 else "")
        for source, weight in zip(report.sources, report.weights, strict=True)
    ]
    alphas = (
        f" at alpha {', '.join(f'{alpha:g}' for alpha in report.alphas)}" if report.command.startswith("wise") else ""
    )
    return f"{report.command} {report.base} + {' + '.join(sources)}{alphas}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


def _tensor(tensor: TensorPlan, report: PlanReport, *, one_by_one: bool) -> str:
    """A line for one tensor; numbers in its name become * so that the layers fall together."""
    name = tensor.name
    if not one_by_one:
        name = ".".join(["*" if part.isdecimal() else part for part in name.split(".")])
    edits = [
        edit.kind
        + (f" scale {edit.scale:g}" if edit.kind != "full" else "")
        + (f" weight {edit.weight:g}" if edit.weight != 1 else "")
        + (f" {edit.rows} rows" if edit.rows is not None else "")
        + (" transposed" if edit.transposed else "")
        + (f" of {report.sources[edit.adapter]}" if len(report.sources) > 1 else "")
        for edit in tensor.edits
    ]
    folded = [(text, len(list(same))) for text, same in itertools.groupby(edits)]  # experts, or the same twice
    text = " then ".join(f"{count} times {text}" if count > 1 else text for text, count in folded)
    return f"{tensor.action}  {name}  {tensor.dtype} {by(tensor.shape)}" + (f"  {text}" if text else "")
