"""The page of a sweep: its pictures, what is escaped, what cannot be drawn. Its text and its Markdown too."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

import pytest

from adaptertool.render.markdown import markdown
from adaptertool.render.score_files import result_files
from adaptertool.render.sweep import sweep_text
from adaptertool.render.sweep_page import sweep_page
from adaptertool.reports.scores import mean_of, target_and_reference
from adaptertool.reports.sweep import SweepPoint, SweepReport, best_points

Scored = Mapping[str, float] | str


def report(points: Mapping[tuple[str, ...], Scored], *names: str, minimise: bool = False, **more: Any) -> SweepReport:
    """A string instead of scores is why there are none."""
    made = []
    for numbers, found in points.items():
        at = dict(zip(names, numbers, strict=True))
        failed = isinstance(found, str)
        scores = {} if isinstance(found, str) else found
        made.append(SweepPoint(at, scores, mean_of(scores), found if failed else None))  # type: ignore[arg-type]
    target, reference = target_and_reference(made, None, None)
    values = {name: tuple(dict.fromkeys(point.at[name] for point in made)) for name in names}
    facts: dict[str, Any] = {
        "recipe": "r.yaml", "search": "grid", "numbers": values, "start": dict.fromkeys(names, "1"),
        "scored_by": "s {}",
        "key": "k", "out": "out", "results": "out-scores", "keep": "best", "dry_run": False, "planned": (), "notes": (),
    }  # fmt: skip
    return SweepReport(
        **facts | more, minimise=minimise, target=target, reference=reference, points=tuple(made),
        ok=not any(point.failure for point in made), best=best_points(made, minimise=minimise),
    )  # fmt: skip


TWO: dict[tuple[str, ...], Scored] = {
    ("0", "4"): {"old": 0.9, "new": 0.1}, ("0", "8"): {"old": 0.8, "new": 0.4},
    ("0.5", "4"): "no <b>luck</b>", ("0.5", "8"): {"old": 0.7, "new": 0.6},
}  # fmt: skip


def test_the_page() -> None:
    made = report(TWO, "weights.0", "rank")
    page = sweep_page(made)
    assert page.count("<svg") == 3 and page == sweep_page(made)  # one for each number, and target against reference
    assert "incomplete" in page and "3 of 4 points were scored" in page
    assert "no &lt;b&gt;luck" in page and "<b>luck" not in page
    assert "weights.0 0.5, rank 8 (0.6)" in page and "0, 0.5 (the recipe: 1)" in page
    assert "the line goes through the best with each value" in page
    one = sweep_page(report({("1",): {"score": 3.0}, ("2",): {"score": 4.0}}, "rank"))
    assert one.count("<svg") == 1 and "the line goes" not in one


@pytest.mark.parametrize(
    ("points", "pictures"),
    [
        ({("0",): "failed", ("1",): "failed"}, 0),
        ({("0",): {"score": 1e200}, ("1",): {"score": 1.0}}, 0),
        ({("0",): {"score": 0.0}}, 1),
        ({("1E+300",): {"a": 1.0, "b": 1.0}, ("-1",): {"a": 1.0, "b": 1.0}}, 2),
        ({("0",): {"<i>": 0.5, "\x1b": 2.0}}, 2),
    ],
)
def test_strange_sweeps(points: dict[tuple[str, ...], Scored], pictures: int) -> None:
    made = report(points, "x")
    page = sweep_page(made)
    assert page.count("<svg") == pictures and "<i>" not in page and "\x1b" not in page + sweep_text(made, len(points))
    assert ("too large" in page) == (pictures == 0 and made.best != ())


def test_the_text_and_the_summary() -> None:
    made = report(TWO, "weights.0", "rank", minimise=True)
    text = sweep_text(made, 2)
    assert "1 of 4 points are from an earlier run" not in text and "2 of 4 points are from an earlier run" in text
    assert (
        "lowest old: 0.7 at weights.0 0.5, rank 8, chosen" in text
        and "lowest new: 0.1 at weights.0 0, rank 4\n" in text
    )
    assert "weights.0 0.5, rank 4: no <b>luck</b>" in text
    found = markdown(made)
    assert found is not None and "FAILED at 1 of 4 points" in found and "**0.7** at `weights.0` 0.5, `rank` 8" in found
    assert len(re.findall(r"^\| `0", found, re.M)) == 4


def test_the_table() -> None:
    rows = list(csv.reader(io.StringIO(result_files(report(TWO, "weights.0", "rank"))["scores.csv"].decode())))
    assert rows[0] == ["weights.0", "rank", "old", "new", "mean"] and rows[1] == ["0", "4", "0.9", "0.1", "0.5"]
    assert rows[3] == ["0.5", "4", "", "", ""]
