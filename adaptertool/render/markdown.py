"""Reports as Markdown, the worst first, for the summary of a step of GitHub's Actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adaptertool.errors import shown
from adaptertool.render.diff import STATUSES
from adaptertool.render.drift import number, share, verdict
from adaptertool.render.evaluation import drift_cells, drift_heads, edit_cells, edit_heads
from adaptertool.render.machine import Report
from adaptertool.render.scored import cells, failures
from adaptertool.render.verify import files_text, verify_markdown
from adaptertool.reports.curve import CurveReport
from adaptertool.reports.diff import DiffReport, TensorDiff
from adaptertool.reports.drift import DriftReport
from adaptertool.reports.evaluate import EvaluationReport
from adaptertool.reports.scores import Scored, names_of
from adaptertool.reports.sweep import SweepReport
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


def evaluation_markdown(report: EvaluationReport) -> str:
    verdict = "done" if report.fail_above is None else "within the limit" if report.ok else "ABOVE the limit"
    apart = [(one, one.drift) for one in report.models if one.drift is not None]
    apart.sort(key=lambda pair: -pair[1].mean_kl)
    limit = "" if report.fail_above is None else f" KL per token is to be {report.fail_above:g} at most."
    lines = [
        f"### adaptertool evaluate: {verdict}",
        "",
        f"{report.prompts:,} prompts, {report.tokens:,} tokens, against {code(report.reference)}.{limit}",
        "",
        *_table(
            ("model", *map(_plain, drift_heads(report))), [(code(one.name), *drift_cells(far)) for one, far in apart]
        ),
    ]
    for targets in dict.fromkeys(scores.targets for one in report.models for scores in one.edits):
        own = [(one, scores) for one in report.models for scores in one.edits if scores.targets == targets]
        rows = [(code(one.name), *edit_cells(one, scores)) for one, scores in own]
        lines += ["", f"Facts, {targets} targets:", "", *_table(("model", *edit_heads(own[0][1])), rows)]
    return "\n".join(lines) + "\n"


def curve_markdown(report: CurveReport) -> str:
    what = f"{code(report.base)} towards {' + '.join(map(code, report.sources))}"
    best = [f"best α for {code(one.score)}: **{one.alpha:.12g}** ({number(one.value)})" for one in report.best]
    places = [[f"{point.alpha:.12g}"] for point in report.points]
    return _scored(report, f"{report.command} --score", what, best, ["alpha"], places)


def sweep_markdown(report: SweepReport) -> str:
    what = f"{code(report.recipe)}, {report.search} search"
    best = [f"best {code(one.score)}: **{number(one.value)}** at {_at(one.at)}" for one in report.best]
    places = [[*map(code, point.at.values())] for point in report.points]
    return _scored(report, "apply --sweep", what, best, [*map(code, report.numbers)], places)


def _scored(
    report: CurveReport | SweepReport,
    title: str,
    what: str,
    best: Sequence[str],
    heads: Sequence[str],
    places: Sequence[Sequence[str]],
) -> str:
    """What was scored: heads and places say of each point where it is."""
    points: Sequence[Scored] = report.points
    names = names_of(points)
    rows = [(*place, *cells(point, names)) for place, point in zip(places, points, strict=True)]
    verdict = "scored" if report.ok else f"FAILED at {failures(report)} of {len(points)} points"
    lines = [
        f"### adaptertool {title}: {verdict}",
        "",
        f"{what}: {'; '.join(best) or 'there is no score'}; {'lower' if report.minimise else 'higher'} is better.",
        "",
        *_table((*heads, *map(code, names)), rows),
    ]
    return "\n".join(lines) + "\n"


def _at(numbers: Mapping[str, str]) -> str:
    return ", ".join(f"{code(name)} {value}" for name, value in numbers.items())


def _plain(text: str) -> str:
    return shown(text).replace("<", "&lt;").replace("|", "\\|")


_OF: Mapping[str, Callable[[Any], str]] = {
    "verify/1": verify_markdown,
    "files/1": files_markdown,
    "drift/1": drift_markdown,
    "diff/1": diff_markdown,
    "evaluate/1": evaluation_markdown,
    "curve/1": curve_markdown,
    "sweep/1": sweep_markdown,
}


def markdown(report: Report) -> str | None:
    """None for reports that are no checks."""
    made = _OF.get(report.schema)
    return None if made is None else made(report)
