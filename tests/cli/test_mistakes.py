"""What is told of mistakes: the exit code, what is named, and that nothing is left behind, changed, or traced back."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import mistaken
import pytest
import torch
from commands import clean
from conftest import main_here, snapshot
from mistakes import MISTAKES, Mistake

Listing = dict[str, tuple[int, int, int]]


def listing(root: Path) -> Listing:
    """All that is there, with what changes where it is written to."""
    found = {str(path.relative_to(root)): path.lstat() for path in root.rglob("*")}
    return {name: (told.st_ino, told.st_size, told.st_mtime_ns) for name, told in found.items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.manual_seed(0)
    root = mistaken.make(tmp_path_factory.mktemp("here"))
    before = snapshot(root)
    yield root
    assert snapshot(root) == before


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.typed)
def test_mistake(
    here: Path, mistake: Mistake, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before, arguments = listing(here), shlex.split(mistake.typed)
    monkeypatch.chdir(here)
    code = main_here(arguments, monkeypatch)
    assert isinstance(code, int)
    done = clean(CompletedProcess(arguments, code, *capfd.readouterr()), mistake.code)
    assert listing(here) == before
    told = done.stdout + done.stderr
    assert all(part in told for part in mistake.said), told
    if mistake.code > 1:
        assert done.stdout == "" and done.stderr.startswith("adaptertool: ")
        assert "None" not in done.stderr or "norank" in mistake.typed


def test_there_are_many_and_each_once() -> None:
    assert len({mistake.typed for mistake in MISTAKES}) == len(MISTAKES) > 150
