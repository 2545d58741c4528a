"""The report of `drift` as text."""

from __future__ import annotations

from collections.abc import Sequence

from adaptertool.errors import shown
from adaptertool.render.text import table
from adaptertool.reports.drift import DriftReport, ModuleDrift

_SHOWN = 12  # modules in the text, without -v


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def drift_text(report: DriftReport, *, every_module: bool, width: int | None = None) -> str:
    what = report.merged or "merged"
    lines = [f"drift {report.base} + {' + '.join(report.sources)}: {what} against unmerged, {report.inputs}"]
    lines += [f"  rule      {shown(rule)}" for rule in report.weight_rules]
    lines.append(f"  verdict   {verdict(report)}")
    lines.append(f"  weights   {number(report.rel_error)} off W + Δ")
    lines.append(
        f"  update    {share(report.survival)} survives, noise {share(report.noise)}, "
        f"{share(report.unchanged)} of its elements change nothing"
    )
    if report.as_trained is not None:
        lines.append(
            f"  base      W is the base as {report.as_trained} of bitsandbytes has it; {number(report.from_dense)} off "
            "W + Δ of the dense one"
        )
    lines += [f"  advice    {line}" for line in report.advice]
    if report.paths:
        rows: list[tuple[str, ...]] = [
            (p.path, p.against, number(p.rel_error), number(p.worst), number(p.max_abs), _cosine(p.cosine))
            for p in report.paths
        ]
        lines += ["", *table(("path", "against", "rel error", "worst", "max abs", "1 - cosine"), rows, width)]
    chosen = report.modules if every_module else report.modules[:_SHOWN]
    rows = [tuple(map(str, _row(module))) for module in chosen]
    head = ("module, worst first", "drift", "weight", "ulp", "|Δ|/|W|", "survival", "unchanged", "verdict")
    lines += ["", *table(head, rows, width)]
    if len(report.modules) > len(chosen):
        lines.append(f"  and {len(report.modules) - len(chosen)} more (-v shows all)")
    for module in chosen:
        lines += [f"  {module.name}: {reason}" for reason in module.reasons]
    if report.cost:
        lines += ["", *table(*cost_table(report), width)]
    return "\n".join(lines)


def verdict(report: DriftReport) -> str:
    suspects = sum(module.verdict == "suspect" for module in report.modules)
    if suspects:
        return f"suspect: {suspects} of {len(report.modules)} modules drift by more than rounding explains"
    if report.fail_above is not None and not report.ok:
        largest = f"the largest drift, {report.drift:.3g}, is over {report.fail_above:g}"
        return f"above the limit: {largest}, though rounding explains it"
    return "expected: rounding explains the drift of every module"


def cost_table(report: DriftReport) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows: list[tuple[str, ...]] = [
        (
            f"{cost.shape[0]}×{cost.shape[1]}, rank {cost.rank}",
            str(cost.layers),
            str(cost.batch),
            f"{cost.merged * 1e6:.1f} µs",
            f"{cost.unmerged * 1e6:.1f} µs",
            f"{cost.unmerged / cost.merged - 1:+.0%}",
        )
        for cost in report.cost
    ]
    for batch in dict.fromkeys(cost.batch for cost in report.cost):
        some = [cost for cost in report.cost if cost.batch == batch]
        merged, unmerged = (sum(getattr(c, way) * c.layers for c in some) for way in ("merged", "unmerged"))
        layers = str(sum(cost.layers for cost in some))
        times = f"{merged * 1e6:.1f} µs", f"{unmerged * 1e6:.1f} µs", f"{unmerged / merged - 1:+.0%}"
        rows.append(("all layers", layers, str(batch), *times))
    return ("layer", "layers", "batch", "merged", "unmerged", "overhead"), rows


def _row(module: ModuleDrift) -> Sequence[str]:
    weight = module.weight
    return (
        module.name,
        number(module.drift),
        number(weight.rel_error),
        f"{weight.max_ulp:.3g}",
        number(weight.delta_size),
        share(weight.survival),
        share(weight.unchanged),
        module.verdict,
    )


def _cosine(value: float | None) -> str:
    return "-" if value is None else number(1 - value)
