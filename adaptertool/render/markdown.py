"""Reports as Markdown, the worst first, for the summary of a step of GitHub's Actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adaptertool.errors import shown
from adaptertool.render.diff import STATUSES
from adaptertool.render.drift import number, share, verdict
from adaptertool.render.machine import Report
from adaptertool.render.verify import files_text, verify_markdown
from adaptertool.reports.diff import DiffReport, TensorDiff
from adaptertool.reports.drift import DriftReport
from adaptertool.reports.verify import FilesReport

_LISTED = 20  # rows of a table


def code(text: str) -> str:
    """A name from a file: nothing in it acts on the table or the page."""
    return f"`{shown(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    if not rows:
        return
    yield from (f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}")
    yield from (f"| {' | '.join(row)} |" for row in rows[:_LISTED])
    if len(rows) > _LISTED:
        yield f"\n... and {len(rows) - _LISTED:,} more"


def drift_markdown(report: DriftReport) -> str:
    merged = code(report.merged) if report.merged else "merged"
    head = ("module", "drift", "weight", "survival", "verdict", "why")
    rows = [
        (
            code(module.name),
            number(module.drift),
            number(module.weight.rel_error),
            share(module.weight.survival),
            module.verdict,
            "; ".join(map(_plain, module.reasons)),
        )
        for module in report.modules  # the worst first
    ]
    lines = [
        f"### adaptertool drift: {'expected' if report.ok else 'FAILED'}",
        "",
        f"{merged} against unmerged, {code(report.base)} + {' + '.join(map(code, report.sources))}: {verdict(report)}. "
        f"{share(report.survival)} of the update survives.",
        "",
        *_table(head, rows),
    ]
    return "\n".join(lines) + "\n"


def diff_markdown(report: DiffReport) -> str:
    head = ("tensor", "status", "elements", "relative error", "largest", "ulp")
    rows = [
        (code(one.name), STATUSES[one.status], share(one.share), number(one.rel_error), number(one.max_abs), _ulp(one))
        for one in sorted(report.tensors, key=lambda one: -_apart(one))
    ]
    lines = [
        f"### adaptertool diff: {'equal' if report.equal else 'DIFFERENT'}",
        "",
        f"{code(report.a)} and {code(report.b)}: {report.same:,} tensors are the same bits, {len(rows):,} are not.",
        "",
        *_table(head, rows),
    ]
    return "\n".join(lines) + "\n"


def _apart(one: TensorDiff) -> float:
    return math.inf if one.rel_error is None else one.rel_error


def _ulp(one: TensorDiff) -> str:
    return "-" if one.max_ulp is None else f"{one.max_ulp:,}"


def files_markdown(report: FilesReport) -> str:
    first, *_ = files_text(report).splitlines()
    rows = [(code(one.name), one.status) for one in report.wrong]
    lines = [f"### adaptertool verify: files {'right' if report.ok else 'WRONG'}", "", _plain(first), ""]
    return "\n".join([*lines, *_table(("file", "what is wrong"), rows)]) + "\n"


def _plain(text: str) -> str:
    return shown(text).replace("<", "&lt;").replace("|", "\\|")


_OF: Mapping[str, Callable[[Any], str]] = {
    "verify/1": verify_markdown,
    "files/1": files_markdown,
    "drift/1": drift_markdown,
    "diff/1": diff_markdown,
}


def markdown(report: Report) -> str | None:
    """None for reports that are no checks."""
    made = _OF.get(report.schema)
    return None if made is None else made(report)
