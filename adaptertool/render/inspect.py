"""The report of `inspect` as text: one block for each question, layers that are alike told together."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence

from adaptertool.errors import by, shown
from adaptertool.render.drift import number
from adaptertool.render.text import size, starred, table
from adaptertool.reports.inspect import AdapterFacts, Capacity, CheckpointFacts, InspectedModule, InspectReport, Portion

_USUAL = "peft"  # the format that goes without saying
_LINES = 24  # of a table, without -v
_PORTION = ("tensors", "parameters", "bytes")

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]  # its head, and its rows


def inspect_text(report: InspectReport, *, every_module: bool, width: int | None = None) -> str:
    lines = [f"inspect {report.path}: {title(report)}"]
    if report.adapter is not None:
        lines += _adapter(report.adapter)
    if report.checkpoint is not None:
        lines += _checkpoint(report.checkpoint)
    if (said := compatibility(report)) is not None:
        lines += _labelled("refused" if report.refusal else "fits", said.split("\n"))
    if report.adapter is not None:
        lines += _labelled("capacity", capacity_lines(report.adapter.capacity))
        lines += ["", *table(*coverage_table(report.adapter), width)]
        lines += _modules(report.adapter, every_module=every_module, width=width)
    if report.checkpoint is not None:
        lines += ["", *_portions(report.checkpoint, shards=every_module, width=width)]
    if report.findings:
        lines += ["", *(f"  finding  {line}" for line in report.findings)]
    lines += [f"  rule     {line}" for line in report.rules]
    return "\n".join(lines)


def title(report: InspectReport) -> str:
    if report.adapter is None:
        return "a checkpoint"
    facts = report.adapter
    form = "" if facts.format in (facts.peft_type, _USUAL) else f"format {facts.format}"
    parts = (shown(facts.peft_type), form, facts.written_by and f"written by {shown(facts.written_by)}")
    return ", ".join(filter(None, ("an adapter", *parts)))


def compatibility(report: InspectReport) -> str | None:
    if report.refusal is not None:
        return f"{'wise' if report.adapter is None else 'merge'} refuses it: {report.refusal}"
    if report.base is None:
        return None
    if report.adapter is None:
        return f"{report.base}: the same tensors and shapes"
    return f"{report.base}: every module has its tensor there, and the shapes agree"


def module_summary(facts: AdapterFacts) -> str:
    low = [module for module in facts.modules if module.rank is not None]
    text = ", ".join(f"{count:,} {shown(kind)}" for kind, count in facts.kinds.items()) or "none"
    if low:
        text += f"; rank {span(module.rank for module in low)}"
        scales = sorted({module.scale for module in low if module.scale is not None})
        if scales:
            some = "–".join(f"{scale:.4g}" for scale in dict.fromkeys((scales[0], scales[-1])))
            text += f", scale {some} ({facts.scaled_by})"
    return text


def base_summary(facts: AdapterFacts) -> str:
    named = shown(facts.trained_on) if facts.trained_on else "not named"
    return f"{named}; initialiser {shown(facts.initialiser)}"


def size_summary(facts: AdapterFacts) -> str:
    return f"{facts.tensors:,} tensors, {', '.join(facts.dtypes)}, {size(facts.bytes)}"


def capacity_lines(capacity: Capacity) -> list[str]:
    first = f"{capacity.trainable:,} parameters, at 2 bits each {capacity.bits:,} bits"
    if capacity.compute is not None:
        first += f"; a training pass costs {capacity.compute:.2f} of full fine-tuning's"
    if capacity.needed is None or capacity.load is None:
        return [first]
    what = "room for it" if capacity.verdict == "enough" else "more than it can hold"
    return [first, f"the data has {capacity.needed:,.0f} bits, {capacity.load:.3g} times that: {what}"]


def coverage_table(facts: AdapterFacts) -> Table:
    """The table of coverage, with the share of the base's parameters where there is a base, else the number that is
    adapted."""
    rows: list[tuple[str, ...]] = []
    for one in facts.coverage:
        rows.append((one.family, f"{one.modules:,}", f"{one.trainable:,}", _share(one.adapted, one.base)))
    if len(rows) > 1:
        modules, trainable = sum(one.modules for one in facts.coverage), sum(one.trainable for one in facts.coverage)
        rows.append(("all", f"{modules:,}", f"{trainable:,}", _share(adapted(facts), base_size(facts))))
    of = "of base" if any(one.base is not None for one in facts.coverage) else "of weights"
    return ("family", "modules", "trainable", of), rows


def adapted(facts: AdapterFacts) -> int | None:
    """Parameters of the base that lie in what is adapted; None where that is not known of some family."""
    some = [one.adapted for one in facts.coverage if one.adapted is not None]
    return sum(some) if len(some) == len(facts.coverage) else None


def base_size(facts: AdapterFacts) -> int | None:
    return sum(one.base or 0 for one in facts.coverage) or None


def _share(part: int | None, whole: int | None) -> str:
    if part is None:
        return "-"
    return f"{part:,}" if whole is None else f"{part / whole:.1%}" if whole else "-"


def spectra_table(modules: Sequence[InspectedModule]) -> Table:
    """Modules whose names differ in numbers only are told together: ranks by their median, those needed by the most."""
    head = ("module", "rank", "effective", "stable", "99% energy", "1% error", "|Δ|", "|Δ|/|W|")
    return head, [_spectra_row(name, some) for name, some in _alike(modules)]


def _spectra_row(name: str, modules: Sequence[InspectedModule]) -> tuple[str, ...]:
    spectra = [module.spectrum for module in modules if module.spectrum is not None]
    norms = [spectrum.norm for spectrum in spectra if spectrum.norm is not None]
    relative = [one for module in modules if (one := relative_norm(module)) is not None]
    return (
        shown(name) + (f"  ({len(modules):,})" if len(modules) > 1 else ""),
        span(module.rank for module in modules),
        number(statistics.median(spectrum.entropy_rank for spectrum in spectra)),
        number(statistics.median(spectrum.stable_rank for spectrum in spectra)),
        span(spectrum.rank_energy for spectrum in spectra),
        span(spectrum.rank_error for spectrum in spectra),
        number(statistics.median(norms)) if norms else "-",
        number(statistics.median(relative)) if relative else "-",
    )


def relative_norm(module: InspectedModule) -> float | None:
    """‖Δ‖ / ‖W‖"""
    norm = module.spectrum.norm if module.spectrum else None
    return norm / module.base_norm if norm is not None and module.base_norm else None


def span(numbers: Iterable[int | None]) -> str:
    found = sorted(one for one in numbers if one is not None)
    return "-" if not found else f"{found[0]}" if found[0] == found[-1] else f"{found[0]}–{found[-1]}"


def _adapter(facts: AdapterFacts) -> Iterator[str]:
    yield f"  modules  {module_summary(facts)}"
    yield f"  file     {size_summary(facts)}"
    yield f"  base     {base_summary(facts)}"


def _labelled(label: str, lines: Sequence[str]) -> list[str]:
    return [f"  {label if number == 0 else '':<8} {line}" for number, line in enumerate(lines)]


def _modules(facts: AdapterFacts, *, every_module: bool, width: int | None) -> Iterator[str]:
    measured = [module for module in facts.modules if module.spectrum is not None]
    if measured and every_module:
        head, _ = spectra_table(())
        rows = [_spectra_row(module.name, [module]) for module in measured]
    elif measured:
        head, rows = spectra_table(measured)
    else:
        head = ("module", "kind", "tensors of", "parameters")
        each = ((module.name, [module]) for module in facts.modules)
        rows = [_plain_row(name, some) for name, some in (each if every_module else _alike(facts.modules))]
    if rows:
        yield ""
        yield from table(head, rows if every_module else rows[:_LINES], width)
    if len(rows) > _LINES and not every_module:
        yield f"  and {len(rows) - _LINES:,} more (-v shows all)"


def _alike(modules: Sequence[InspectedModule]) -> Iterator[tuple[str, list[InspectedModule]]]:
    """Together with the name that stands for them."""
    groups: dict[str, list[InspectedModule]] = {}
    for module in modules:
        groups.setdefault(starred(module.name), []).append(module)
    for name, some in groups.items():
        yield (name if len(some) > 1 else some[0].name), some


def _plain_row(name: str, modules: Sequence[InspectedModule]) -> tuple[str, ...]:
    one = modules[0]
    shape = f"{by(one.shape)}, rank {span(module.rank for module in modules)}" if one.shape else "-"
    parameters = sum(module.parameters for module in modules)
    return shown(name) + (f"  ({len(modules):,})" if len(modules) > 1 else ""), one.kind, shape, f"{parameters:,}"


def _checkpoint(facts: CheckpointFacts) -> Iterator[str]:
    shards = f"{len(facts.shards)} shards" if len(facts.shards) > 1 else "1 file"
    assets = f", {facts.assets} other file{'s' if facts.assets > 1 else ''}" if facts.assets else ""
    yield f"  tensors  {facts.tensors:,}, {facts.parameters:,} parameters, {size(facts.bytes)} in {shards}{assets}"
    for name, value in config_rows(facts):
        yield f"  {name:<8} {value}"
    yield f"  tied     {facts.tied}"
    if facts.quantised:
        yield f"  codes    quantised: {facts.quantised}"
    if facts.stray:
        yield f"  stray    not part of the model, left behind by a merge: {', '.join(map(shown, facts.stray))}"
    yield f"  made by  {manifest_summary(facts)}"


def portions_tables(facts: CheckpointFacts) -> list[Table]:
    """The tables of portions: by family, by dtype, and by shard."""
    kinds = ("family", facts.families), ("dtype", facts.dtypes), ("shard", facts.shards)
    return [((kind, *_PORTION), [_portion_row(one) for one in some]) for kind, some in kinds]


def _portion_row(one: Portion) -> tuple[str, ...]:
    return shown(one.name), f"{one.tensors:,}", f"{one.parameters:,}", size(one.bytes)


def _portions(facts: CheckpointFacts, *, shards: bool, width: int | None) -> Iterator[str]:
    """All in one table; each kind is named in its first row."""
    rows: list[tuple[str, ...]] = []
    for head, some in portions_tables(facts)[: None if shards else -1]:
        for place, row in enumerate(some):
            rows.append((f"{head[0] if place == 0 else '':<6} {row[0]}", *row[1:]))
    return table(("by", *_PORTION), rows, width)


def config_rows(facts: CheckpointFacts) -> list[tuple[str, str]]:
    """A line for the architecture, and one for its sizes."""
    config = dict(facts.config)
    kind = config.pop("_class_name", "not named")
    kind, architectures = config.pop("model_type", kind), config.pop("architectures", ())
    of = ", ".join(map(str, architectures)) if isinstance(architectures, list | tuple) else str(architectures)
    version = config.pop("transformers_version", None)
    text = f"{kind}" + (f" ({of})" if of else "") + (f", of transformers {version}" if version else "")
    sizes = ", ".join(f"{name.removeprefix('num_')} {value}" for name, value in config.items())
    return [("model", shown(text)), *([("config", shown(sizes))] if sizes else [])]


def manifest_summary(facts: CheckpointFacts) -> str:
    if facts.manifest is None:
        return "not by adaptertool, or without its manifest"
    said = ", ".join(f"{name} {_plain(value)}" for name, value in facts.manifest["recipe"].items() if value)
    text = f"adaptertool {facts.manifest['adaptertool']}: {said}"
    changed = facts.manifest["changed"]
    return shown(text + (f"; CHANGED since: {', '.join(changed)}" if changed else ""))


def _plain(value: object) -> str:
    if isinstance(value, dict | list):
        return " ".join(map(_plain, value.values() if isinstance(value, dict) else value))
    return f"{value:g}" if isinstance(value, float) else str(value)
