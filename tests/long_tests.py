"""Tests that are marked `long`: `make test` runs a sample of their cases, `make test-all` all of them.

Of each such test one case in six, at least one, and with `long("kind")` at least one of each kind: those whose names
have the smallest checksums, so that they are the same ones on every machine and in every process. Of files that are
named (`pytest tests/kinds/test_oft.py`) every test runs.
"""

from __future__ import annotations

import math
import os
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

ALL = bool(os.environ.get("ADAPTERTOOL_ALL_TESTS"))
ONE_IN = 6
STEP = 1 if ALL else ONE_IN  # for tests that walk over many cases themselves
# No test hangs on a clock: the machine may be busy. Properties that say no more have a third of Hypothesis's examples.
settings.register_profile(
    "untimed", max_examples=100 if ALL else 34, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("untimed")
COUNTS = pytest.StashKey[tuple[int, int]]()


def share(count: int) -> int:
    """How many examples of a property are tried: all in make test-all, else a part of them."""
    return math.ceil(count / STEP)


def sample(names: Sequence[str]) -> set[str]:
    """names: those of the cases of one test, alike in what its marker names"""
    return set(sorted(names, key=lambda name: (zlib.crc32(name.encode()), name))[: math.ceil(len(names) / ONE_IN)])


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    cases = defaultdict(list)
    for item in items:
        if marker := item.get_closest_marker("long"):
            alike = [id(item.callspec.params[name]) for name in marker.args]
            cases[item.nodeid.partition("[")[0], *alike].append(item.nodeid)
    named = bool(config.args) and all(Path(argument.partition("::")[0]).is_file() for argument in config.args)
    chosen = [set(names) if ALL or named else sample(names) for names in cases.values()]
    left_out = {name for names in cases.values() for name in names}.difference(*chosen)
    config.stash[COUNTS] = sum(map(len, chosen)), sum(map(len, cases.values()))
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = [item for item in items if item.nodeid not in left_out]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker tells the process that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["long"] = session.config.stash.get(COUNTS, (0, 0))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    if counts := getattr(node, "workeroutput", {}).get("long"):
        node.config.stash[COUNTS] = tuple(counts)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    chosen, count = config.stash.get(COUNTS, (0, 0))
    if chosen < count:
        terminalreporter.write_line(f"long tests: {chosen} of {count}, all of them by make test-all")
