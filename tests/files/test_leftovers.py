"""What runs that were killed have left beside OUT: said at the start and at the end of the next, or removed."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import adaptertool, snapshot
from staged import Place

from adaptertool import extract, merge, sum_adapters, truncate, wise, wise_curve
from adaptertool.errors import OutputError
from adaptertool.files import leftovers, publish
from adaptertool.files.leftovers import left_behind

KEY = "0123456789abcdef"


@pytest.fixture
def left(place: Place) -> Path:
    """What a killed run of another recipe left."""
    folder = place.folder / f".out.adaptertool-{KEY}"
    (folder / "work").mkdir(parents=True)
    (folder / "lock").touch()
    (folder / "work/model.safetensors").write_bytes(bytes(1234))
    return folder


@pytest.fixture
def held(left: Path) -> Iterator[Path]:
    """It is of a run that is at work."""
    lock = os.open(left / "lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    yield left
    os.close(lock)


def call(*more: str) -> list[str]:
    return ["merge", "base", "adapter", "-o", "out", *more]


def test_said_at_the_start_and_at_the_end(place: Place, left: Path) -> None:
    done = adaptertool(*call("--json"), cwd=place.folder)
    start = f"an earlier run has left {left} (1,234 bytes), which this one has no use for; `adaptertool clean out`"
    end = f"what an earlier run has left is still there: {left} (1,234 bytes); `adaptertool clean out` removes it"
    assert done.returncode == 0
    assert done.stderr.splitlines() == [f"adaptertool: note: {start} removes it", f"adaptertool: note: {end}"]
    assert json.loads(done.stdout)["notes"] == [end]
    assert left.exists()
    done = adaptertool(*call("-q", "--force"), cwd=place.folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and left.exists()


def test_said_also_where_the_run_fails(place: Place, left: Path) -> None:
    (place.adapter / "adapter_model.safetensors").write_bytes(bytes(100))
    assert adaptertool(*call(), cwd=place.folder).returncode == 3
    assert left.exists()


def test_clean_removes_it_when_the_run_is_published(place: Place, left: Path) -> None:
    there: list[bool] = []
    report = merge(place.base, [place.adapter], place.out, clean=True, progress=lambda _: there.append(left.exists()))
    assert all(there) and left_behind(place.out) == []
    assert report.notes == (f"an earlier run has left {left} (1,234 bytes), which is removed",)
    left.mkdir()
    done = adaptertool(*call("--clean", "--force"), cwd=place.folder)
    assert "which is removed when this one is published" in done.stderr and not left.exists()


def test_clean_removes_nothing_where_the_run_fails(place: Place, left: Path) -> None:
    merge(place.base, [place.adapter], place.out)
    with pytest.raises(OutputError):
        merge(place.base, [place.adapter], place.out, clean=True)
    assert left.exists()


@pytest.mark.parametrize("clean", [False, True])
def test_what_a_run_at_work_holds_is_spared(place: Place, held: Path, clean: bool) -> None:
    before = snapshot(held)
    done = adaptertool(*call("--json", *(["--clean"] if clean else [])), cwd=place.folder)
    assert done.returncode == 0 and f"another run is making out at this moment, in {held}" in done.stderr
    assert json.loads(done.stdout)["notes"] == []
    assert snapshot(held) == before


def test_every_command_that_writes_out(place: Place, left: Path) -> None:
    base, adapter = place.base, place.adapter
    merge(base, [adapter], place.folder / "tuned")

    def score(_: str) -> float:
        return 1.0

    calls = {
        "wise": lambda clean: wise(base, adapter, place.out, "0.5", force=True, clean=clean),
        "curve": lambda clean: wise_curve(base, adapter, place.out, ["0.5"], score, force=True, clean=clean),
        "sum": lambda clean: sum_adapters([adapter], place.out, force=True, clean=clean),
        "truncate": lambda clean: truncate(adapter, place.out, rank=2, force=True, clean=clean),
        "extract": lambda clean: extract(base, place.folder / "tuned", place.out, rank=2, force=True, clean=clean),
    }
    for name, make in calls.items():
        (left / "work").mkdir(parents=True, exist_ok=True)
        assert any("`adaptertool clean" in note for note in make(False).notes), name
        assert left.exists(), name
        assert any("which is removed" in note for note in make(True).notes), name
        assert not left.exists(), name


def test_a_run_that_goes_on_is_no_leftover(place: Place) -> None:
    (place.stage / "work").mkdir(parents=True)
    (place.stage / "lock").touch()
    assert merge(place.base, [place.adapter], place.out).notes == ()


def test_the_old_out_is_not_removed(place: Place, left: Path) -> None:
    (left / publish.ASIDE).mkdir()
    (left / publish.ASIDE / "thesis.txt").write_text("dear")
    (note,) = merge(place.base, [place.adapter], place.out, clean=True).notes
    assert "it holds the old" in note and (left / publish.ASIDE / "thesis.txt").exists()


def test_what_others_put_there_is_not_removed(place: Place, left: Path) -> None:
    (left / "thesis.txt").write_text("dear")
    (note,) = merge(place.base, [place.adapter], place.out, clean=True).notes
    assert "was not removed" in note and "thesis.txt" in note and (left / "thesis.txt").exists()


def test_a_folder_that_cannot_be_listed(place: Place, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beside OUT is no reason to fail."""

    real = os.scandir

    def fail(path: object = ".") -> object:
        if path == place.folder:
            raise PermissionError(13, "Permission denied")
        return real(path)  # type: ignore[call-overload]

    monkeypatch.setattr(leftovers.os, "scandir", fail)
    assert merge(place.base, [place.adapter], place.out).notes == () and left.exists()


def test_a_link_in_the_place_of_a_directory(place: Place, left: Path) -> None:
    """As where somebody has moved it to a larger disk: no run goes on there, and it is told. Others are removed."""
    elsewhere, other = place.folder / "elsewhere", left.with_name(f".out.adaptertool-{'f' * 16}")
    left.rename(elsewhere)
    left.symlink_to(elsewhere)
    other.mkdir()
    before = snapshot(elsewhere)
    done = adaptertool("clean", "out", cwd=place.folder)
    assert done.returncode == 5 and "is a link, which adaptertool did not make" in done.stderr
    assert not other.exists() and snapshot(elsewhere) == before
    assert any("was not removed" in note for note in merge(place.base, [place.adapter], place.out, clean=True).notes)
    assert left.is_symlink() and snapshot(elsewhere) == before
