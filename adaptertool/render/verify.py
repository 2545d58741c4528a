"""What `verify` found, as text, as JUnit XML, and as Markdown for the summary of a GitHub step."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from adaptertool.errors import UsageError, shown
from adaptertool.render.text import ruled, size, starred
from adaptertool.reports.verify import FilesReport, TensorVerdict, VerifyReport
from adaptertool.version import __version__

_LISTED = 20  # lines, each of a tensor or of several that are alike


def verify_text(report: VerifyReport, *, every_tensor: bool = False) -> str:
    lines = [f"verify {report.merged}: {'right' if report.ok else 'WRONG'}"]
    lines.append(f"  against  {_recipe(report)}")
    lines += ruled(report.weight_rules)
    lines.append(f"  tensors  {statuses(report)}")
    if report.summary.rounding:
        lines.append(f"  rounding explained by {', '.join(_recipes(report))}; at most {_most_ulp(report)} ulp")
    if report.summary.diagnosis:
        lines.append(f"  found    {', '.join(report.summary.diagnosis)}")
    lines += [f"  problem  {problem}" for problem in report.problems]
    bad = [verdict for verdict in report.tensors if every_tensor or not good(verdict, report)]
    texts = list(map(_line, bad)) if every_tensor else list(_folded(bad))
    listed = texts if every_tensor else texts[:_LISTED]
    lines += [f"  {text}" for text in listed]
    if len(texts) > len(listed):
        lines.append(f"  ... and {len(texts) - len(listed):,} more (-v lists all)")
    return "\n".join(lines)


def _folded(verdicts: Sequence[TensorVerdict]) -> Iterator[str]:
    """Lines in which the layers fall together: the worst of each."""
    groups: dict[tuple[str, ...], list[TensorVerdict]] = {}
    for verdict in verdicts:
        form = starred(verdict.name)
        groups.setdefault((form, verdict.status, verdict.diagnosis or ""), []).append(verdict)
    for (form, *_), group in groups.items():
        if len(group) == 1:
            yield _line(group[0])
        else:
            worst = max(group, key=lambda verdict: verdict.rel_error or 0)
            yield f"{_line(dataclasses.replace(worst, name=form))}  ({len(group):,} tensors, the worst)"


def good(verdict: TensorVerdict, report: VerifyReport) -> bool:
    if report.strict:
        return verdict.status == "exact" and verdict.diagnosis is None
    return verdict.status in ("exact", "rounding")


def _recipe(report: VerifyReport) -> str:
    if not report.sources:
        return report.base
    pairs = zip(report.sources, report.weights, strict=True)
    sources = [source + (f" (weight {weight:g})" if weight != 1 else "") for source, weight in pairs]
    return f"{report.base} + {' + '.join(sources)}" + (f" at alpha {report.alpha:g}" if report.alpha != 1 else "")


def statuses(report: VerifyReport) -> str:
    counts = report.summary
    texts = [f"{counts.exact:,} exact", f"{counts.rounding:,} within rounding"]
    more = {
        "wrong": counts.wrong,
        "untouched but changed": counts.untouched_changed,
        "missing": counts.missing,
        "extra": counts.extra,
    }
    return ", ".join(texts + [f"{count:,} {what}" for what, count in more.items() if count])


def _recipes(report: VerifyReport) -> list[str]:
    return sorted({verdict.detail for verdict in report.tensors if verdict.status == "rounding"})


def _most_ulp(report: VerifyReport) -> int:
    return max(verdict.max_ulp or 0 for verdict in report.tensors if verdict.status == "rounding")


def _line(verdict: TensorVerdict) -> str:
    facts = [
        verdict.diagnosis or "",
        f"scale {verdict.fitted_scale:.4g}" if verdict.fitted_scale is not None else "",
        f"{verdict.max_ulp:,} ulp" if verdict.max_ulp else "",
        f"error {verdict.rel_error:.1e}" if verdict.rel_error else "",
        verdict.detail,
    ]
    return f"{verdict.status}  {shown(verdict.name)}  {', '.join(filter(None, facts))}".rstrip()


def require_junit(path: str) -> None:
    """Refuse a file that cannot be written, before anything is read. Raises UsageError."""
    if importlib.util.find_spec("junitparser") is None:
        raise UsageError("--junit needs junitparser: pip install 'adaptertool[report]'")
    if not path or os.path.isdir(path) or not os.path.isdir(Path(path).parent):
        raise UsageError(f"--junit {path or 'of an empty path'} must be a file in a folder that exists")
    if Path(path).is_file() and not _is_junit(path):
        raise UsageError(f"--junit {path} is there, and is no JUnit XML: give another name, or remove the file")


def _is_junit(path: str) -> bool:
    """Whether it may be replaced: an older one, or nothing. Other XML is not ours."""
    with Path(path).open("rb") as file:
        begin = file.read(1024)
    return not begin.strip() or (begin.lstrip().startswith(b"<") and b"<testsuite" in begin)


def write_junit(report: VerifyReport, path: Path) -> None:
    """A test case for each tensor, after `require_junit`."""
    from junitparser import Failure, JUnitXml, TestCase, TestSuite  # noqa: PLC0415  # an extra

    suite = TestSuite(f"adaptertool verify {shown(report.merged)}")
    for verdict in report.tensors:
        module, _, _ = verdict.name.rpartition(".")
        case = TestCase(shown(verdict.name), classname=shown(module or verdict.name))
        if not good(verdict, report):
            case.result = [Failure(_line(verdict), verdict.diagnosis or verdict.status)]
        suite.add_testcase(case)
    for problem in report.problems:
        case = TestCase("config", classname="config")
        case.result = [Failure(shown(problem))]
        suite.add_testcase(case)
    for name, value in _facts(report).items():
        suite.add_property(name, shown(value))
    suite.time = report.seconds  # of all: tensors are judged together
    document = JUnitXml("adaptertool verify")
    document.add_testsuite(suite)
    document.time = report.seconds
    document.write(str(path))


def _facts(report: VerifyReport) -> dict[str, str]:
    """What was judged, and by what, so that a result of long ago can be told from others."""
    return {
        "adaptertool": __version__,
        "verdict": report.verdict,
        "merged": report.merged,
        "base": report.base,
        **{f"adapter {number}": source for number, source in enumerate(report.sources, 1)},
        "weights": " ".join([*(f"{weight:g}" for weight in report.weights), *report.weight_rules]),
        "alpha": f"{report.alpha:g}",
        "strict": str(report.strict).lower(),
    }


def verify_markdown(report: VerifyReport) -> str:
    lines = [f"### adaptertool verify: {'right' if report.ok else 'WRONG'}", ""]
    lines += [f"`{_code(report.merged)}` against `{_code(_recipe(report))}`: {statuses(report)}", ""]
    lines += [f"- {_plain(problem)}" for problem in report.problems]
    bad = sorted((verdict for verdict in report.tensors if not good(verdict, report)), key=_worst_first)
    if bad:
        lines += ["| tensor | status | diagnosis | ulp | relative error |", "| --- | --- | --- | --- | --- |"]
        lines += list(itertools.islice(_rows(bad), _LISTED))
        if len(bad) > _LISTED:
            lines.append(f"\n... and {len(bad) - _LISTED:,} more")
    return "\n".join(lines) + "\n"


def _worst_first(verdict: TensorVerdict) -> float:
    return -math.inf if verdict.rel_error is None else -verdict.rel_error


def _rows(verdicts: Sequence[TensorVerdict]) -> Iterator[str]:
    for verdict in verdicts:
        ulp = "" if verdict.max_ulp is None else f"{verdict.max_ulp:,}"
        error = "" if verdict.rel_error is None else f"{verdict.rel_error:.1e}"
        name = _code(verdict.name).replace("|", "\\|")
        yield f"| `{name}` | {verdict.status} | {verdict.diagnosis or ''} | {ulp} | {error} |"


def _code(text: str) -> str:
    return shown(text).replace("`", "'")


def _plain(text: str) -> str:
    return shown(text).replace("<", "&lt;")


def files_text(report: FilesReport) -> str:
    read = f"{size(report.bytes)} hashed by {' and '.join(report.hashes)}"
    if report.ok:
        return f"{report.out}: all {report.files:,} files are as the manifest says, {read}"
    lines = [f"{report.out}: {report.right:,} of {report.files:,} files are as the manifest says, {read}"]
    return "\n".join([*lines, *(f"  {wrong.status}: {shown(wrong.name)}" for wrong in report.wrong)])
