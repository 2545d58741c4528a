"""What the run says at its end of commands that could not fork (`tests/forks.py`): a library that sets a variable as it
goes would make each command after it start a process, ten times as long, and nothing else would tell."""

from __future__ import annotations

from collections import Counter
from typing import Any

import forks
import pytest

TOTAL = pytest.StashKey[Counter[str]]()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells the process that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["unserved"] = dict(forks.UNSERVED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash.setdefault(TOTAL, Counter()).update(getattr(node, "workeroutput", {}).get("unserved", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for name, count in sorted((config.stash.get(TOTAL, Counter()) + forks.UNSERVED).items()):
        terminalreporter.write_line(f"{count} commands started a process of their own, as {name} was set or changed")
