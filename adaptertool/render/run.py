"""What a plan and a run say, as text for a person."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from adaptertool.errors import by
from adaptertool.kinds import BY_NAME
from adaptertool.render.cost import cost_lines
from adaptertool.render.text import numbered, ruled, size, starred
from adaptertool.reports.run import EditReport, KeptReport, PlanReport, Report, RunReport, TensorPlan, TensorSketch
from adaptertool.spec.choices import EXACT

Told = TensorPlan | TensorSketch


def run_text(report: RunReport) -> str:
    lines = [f"{_what(report)} -> {report.out}", *ruled(report.weight_rules)]
    cast = f", {report.tensors_cast:,} cast" if report.tensors_cast else ""
    lines.append(f"  tensors  {report.tensors_edited:,} edited, {report.tensors_copied:,} copied{cast}")
    lines.append(f"  bytes    {size(report.bytes_read)} read, {size(report.bytes_written)} written")
    if report.elements_edited and report.elements_changed and report.survival:
        lines.append(f"  changed  {_changed(report.elements_changed, report.elements_edited, report.survival)}")
    lines += _kept(report.kept or ())
    if report.method is not None:
        lines.append(f"  method   {report.method}, in float64 and rounded once")
    elif report.precision == EXACT:
        lines.append(f"  exact    {report.settled:,} elements near the middle of two values, settled exactly")
    if report.verified:
        lines.append("  verified read back from the disk, and as computed")
    rate = size(round(report.bytes_per_second))
    lines.append(f"  time     {report.seconds:.2f} s, {rate}/s, {_threads(report.threads)}")
    if not report.compiled:
        lines.append("  slow     no compiled kernel of these sources: install again, with a C compiler")
    lines.append(f"  memory   {size(report.peak_memory)} at the peak")
    if len(report.outputs) > 1:
        lines += [f"  {path}" for path in report.outputs]
    return "\n".join(lines)


def _changed(changed: Sequence[int], edited: int, survival: Sequence[float | None]) -> str:
    least, most = min(changed), max(changed)
    counts = f"{least:,} to {most:,}" if least < most else f"{most:,}"
    left = [share for share in survival if share is not None]
    at_least = "at least " if len(left) > 1 else ""
    told = f"; {at_least}{min(left):.1%} of the update survives the rounding" if left else ""
    return f"{counts} of {edited:,} elements{told}"


def _kept(reports: Sequence[KeptReport]) -> list[str]:
    """What survives in each family whose weights stay codes, and in all of them."""
    lines = []
    several = len({one.alpha for one in reports}) > 1
    for one in reports:
        name = "all" if one.family is None else one.family
        at = f" at alpha {one.alpha:g}" if several else ""
        told = "nothing to change"
        if one.survival is not None:
            told = f"{one.survival:.1%} survives, noise {one.noise:.2f}"
        lines.append(
            f"  kept     {name}{at}: {told}; {one.changed:,} of {one.elements:,} codes changed, {one.rescaled:,} of "
            f"{one.blocks:,} blocks rescaled"
        )
    return lines


def plan_text(report: PlanReport, tensors: Sequence[Told] | None = None, *, every_tensor: bool) -> str:
    """tensors: in the place of those of the report"""
    tensors = report.tensors if tensors is None else tensors
    lines = [f"{_what(report)} -> {report.out}   (dry run: nothing is written)", *ruled(report.weight_rules)]
    cast = f", {report.tensors_cast:,} to cast" if report.tensors_cast else ""
    lines.append(f"  tensors  {report.tensors_edited:,} to edit, {report.tensors_copied:,} to copy{cast}")
    lines.append(f"  bytes    {size(report.bytes_read)} to read, {size(report.bytes_written)} to write")
    lines.append(f"  disk     {size(report.disk_needed)} needed, {_free(report.disk_free)} free")
    lines.append(f"  memory   at most {size(report.memory_predicted)} ({_threads(report.threads)})")
    lines += [] if report.method is None else [f"  method   {report.method}, in float64 and rounded once"]
    lines += [] if report.cost is None else cost_lines(report.cost)
    if len(report.outputs) > 1:
        lines.append(f"  outputs  {len(report.outputs)}: {report.outputs[0]} ... {report.outputs[-1]}")
    for one in alike(tensors, report, one_by_one=every_tensor):
        said = f"{one.dtype} {by(one.shape)}" + (f"  {one.edits}" if one.edits else "")
        count = len(one.sizes)
        lines.append(f"  {one.action}  {one.name}  {said}" + (f"  ({count} tensors)" if count > 1 else ""))
    return "\n".join(lines)


def _free(count: int | None) -> str:
    return "nobody knows how much" if count is None else size(count)


def _what(report: RunReport | PlanReport) -> str:
    sources = [
        source + (f" (weight {weight:g})" if weight != 1 else "")
        for source, weight in zip(report.sources, report.weights, strict=True)
    ]
    alphas = (
        f" at alpha {', '.join(f'{alpha:g}' for alpha in report.alphas)}" if report.command.startswith("wise") else ""
    )
    return f"{report.command} {' + '.join((report.base, *sources))}{alphas}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"


class Alike(NamedTuple):
    """Tensors that are told together."""

    action: str
    name: str  # numbers in it are * where they differ, or the ranges of these where several lines would be the same
    dtype: str
    shape: tuple[int, ...]
    edits: str  # what is done, one after the other, or by a method
    sizes: list[int]  # bytes of each


def alike(tensors: Sequence[Told], report: Report, *, one_by_one: bool = False) -> list[Alike]:
    """Tensors together that differ in nothing but the numbers in their names, so that the layers fall together."""
    links = " then " if report.method is None else " and "
    together: dict[tuple[str, str, str, tuple[int, ...], str], list[Told]] = {}
    texts: dict[object, str] = {}  # most tensors are edited as others are; by the identity of their edits
    for tensor in tensors:
        name = tensor.name if one_by_one else starred(tensor.name)
        edits = tensor.edits
        if (said := texts.get(id(edits))) is None:
            alike = tuple([(one.kind, one.adapter, one.scale, one.weight, one.rows, one.transposed) for one in edits])
            if (said := texts.get(alike)) is None:
                said = texts[alike] = _edits(edits, report.sources, links)
            texts[id(edits)] = said
        form = tensor.action, name, tensor.dtype, tensor.shape, said
        if (some := together.get(form)) is None:
            some = together[form] = []
        some.append(tensor)
    several = Counter(name for _, name, *_ in together)
    return [
        Alike(
            action,
            name if several[name] == 1 else numbered(name, [tensor.name for tensor in some]),
            dtype,
            shape,
            edits,
            [tensor.bytes for tensor in some],
        )
        for (action, name, dtype, shape, edits), some in together.items()
    ]


def _edits(edits: Sequence[EditReport], sources: Sequence[str], links: str) -> str:
    texts = [
        edit.kind
        + (f" scale {edit.scale:g}" if not BY_NAME[edit.kind].replaces else "")
        + (f" weight {edit.weight:g}" if edit.weight != 1 else "")
        + (f" {edit.rows} rows" if edit.rows is not None else "")
        + (" transposed" if edit.transposed else "")
        + (f" of {sources[edit.adapter]}" if len(sources) > 1 else "")
        for edit in edits
    ]
    folded = [(text, len(list(same))) for text, same in itertools.groupby(texts)]  # experts, or the same twice
    return links.join(f"{count} times {text}" if count > 1 else text for text, count in folded)
