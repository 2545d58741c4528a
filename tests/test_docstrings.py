"""The examples in docstrings of public functions are run, each in a directory that has the fixtures."""

from __future__ import annotations

import doctest
import inspect
from pathlib import Path

import pytest
from conftest import FIXTURES

import adaptertool

# These need a model in memory: their examples, which are run too, stand in docs/python.md and docs/prompts.md
_IN_MEMORY = {"applied", "attached", "evaluate", "scaled", "sweep"}
_FUNCTIONS = [name for name in adaptertool.__all__ if inspect.isfunction(getattr(adaptertool, name))]


@pytest.mark.parametrize("name", sorted({*_FUNCTIONS} - _IN_MEMORY))
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fixtures").symlink_to(FIXTURES)
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder(recurse=False).find(
        getattr(adaptertool, name), name, globs={"adaptertool": adaptertool}
    )
    assert example.examples, "no example"
    told: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(example, out=told.append).failed
    assert not failed, "".join(told)
