"""The summary of a step of GitHub's Actions. Loaded only there."""

from __future__ import annotations

import sys
from pathlib import Path

from adaptertool.cli.boundary import say
from adaptertool.render.machine import Report
from adaptertool.render.markdown import markdown


def append(report: Report, path: str) -> None:
    """Add what a check found to the file. That it cannot be written is said: the verdict counts, and stays."""
    text = markdown(report)
    if text is None:
        return
    try:
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    except OSError as error:
        say(f"adaptertool: note: no step summary: {path}: {error.strerror}", sys.stderr)
