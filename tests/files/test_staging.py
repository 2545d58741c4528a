"""The staging directory, where others meddle with it: links, other owners, receipts of any content, clean, and OUT on
another file system or behind a link."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import snapshot
from staged import Place

from adaptertool.errors import InputError, OutputError, StorageError
from adaptertool.files import place as place_of_staging
from adaptertool.files import publish
from adaptertool.files.leftovers import left_behind
from adaptertool.files.place import staging_folder
from adaptertool.files.reader import Inputs
from adaptertool.files.staging import Staging
from adaptertool.tasks.clean import clean

KEY = "0123456789abcdef"


# --- planted ---


def _stage_is_link(stage: Path, victim: Path) -> None:
    stage.symlink_to(victim)


def _in(name: str) -> Callable[[Path, Path], None]:
    def plant(stage: Path, victim: Path) -> None:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).symlink_to(victim)

    return plant


def _fifo(name: str) -> Callable[[Path, Path], None]:
    def plant(stage: Path, _: Path) -> None:
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(stage / name)

    return plant


PLANTED = {
    "staging is a link": _stage_is_link,
    "lock is a link": _in("lock"),
    "lock is a link to nothing": lambda stage, victim: _in("lock")(stage, victim / "none"),
    "receipts is a link": _in("receipts"),
    "a receipt is a link": lambda stage, victim: _in("receipts/0.json")(stage, victim / "dear.txt"),
    "parts is a link": _in("parts"),
    "work is a link": _in(f"work-{KEY}"),
    "a folder in work is a link": _in(f"work-{KEY}/sub"),
    "a part is a link": lambda stage, victim: _in("parts/.part-0")(stage, victim / "dear.txt"),
    "a receipt is a FIFO": _fifo("receipts/0.json"),
    "lock is a FIFO": _fifo("lock"),
    "parts is a FIFO": _fifo("parts"),
    "parts is a file": lambda stage, _: (stage.mkdir(), (stage / "parts").write_text(""))[0],
    "staging is a file": lambda stage, _: stage.write_text(""),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_planted_leads_nowhere(place: Place, tmp_path_factory: pytest.TempPathFactory, case: str) -> None:
    victim = tmp_path_factory.mktemp("victim")
    (victim / "dear.txt").write_text("dear")
    PLANTED[case](place.stage, victim)
    with pytest.raises((OutputError, StorageError)):
        place.merge()
    assert not place.out.exists()
    assert snapshot(victim) == {"dear.txt": b"dear"}
    assert os.listdir(victim) == ["dear.txt"]  # noqa: PTH208


def test_a_staging_of_another_user_is_not_taken_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may hold anything, with a journal that fits. Where all files belong to one user (some mounts), it is ours."""
    place.stage.mkdir()
    user = place.stage.stat().st_uid
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with monkeypatch.context() as patched:
        patched.setattr(place_of_staging, "_owner_of_new", lambda _: user + 1)
        with pytest.raises(OutputError, match="belongs to another user"):
            place.merge()
    place.merge()
    assert left_behind(place.out) == []


def test_nobody_else_may_write_there(place: Place) -> None:
    modes = []
    place.merge(progress=lambda _: modes.append(place.stage.stat().st_mode & 0o777))
    assert set(modes) == {0o700}


@pytest.mark.parametrize("more", [True, False])
def test_work_that_others_change_is_not_published(place: Place, monkeypatch: pytest.MonkeyPatch, more: bool) -> None:
    def meddle(_: Inputs) -> None:
        (work,) = place.stage.glob("work-*")
        if more:
            (work / "extra.bin").write_text("x")
        else:
            (work / "model-00001-of-00002.safetensors").unlink()

    monkeypatch.setattr(Inputs, "check_unchanged", meddle)
    with pytest.raises(StorageError, match=r"extra\.bin came into" if more else "is gone from"):
        place.merge()
    assert not place.out.exists()


# --- removal ---


def test_the_lock_is_removed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While anything else is there nobody else can begin to work in it, and lose it."""
    seen: list[list[str]] = []
    real = Path.unlink

    def unlink(path: Path, missing_ok: bool = False) -> None:
        if path.name == "lock":
            seen.append(sorted(os.listdir(path.parent)) if path.parent.exists() else [])  # noqa: PTH208
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched, Staging(tmp_path / "out", KEY) as stage:
        (part := stage.part()).write_text("")
        stage.finish(part, "b", {"blake3": "0" * 64})
        patched.setattr(Path, "unlink", unlink)
        stage.__exit__(None, None, None)
    assert seen[0] == ["lock"]
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_many_runs_that_come_and_go(place: Place) -> None:
    """Threads that make and give up the same staging all the time: each has what it wrote, or was refused."""
    wrong: list[str] = []

    def come_and_go() -> None:
        for _ in range(60):
            try:
                with Staging(place.out, KEY) as stage:
                    (stage.work / "mine").write_text("x")
                    if os.listdir(stage.work) != ["mine"]:  # noqa: PTH208
                        wrong.append(str(os.listdir(stage.work)))  # noqa: PTH208
            except OutputError as error:
                if "another run" not in str(error):
                    wrong.append(str(error))
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [] and left_behind(place.out) == []


NOT_STAGING: dict[str, Callable[[Path], object]] = {
    "another name": lambda p: (p / ".out.adaptertool-notes").mkdir(),
    "longer": lambda p: (p / f".out.adaptertool-{KEY}0").mkdir(),
    "a file": lambda p: (p / f".out.adaptertool-{KEY}").write_text("dear"),
}


@pytest.mark.parametrize("case", NOT_STAGING)
def test_clean_spares_what_is_no_staging(tmp_path: Path, case: str) -> None:
    NOT_STAGING[case](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert clean(tmp_path / "out") == ()
    assert sorted(tmp_path.rglob("*")) == before


def test_clean_spares_what_others_put_there(tmp_path: Path) -> None:
    folder = staging_folder(tmp_path / "out", KEY)
    (folder / "work").mkdir(parents=True)
    (folder / "thesis.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        clean(tmp_path / "out")
    assert snapshot(folder) == {"thesis.txt": b"dear"}


def test_clean_that_is_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = staging_folder(tmp_path / "out", KEY)
    (folder / "work").mkdir(parents=True)
    monkeypatch.setattr(place_of_staging.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(StorageError, match="work cannot be removed"):
        clean(tmp_path / "out")
    monkeypatch.undo()
    assert clean(tmp_path / "out") == (str(folder),)
    assert clean(tmp_path / "no/such/out") == ()


def test_clean_does_not_follow_links_in_work(tmp_path: Path) -> None:
    (tmp_path / "dear").mkdir()
    (tmp_path / "dear/file").write_text("dear")
    folder = staging_folder(tmp_path / "out", KEY)
    folder.mkdir()
    (folder / "work").symlink_to("../dear")
    clean(tmp_path / "out")
    assert snapshot(tmp_path) == {"dear/file": b"dear"}


# --- publishing ---


def _no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish.ctypes, "CDLL", lambda *_, **__: object())


def test_force_where_nothing_can_be_exchanged(
    place: Place, merged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two renames then: the first OUT is put back when the second fails."""
    _no_exchange(monkeypatch)
    place.merge(weights=[0.5])
    old = snapshot(place.out)
    real, seen = Path.rename, list[str]()

    def fail(path: Path, target: Path) -> Path:
        if path.name.startswith("work-") and target == place.out:
            seen.append(path.name)
            raise OSError(5, "Input/output error")
        return real(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", fail)
        with pytest.raises(StorageError):
            place.merge(force=True)
    assert seen and snapshot(place.out) == old
    clean(place.out)
    assert snapshot(place.out) == old
    place.merge(force=True)
    assert snapshot(place.out) == merged and left_behind(place.out) == []


@pytest.mark.parametrize("then", ["clean", "the same run"])
def test_a_kill_between_these_renames(place: Place, merged: dict[str, bytes], then: str) -> None:
    place.merge(weights=[0.5])
    old = snapshot(place.out)
    place.stage.mkdir()
    place.out.rename(place.stage / publish.ASIDE)
    if then == "clean":
        clean(place.out)
        assert snapshot(place.out) == old
    else:
        with pytest.raises(OutputError, match="exists"):  # it is back, and there is no --force
            place.merge()
        assert snapshot(place.out) == old
        place.merge(force=True)
        assert snapshot(place.out) == merged
    assert left_behind(place.out) == []


def test_force_spares_links_to_folders(place: Place) -> None:
    place.merge()
    (place.out / "more").symlink_to("../base")
    with pytest.raises(OutputError, match="more"):
        place.merge(force=True)


def test_out_is_a_link_to_an_empty_folder(place: Place, merged: dict[str, bytes]) -> None:
    (place.folder / "disk").mkdir()
    (place.folder / "disk/real").mkdir()
    place.out.symlink_to("disk/real")
    place.merge()
    assert place.out.is_symlink() and snapshot(place.folder / "disk/real") == merged
    assert os.listdir(place.folder / "disk") == ["real"]  # noqa: PTH208


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield disk
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], capture_output=True, check=False)
        subprocess.run(["umount", str(disk)], check=True)


def test_out_on_another_file_system(place: Place, merged: dict[str, bytes], other_disk: Path) -> None:
    place.merge(out=other_disk / "out")
    assert snapshot(other_disk / "out") == merged
    subprocess.run(["mount", "-o", "remount,ro", str(other_disk)], check=True)
    with pytest.raises(StorageError):
        place.merge(out=other_disk / "more")
    with pytest.raises((StorageError, InputError, OutputError)):
        place.merge(out=other_disk / "out", force=True)
    assert snapshot(other_disk / "out") == merged
