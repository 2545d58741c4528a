"""What is said of a recipe, as text for a person."""

from __future__ import annotations

from adaptertool.reports.apply import ApplyReport


def apply_text(report: ApplyReport) -> str:
    where = f" -> {report.out}" if report.out else ""
    if not report.steps:
        return f"apply {report.recipe}{where}: sound"
    said = "ok" if report.ok else "DIFFERENT" if report.same is False else "FAILED"
    lines = [f"apply {report.recipe}{where}: {said}"]
    for number, step in enumerate(report.steps, 1):
        named = f" ({step.name})" if step.name else ""
        out = f" -> {step.out}" if step.out and step.out != report.out else ""
        took = f", {step.seconds:.2f} s" if step.state == "done" else ""
        lines.append(f"  step {number}   {step.command}{named}{out}: {step.state}{took}{'' if step.ok else ', FAILED'}")
        if step.why:
            lines.append(f"           {step.why}")
    if report.same:
        lines.append("  same     every file has the bytes that the manifest names")
    lines += [f"  differs  {name}" for name in report.differing]
    return "\n".join(lines)
