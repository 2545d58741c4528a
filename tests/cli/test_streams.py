"""Streams: a stdout that goes away or is full, and terminals."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from commands import BASE, COMMAND, LORA, TUNED, clean, on_a_terminal, refused
from conftest import adaptertool

# --- stdout that goes away, terminals ---


@pytest.mark.parametrize("stdout", ["no reader", "closed"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("merge", BASE, LORA, "--dry-run"), 0), (("merge", BASE, "missing", "--json"), 3), (("--help",), 0)],
)
def test_stdout_goes_away(tmp_path: Path, arguments: tuple[object, ...], code: int, stdout: str) -> None:
    """The result is the same as with a reader; there is just nobody to tell."""
    out = [] if arguments == ("--help",) else ["-o", str(tmp_path / "out")]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*COMMAND, *map(str, arguments), *out],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
        preexec_fn=(lambda: os.close(1)) if stdout == "closed" else None,
    )
    os.close(writer)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert result.returncode == code


def test_stdout_goes_away_after_the_work(small: tuple[Path, Path], tmp_path: Path) -> None:
    """OUT is published when the report finds no reader: that is no failure."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "merge", *map(str, small), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out/adaptertool.manifest.json").is_file()


@pytest.mark.parametrize("arguments", [("merge", BASE, LORA, "--dry-run"), ("merge", BASE, "missing", "--json")])
def test_stdout_is_full(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, *map(str, arguments), "-o", str(tmp_path / "out")]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert result.returncode in (3, 4)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def test_terminal(small: tuple[Path, Path], tmp_path: Path) -> None:
    """A bar on a terminal, none with -q; no colours with NO_COLOR; escapes in a path do not reach it raw."""
    base, adapter = map(str, small)
    code, seen = on_a_terminal(["merge", base, adapter, "-o", str(tmp_path / "out")], NO_COLOR="1")
    assert code == 0
    assert "merge:   0%|" in seen
    assert seen.endswith("\r"), "the bar is gone when the report comes"
    assert "\x1b" not in seen
    odd = tmp_path / "odd\x1b[2J"
    odd.mkdir()
    code, seen = on_a_terminal(["merge", str(odd), adapter, "-o", str(tmp_path / "x"), "-q"], NO_COLOR="1")
    assert code == 3
    assert "\x1b" not in seen


def test_a_terminal_without_utf8(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    plan = adaptertool("merge", BASE, LORA, "-o", tmp_path / "out", "--dry-run", env=environment)
    clean(plan, 0)
    wrong = adaptertool("merge", BASE / "model-00001-of-00003.safetensors", TUNED, "-o", "x", env=environment)
    refused(wrong, 3, "is not an adapter")
