"""What is shown of the progress where stderr is no terminal; completion; what a variable of the environment sets."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import BASE, LORA

import adaptertool
from adaptertool.cli import cli
from adaptertool.cli.bar import bar
from adaptertool.engine.progress import expect


def test_a_log_gets_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for quiet in (False, True):
        with bar("merge", 4_000_000_000, quiet=quiet) as progress:
            for _ in range(10):
                clock[0] += 10
                progress(100_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "merge: 300 MB in 30 s, 8% of 4 GB, about 370 s left",
        "merge: 600 MB in 60 s, 15% of 4 GB, about 340 s left",
        "merge: 900 MB in 90 s, 22% of 4 GB, about 310 s left",
    ]


def test_a_log_of_what_has_no_known_end(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with bar("verify", None, quiet=False) as progress:
        clock[0] += 45
        progress(2_000_000)
    assert capsys.readouterr().err == "verify: 2 MB in 45 s\n"


def test_a_bar_is_told_later_how_many_bytes_there_will_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with bar("verify", None, quiet=False) as progress:
        expect(progress, 8_000_000)
        clock[0] += 45
        progress(2_000_000)
    assert capsys.readouterr().err == "verify: 2 MB in 45 s, 25% of 8 MB, about 135 s left\n"
    expect(lambda _: None, 5)  # a plain function is not told


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell])
    assert result.exit_code == 0
    assert f"_ADAPTERTOOL_COMPLETE={shell}_complete" in result.output
    assert CliRunner().invoke(cli, ["completion", "tcsh"]).exit_code == 2


@pytest.mark.parametrize(("given", "threads"), [([], 3), (["--threads", "2"], 2)])
def test_threads_by_the_environment(tmp_path: Path, given: list[str], threads: int) -> None:
    arguments = ["merge", str(BASE), str(LORA), "-o", str(tmp_path / "out"), "--json", "-q", *given]
    result = CliRunner().invoke(cli, arguments, env={"ADAPTERTOOL_THREADS": "3"})
    assert json.loads(result.stdout)["threads"] == threads


def test_threads_that_are_no_number() -> None:
    result = CliRunner().invoke(cli, ["merge", "a", "b", "-o", "c"], env={"ADAPTERTOOL_THREADS": "many"})
    assert result.exit_code == 2
    assert "'many' is not a valid integer" in result.output


def test_names_are_listed() -> None:
    assert {"merge", "wise", "verify", "RunReport"} <= set(dir(adaptertool))
    assert "import_module" not in dir(adaptertool)
