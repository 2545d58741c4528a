"""What GitHub's Actions are told: summaries of steps, annotations of errors; and JUnit with what was judged."""

from __future__ import annotations

import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import FIXTURES, adaptertool, write_checkpoint
from torch import ones, zeros

from adaptertool import diff, drift, verify
from adaptertool.render.machine import annotation
from adaptertool.render.markdown import markdown
from adaptertool.reports.evaluate import EditScores, EvaluationReport, LogitDrift, ModelScores
from adaptertool.version import __version__

BASE, LORA, TUNED = (FIXTURES / name for name in ("base", "lora", "tuned"))


def unescaped(command: str) -> str:
    """The message of a workflow command, as the runner undoes it (actions/runner, ActionCommand.cs)."""
    found = re.fullmatch(r"::error title=adaptertool::(.*)", command)
    assert found, command
    return found[1].replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")


def rows(text: str) -> list[list[str]]:
    """The cells of the table, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1, "a row of another width"
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def test_annotations_are_escaped() -> None:
    for text in ("100% of a", "two\nlines\r", "%0A", "::error::no"):
        assert "\n" not in annotation(text)
        assert unescaped(annotation(text)) == text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["merge", BASE, TUNED, "-o", "out"], 3, "is not an adapter"),
        (["diff", BASE, TUNED, "-q"], 1, "DIFFERENT"),
        (["verify", BASE, BASE, LORA], 1, "WRONG"),
        (["diff", BASE, BASE], 0, None),
    ],
)
def test_errors_and_failed_checks_are_annotated(
    tmp_path: Path, arguments: list[object], code: int, message: str | None
) -> None:
    summary = tmp_path / "summary.md"
    env = os.environ | {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    done = adaptertool(*arguments, "--json", cwd=tmp_path, env=env)
    found = [line for line in done.stderr.splitlines() if line.startswith("::")]
    assert done.returncode == code and json.loads(done.stdout)["ok"] is (code == 0)
    assert len(found) == (message is not None)
    assert message is None or message in unescaped(found[0])
    assert summary.exists() is (code != 3)  # a report there is of checks


def test_a_summary_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    env = os.environ | {"GITHUB_STEP_SUMMARY": str(tmp_path / "none" / "summary.md")}
    done = adaptertool("diff", BASE, BASE, "-q", env=env)
    assert (done.returncode, done.stdout) == (0, "") and "no step summary" in done.stderr


def test_elsewhere_nothing_is_annotated() -> None:
    assert "::error" not in adaptertool("diff", BASE, TUNED, "-q").stderr


def test_summaries_have_the_worst_first(tmp_path: Path) -> None:
    small = {"a.weight": zeros(4, 4) + 1, "b.weight": zeros(4, 4) + 1, "c|`\x1b<b>": zeros(4) + 1, "gone": ones(2)}
    near = {"a.weight": ones(4, 4) * 1.001, "b.weight": ones(4, 4) * 3, "c|`\x1b<b>": ones(4) * 2}
    one, other = write_checkpoint(tmp_path / "one", small), write_checkpoint(tmp_path / "other", near)
    text = markdown(diff(one, other)) or ""
    assert [cells[0] for cells in rows(text)] == ["`gone`", "`b.weight`", "`c\\|'\\x1b<b>`", "`a.weight`"]
    assert "DIFFERENT" in text and "\x1b" not in text
    assert rows(markdown(diff(one, one)) or "") == []

    report = verify(other, one, [])
    assert not report.ok
    assert rows(markdown(report) or "")[0][:2] == ["`gone`", "missing"]
    assert rows(markdown(report) or "")[-1][0] == "`a.weight`"


def test_the_summary_of_drift() -> None:
    report = drift(BASE, [LORA], merged=BASE, probe=2)
    text = markdown(report) or ""
    assert "### adaptertool drift: FAILED" in text and "28 of 28 modules" in text
    drifts = [float(cells[1]) for cells in rows(text)]
    assert drifts == sorted(drifts, reverse=True) and len(drifts) == 20
    assert "... and 8 more" in text


def test_the_summary_of_files(tmp_path: Path) -> None:
    assert adaptertool("merge", BASE, LORA, "-o", tmp_path / "out", "-q").returncode == 0
    (tmp_path / "out" / "config.json").unlink()
    summary = tmp_path / "summary.md"
    done = adaptertool("verify", tmp_path / "out", env=os.environ | {"GITHUB_STEP_SUMMARY": str(summary)})
    assert done.returncode == 1
    assert rows(summary.read_text()) == [["`config.json`", "missing"]]
    assert "files WRONG" in summary.read_text()


def test_junit_says_what_was_judged(tmp_path: Path) -> None:
    done = adaptertool("verify", BASE, BASE, LORA, "-w", "0.5", "--strict", "--junit", "junit.xml", cwd=tmp_path)
    assert done.returncode == 1
    suite = ET.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None
    found = {one.attrib["name"]: one.attrib["value"] for one in suite.iter("property")}
    assert found == {
        "adaptertool": __version__, "verdict": "wrong", "merged": str(BASE), "base": str(BASE),
        "adapter 1": str(LORA), "weights": "0.5", "alpha": "1", "strict": "true",
    }  # fmt: skip


def test_the_summary_of_a_curve(tmp_path: Path) -> None:
    (tmp_path / "score").write_text('#!/bin/sh\ncase $1 in *0.500*) exit 1;; esac\necho \'{"a|b": 0.25, "c": 1}\'\n')
    (tmp_path / "score").chmod(0o755)
    summary = tmp_path / "summary.md"
    arguments = ["wise", BASE, TUNED, "--alpha", "0,0.5,1", "--score", "./score {}", "-q"]
    done = adaptertool(*arguments, cwd=tmp_path, env=os.environ | {"GITHUB_STEP_SUMMARY": str(summary)})
    text = summary.read_text()
    assert done.returncode == 1 and "### adaptertool wise --score: FAILED at 1 of 3 points" in text
    assert rows(text) == [["0", "0.25", "1", "0.625"], ["0.5", *["failed"] * 3], ["1", "0.25", "1", "0.625"]]
    assert "best α for `a\\|b`: **0** (0.25)" in text


def test_the_summary_of_prompts() -> None:
    far = [LogitDrift(1.0, 0.5, kl, 2 * kl, 0, 0.75, None) for kl in (0.01, 0.5)]
    knows = EditScores("multi-token", 4, 0.5, None, 0.25, 6.0, 0.125)
    models = (
        ModelScores("base", "base", None, (), 0.1),
        ModelScores("near", "merged", far[0], (knows,), 0.1),
        ModelScores("far", "merged", far[1], (), 0.1),
    )
    report = EvaluationReport(
        ok=False, base="base", adapters=(), weights=(), merged=("near", "far"), reference="base", prompts=4, tokens=60,
        generated=0, device="cpu", fail_above=0.1, models=models, notes=(), seconds=1.0,
    )  # fmt: skip
    text, _, facts = (markdown(report) or "").partition("Facts, multi-token targets:")
    assert "### adaptertool evaluate: ABOVE the limit" in text and "0.1 at most" in text
    assert [(one[0], one[3]) for one in rows(text)] == [("`far`", "5.00e-01"), ("`near`", "1.00e-02")]
    assert rows(facts) == [["`near`", "4", "50.0%", "-", "25.0%", "6.0000", "0.1250"]]
