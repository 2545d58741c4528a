"""The command line in processes of its own: what it may say where it succeeds, and where it refuses."""

from __future__ import annotations

import errno
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Sequence

import forks
from conftest import FIXTURES, ROOT

BASE, LORA, TUNED = FIXTURES / "base", FIXTURES / "lora", FIXTURES / "tuned"
MODULE = "model.layers.0.mlp.up_proj"
HOSTILE = "\x1b]0;owned\x07"  # sets a terminal's title; click strips colours only, so this one is for us to escape
Result = subprocess.CompletedProcess[str]
COMMAND = [sys.executable, "-m", "adaptertool"]


def clean(result: Result, code: int) -> Result:
    """The exit code is `code`, and nothing looks like a traceback or acts on a terminal."""
    assert result.returncode == code, result.stderr
    for stream in (result.stdout, result.stderr):
        assert "Traceback" not in stream
        assert "Exception ignored" not in stream
        assert not any(ord(c) < 32 and c != "\n" for c in stream)
    return result


def refused(result: Result, code: int, *words: str) -> None:
    """An error: its message on stderr, nothing on stdout."""
    clean(result, code)
    assert result.stdout == ""
    assert result.stderr.strip()
    for word in words:
        assert word in result.stderr


def faulty(kind: str, number: int, arguments: Sequence[str]) -> Result:
    """With the n-th call that changes the disk failing, or killed there (`tests/faulty.py`)."""
    script, call = ROOT / "tests/faulty.py", [kind, str(number), *arguments]
    if (done := forks.run(call, script=script)) is not None:
        return done
    return subprocess.run([sys.executable, script, *call], capture_output=True, text=True, timeout=60, check=False)


def on_a_terminal(
    arguments: Sequence[str], *, columns: int = 80, stdout: bool = False, **environment: str
) -> tuple[int, str]:
    """Exit code, and what a terminal shows of stderr; of both streams with `stdout`."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, columns))
    env = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=child if stdout else subprocess.DEVNULL,
        stderr=child,
        env=env | {"TERM": "xterm-256color"} | environment,
    )
    os.close(child)
    seen = b""
    try:
        while part := os.read(parent, 65536):
            seen += part
    except OSError as error:
        assert error.errno == errno.EIO  # Linux: the other side is closed
    os.close(parent)
    return process.wait(60), seen.decode()
