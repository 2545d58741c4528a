"""The page of a curve: its bytes, its axes, what is escaped, and what it looks like in a browser. And a curve of a
model that was really trained."""

from __future__ import annotations

import dataclasses
import importlib
import math
import re
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from browser import VIEWS, look, needs_browser, require_fit, require_self_contained
from conftest import FIXTURES

from adaptertool import CurveReport, wise_curve
from adaptertool.render.curve import curve_text
from adaptertool.render.curve_page import curve_page
from adaptertool.render.score_files import result_files
from adaptertool.render.score_pictures import scale_of
from adaptertool.reports.curve import CurvePoint, best_alphas
from adaptertool.reports.scores import mean_of, target_and_reference

ALPHAS = [number / 20 for number in range(21)]


def report(points: Mapping[float, Mapping[str, float] | str], **wishes: Any) -> CurveReport:
    """Of scores, or of failures."""
    made = tuple(
        CurvePoint(alpha, {}, None, found) if isinstance(found, str) else CurvePoint(alpha, found, mean_of(found))
        for alpha, found in points.items()
    )
    minimise = wishes.get("minimise", False)
    target, reference = target_and_reference(made, wishes.get("target"), wishes.get("reference"))
    return CurveReport(
        command="wise", base="base", sources=("tuned",), precision="exact", scored_by="python evaluate.py {}", key="",
        out="curve", keep="none", minimise=minimise, target=target, reference=reference,
        ok=all(point.scores for point in made), points=made, best=best_alphas(made, minimise=minimise), notes=(),
    )  # fmt: skip


def accuracies(alpha: float) -> dict[str, float]:
    return {"shifted": 0.62 + 0.3 * alpha - 0.33 * alpha**2, "reference": 0.684 + 0.25 * alpha - 0.12 * alpha**2}


ROBUST = {alpha: accuracies(alpha) for alpha in ALPHAS}
FAILED = ROBUST | {
    0.3: "exit code 1\n  stderr: RuntimeError: no memory is left on this device, and there is much of it"
}


def pictures(page: str) -> list[str]:
    return re.findall(r"<svg.*?</svg>", page, re.DOTALL)


def test_self_contained_and_whole() -> None:
    page = curve_page(report(FAILED))
    require_self_contained(page)
    assert len(pictures(page)) == 2 and "currentColor" in page
    assert "incomplete" in page and "20 of 21 points" in page and "no memory is left" in page
    assert page == curve_page(report(FAILED))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ([0.2, 0.9], "logit"),
        ([0.0, 0.9], "linear"),
        ([0.2, 1.0], "linear"),
        ([-0.5, 0.5], "linear"),
        ([1.5, 40.0], "linear"),
        ([1.3, 1000.0], "log"),
        ([0.0, 1000.0], "linear"),
        ([5.0, 5.0], "linear"),
        ([1e-99, 1e98], "log"),
    ],
)
def test_scales(values: list[float], scale: str) -> None:
    assert scale_of(values) == scale
    points = {alpha: {"a": value, "b": value} for alpha, value in zip((0.0, 1.0), values, strict=True)}
    assert ("logit axes" in curve_page(report(points))) == (scale == "logit")


def test_as_the_paper_draws_it() -> None:
    """On logit axes a point lies at log(x/(1 − x)); a star at α = 0, a diamond at α = 1, and the best α named."""
    against = pictures(curve_page(report(ROBUST)))[1]
    (path,) = (
        found for found in re.findall(r'<path d="([^"]*)"[^>]*stroke: #3b7dd8', against) if found.count("L") == 20
    )
    drawn = [tuple(map(float, pair)) for pair in re.findall(r"[ML] ([\d.]+) ([\d.]+)", path)]
    for axis, name in enumerate(("reference", "shifted")):
        logits = [math.log(scores[name] / (1 - scores[name])) for scores in ROBUST.values()]
        places = [pair[axis] for pair in drawn]
        scale = (places[-1] - places[0]) / (logits[-1] - logits[0])
        for place, logit in zip(places, logits, strict=True):
            assert place == pytest.approx(places[0] + scale * (logit - logits[0]), abs=0.02)
    words = re.findall(r"<text[^>]*>([^<]*)</text>", against)
    assert {"base, α = 0", "tuned, α = 1", "shifted", "reference", "α = 0.45"} <= set(words)


@pytest.mark.long
@pytest.mark.parametrize(
    "points",
    [
        {0.5: {"score": 0.5}},
        {0.5: {"a": 0.5, "b": 0.5}},
        {alpha: {"score": 3.0} for alpha in ALPHAS},
        {alpha: {"a": 0.0, "b": 0.0} for alpha in ALPHAS},
        dict.fromkeys(ALPHAS, "exit code 1"),
        {-1.0: "exit code 1", 0.0: {"a": -1e308, "b": 1e308}, 2.0: {"a": 1e-300, "b": -5e-324}},
        {alpha: {f"task {n}": n + alpha for n in range(40)} for alpha in ALPHAS},
        {alpha: {"a": 1e-9 + alpha / 1.1, "b": 1 - 1e-12 - alpha / 1.1} for alpha in ALPHAS},
        {1.0: {"$x_$": 0.1, "^%#{}": 0.3}, 0.0: {"$x_$": 0.2, "^%#{}": 0.4}},
    ],
)
@pytest.mark.filterwarnings("error")
def test_strange_curves(points: dict[float, dict[str, float] | str]) -> None:
    made = report(points)
    page = curve_page(made)
    extreme = any(abs(best.value) > 1e100 for best in made.best)  # then nothing is drawn, and the page says so
    assert len(pictures(page)) == (0 if extreme else min(len(made.best), 2)) and "nan" not in page
    assert ("to be drawn" in page) == extreme
    for file in result_files(made).values():
        assert file.decode()
    assert "nan" not in curve_text(made, len(points))


def test_names_are_escaped() -> None:
    evil = "<img src=x onerror=alert(1)>\x1b[31m"
    made = report({0.0: {evil: 1.0, "b": 2.0}, 0.5: evil, 1.0: {evil: 2.0, "b": 3.0}})
    made = dataclasses.replace(made, base=evil, sources=(evil,), scored_by=evil, notes=(evil,))
    page = curve_page(made)
    assert "<img" not in page and "\x1b" not in page and page.count("&lt;img") > 6
    assert "\x1b" not in curve_text(made, 3)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no page, and the report says so; it comes when the extra is there, without measuring again."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = FIXTURES / "base", FIXTURES / "lora", tmp_path / "out", [0.5], "sh -c 'echo 1' {}"
    made = wise_curve(*arguments, keep="none")
    assert made.ok and "pip install 'adaptertool[report]'" in made.notes[-1]
    assert not (tmp_path / "out/curve.html").exists() and "curve.html" not in curve_text(made, 1).split("results")[1]
    monkeypatch.undo()
    told: list[CurvePoint] = []
    assert wise_curve(*arguments, keep="none", progress=told.append).notes == () and told == []
    assert (tmp_path / "out/curve.html").exists()


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_screenshot(tmp_path: Path, width: int, dark: bool) -> None:
    (tmp_path / "page.html").write_text(curve_page(report(FAILED)))
    look(tmp_path, tmp_path / "page.html", width, dark=dark, colour=0.003)


@needs_browser
def test_nothing_is_wider_than_the_window(tmp_path: Path) -> None:
    many = {alpha: {f"a task with a long name, number {n}": n + alpha for n in range(12)} for alpha in ALPHAS}
    pages = tmp_path / "few.html", tmp_path / "many.html"
    for page, points in zip(pages, (FAILED, many), strict=True):
        page.write_text(curve_page(report(points)))
    require_fit(tmp_path, *((page, width) for page in pages for width in (390, 1200)))


def test_a_trained_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Perplexity on the text of the base, and on that of the tuning: the best α for their mean lies between."""
    monkeypatch.syspath_prepend(FIXTURES)
    monkeypatch.chdir(tmp_path)  # where an unfinished curve is kept
    score = importlib.import_module("score").score
    made = wise_curve(FIXTURES / "base", FIXTURES / "tuned", None, "0,0.6,0.8,1", score, minimise=True, target="mean")
    assert made.ok and {best.score: best.alpha for best in made.best} == {"harbour": 0.0, "kitchen": 1.0, "mean": 0.8}
    assert made.points[0].scores == score(str(FIXTURES / "base"))
    means = [point.mean for point in made.points if point.mean is not None]
    assert min(means) < 0.8 * min(means[0], means[-1])
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["score.py", str(FIXTURES / "base")])
    runpy.run_path(str(FIXTURES / "score.py"), run_name="__main__")
    printed = capsys.readouterr()
    assert printed.out.startswith('{"harbour": 1.3') and printed.err == ""
