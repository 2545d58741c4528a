"""Every command of the README is run as it stands, and prints what the README says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES, ROOT

from adaptertool import errors

README = (ROOT / "README.md").read_text()
CONSOLE = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", README, re.DOTALL)  # and what it prints
BLOCKS = [[match.groups() for match in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.M)] for block in CONSOLE]

# Figures that differ from run to run: seconds, rates, memory, threads, free space
VARIES = (
    (r'"(seconds|bytes_per_second|threads|peak_memory)": [\d.e+]+', r'"\1": #'),
    (r"[\d.]+ s, [\d.]+ [kMG]?B/s, \d+ threads?", "#"),
    (r"[\d.]+ s, \d+ threads?", "#"),
    (r"[\d.]+ [kMG]B at the peak", "#"),
    (r"[\d.]+ [kMGT]B free", "#"),
    (r"at most [\d.]+ [kMG]B \(\d+ threads?\)", "#"),
)


def stable(text: str) -> str:
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return text.strip()


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES, tmp_path / "fixtures")
    return tmp_path


def environment() -> dict[str, str]:
    """`adaptertool` is found beside the Python that runs the tests, as after `. .venv/bin/activate`."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def test_there_are_commands() -> None:
    assert len(BLOCKS) >= 7 and len(PYTHON) == 2


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block[-1][0])
def test_commands(workplace: Path, block: list[tuple[str, str]]) -> None:
    for command, shown in block:
        done = subprocess.run(
            shlex.split(command), cwd=workplace, capture_output=True, text=True, env=environment(), check=False
        )
        printed = done.stdout + done.stderr + (f"[exit code {done.returncode}]" if done.returncode else "")
        assert stable(printed) == stable(shown), command


@pytest.mark.parametrize(("code", "shown"), PYTHON)
def test_python(workplace: Path, code: str, shown: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=workplace, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown


def test_make_targets_and_commands_are_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([\w-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
    help_text = subprocess.run(
        [sys.executable, "-m", "adaptertool", "--help"], capture_output=True, text=True, check=True
    )
    for command in re.findall(r"^  (\w+)  ", help_text.stdout.split("Commands:")[1].split("Exit")[0], re.M):
        assert f"adaptertool {command} " in README, command


def test_exit_codes_are_those_of_the_errors() -> None:

    codes = {
        e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.AdapterToolError)
    }
    assert codes | {1} == {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)} - {0}
