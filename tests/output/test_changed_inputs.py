"""Inputs that change while they are read: noticed, and nothing is published."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from disturbed import Place, alter, once

from adaptertool import prepare_merge
from adaptertool.errors import InputError
from adaptertool.output.checkpoint import run
from adaptertool.output.options import Options

# --- inputs that change ---


def _alter_and_keep_times(path: Path) -> None:
    info = path.stat()
    alter(path)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    alter(new)
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.rename(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "overwritten": alter,
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "emptied": lambda path: os.truncate(path, 0),
    "replaced": _replace,
    "deleted": Path.unlink,
    "overwritten, times kept": _alter_and_keep_times,
}
FILES = ["base/model-00001-of-00002.safetensors", "adapter/adapter_model.safetensors", "base/config.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", CHANGES)
def test_input_changes_during_the_run(place: Place, change: str, file: str) -> None:
    path = place.folder / file
    with pytest.raises(InputError, match=path.name):
        place.merge(progress=once(lambda: CHANGES[change](path)))
    assert not place.out.exists()
    assert place.staged == []


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("change", CHANGES)
def test_input_changes_between_plan_and_run(place: Place, change: str, file: str) -> None:
    """Offsets and sizes are those of the files that were planned with: others must not be read by them."""
    path = place.folder / file
    plan = prepare_merge(place.base, [place.adapter])
    CHANGES[change](path)
    with pytest.raises(InputError, match=path.name):
        run(plan, place.out, Options(threads=2))
    assert not place.out.exists()
    assert place.staged == []
