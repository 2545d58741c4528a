"""What goes wrong from outside: signals, a full disk, failing calls, inputs that change, two runs at once.

After every failure: OUT is as it was, inputs are untouched, no thread or descriptor leaks, and nothing is left beside
OUT but what the message says is kept for the next run (tests/output/test_resume.py).
"""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adaptertool, load, snapshot
from disturbed import Place, alter, delete_tree, descriptors_open, first_shard, once

from adaptertool import merge, sum_adapters, wise
from adaptertool.engine.pool import all_done
from adaptertool.errors import AdapterToolError, InputError, Interrupted, OutputError, StorageError, UsageError
from adaptertool.files import publish, writer
from adaptertool.tasks.clean import clean

# --- calls that fail ---


@pytest.mark.parametrize("name", ["open", "fsync", "pwrite", "preadv", "allocate", "rename"])
def test_every_call_fails_once(
    place: Place, merged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """For n = 1, 2, ...: the n-th call of `name` fails, until a run has fewer calls and succeeds."""
    module = writer if name == "allocate" else os
    real = getattr(module, name)
    lock = threading.Lock()
    calls = fails = 0

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        with lock:
            calls += 1
            fail = calls == fails
        if fail:
            raise OSError(5, "Input/output error")
        return real(*arguments, **options)

    failed, wrong = 0, list[str]()
    for fails in range(1, 200):  # read by `failing`
        calls = 0
        with monkeypatch.context() as patched:
            patched.setattr(module, name, failing)
            told = ""
            try:
                place.merge()
            except AdapterToolError as error:
                told = str(error)
            except OSError as error:
                wrong.append(f"call {fails} of {name}: a bare {error!r}")
        if calls < fails:
            break
        if place.out.exists():  # complete, where only the cleaning after it failed
            if told or snapshot(place.out) != merged:
                wrong.append(f"call {fails} of {name} failed, and OUT is there")
            delete_tree(place.out)
        failed += 1
        place.check_untouched(told)
    assert failed > 0
    assert not wrong, "\n".join(wrong)
    assert snapshot(place.out) == merged


@pytest.mark.parametrize("call", ["pwrite", "fsync", "allocate"])
def test_failure_leaks_nothing(place: Place, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """An error in one of many threads stops all of them, and closes every file."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer if call == "allocate" else os, call, fail)
    assert "No space left on device" in place.check_refusal(StorageError, threads=8)


def test_fails_while_an_asset_is_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assets come last, on a path of their own."""
    real = os.pwrite

    def fail_for_small(target: int, data: memoryview, offset: int) -> int:
        if os.fstat(target).st_size == len("an asset in a subfolder"):
            raise OSError(28, "No space left on device")
        return real(target, data, offset)

    monkeypatch.setattr(os, "pwrite", fail_for_small)
    assert "notes.txt" in place.check_refusal(StorageError)


def test_progress_callback_fails(place: Place) -> None:
    def fail(_: int) -> None:
        raise ValueError("a bug of the caller")

    threads, descriptors = threading.active_count(), descriptors_open()
    with pytest.raises(ValueError, match="a bug of the caller"):
        place.merge(progress=fail, threads=8)
    place.check_untouched()
    assert (threading.active_count(), descriptors_open()) == (threads, descriptors)


# --- space ---


def test_no_room_is_found_before_the_first_byte(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publish, "free_space", lambda _: 1000)
    wrote: list[int] = []
    message = place.check_refusal(StorageError, progress=wrote.append)
    assert "1,000 bytes free" in message
    assert wrote == []


@pytest.mark.parametrize("limit", [0, 20_000])
def test_file_size_limit(place: Place, limit: int) -> None:
    result = adaptertool(
        "merge",
        place.base,
        place.adapter,
        "-o",
        place.out,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 4, result.stderr
    assert "File too large" in result.stderr
    assert "Traceback" not in result.stderr
    place.check_untouched()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k,mode=755", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("cannot mount a tmpfs")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_disk_is_too_small(small_disk: Path, tmp_path: Path) -> None:
    place = Place(tmp_path / "inputs", rows=4096)
    with pytest.raises(StorageError, match=r"bytes free, but [\d,]+ are needed"):
        place.merge(out=small_disk / "out")
    assert list(small_disk.iterdir()) == []


@pytest.mark.parametrize("how", ["many small assets", "another writer"])
def test_disk_fills_up(small_disk: Path, tmp_path: Path, how: str) -> None:
    """There is room by the count of bytes, yet the disk is full before the end."""
    place = Place(tmp_path / "inputs")
    action: Callable[[], object] = bool
    if how == "many small assets":
        for number in range(100):  # each takes a page
            (place.base / f"asset-{number}.txt").write_text("x")
    else:
        action = lambda: _fill(small_disk / "other")  # noqa: E731
    threads, descriptors = threading.active_count(), descriptors_open()
    with pytest.raises(StorageError, match="No space left on device"):
        place.merge(out=small_disk / "out", progress=once(action))
    clean(small_disk / "out")  # of what the run has finished
    assert [path.name for path in small_disk.iterdir() if path.name != "other"] == []
    assert (threading.active_count(), descriptors_open()) == (threads, descriptors)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


# --- OUT that appears or is replaced ---


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("kind", ["directory", "file", "another run"])
def test_out_appears_during_the_run(place: Place, kind: str, force: bool) -> None:
    """What somebody else put there meanwhile is not ours to replace; nor is another run's OUT without --force."""

    def appear() -> None:
        if kind == "directory":
            place.out.mkdir()
            (place.out / "thesis.txt").write_text("dear")
        elif kind == "file":
            place.out.write_text("dear")
        else:
            merge(place.base, [place.adapter], place.out, weights=[0.5])

    if kind == "another run" and force:
        place.merge(force=True, progress=once(appear))
        assert (place.out / publish.MANIFEST).is_file()
    else:
        with pytest.raises(OutputError):
            place.merge(force=force, progress=once(appear))
        if kind == "another run":
            assert b"0.5" in (place.out / publish.MANIFEST).read_bytes()
        else:
            kept = place.out / "thesis.txt" if kind == "directory" else place.out
            assert kept.read_text() == "dear"
    assert place.staged == []


def test_force_keeps_the_old_one_until_the_end(place: Place) -> None:
    """While the run goes on OUT is the old one, and after a failure too."""
    merge(place.base, [place.adapter], place.out, weights=[0.5])
    old = snapshot(place.out)
    seen: list[dict[str, bytes]] = []
    with pytest.raises(OutputError):
        place.merge()
    with pytest.raises(InputError):
        place.merge(force=True, progress=once(lambda: alter(first_shard(place))))
    assert snapshot(place.out) == old
    place.merge(force=True, progress=lambda _: seen.append(snapshot(place.out)))
    assert len(seen) > 1
    assert all(look == old for look in seen)
    assert snapshot(place.out).keys() == old.keys()
    assert snapshot(place.out) != old
    assert place.staged == []


def test_force_spares_inputs_that_are_links_into_out(place: Place) -> None:
    place.merge()
    sum_adapters([place.adapter], place.folder / "sum")
    (place.base / "config.json").unlink()
    (place.base / "config.json").symlink_to("../out/config.json")
    latest = place.folder / "latest"
    latest.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (latest / name).symlink_to(f"../sum/{name}")
    before = snapshot(place.folder)
    with pytest.raises(UsageError, match=r"out and the input .*base/config\.json overlap"):
        place.merge(force=True)
    with pytest.raises(UsageError, match=r"sum and the input .*latest/adapter_\w+\.\w+ overlap"):
        sum_adapters([latest], place.folder / "sum", force=True)
    assert snapshot(place.folder) == before


@pytest.mark.parametrize("what", ["directory", "empty manifest folder", "link to ours", "safetensors file"])
def test_force_spares_what_is_not_ours(place: Place, what: str) -> None:
    out = place.out
    if what == "directory":
        out.mkdir()
        (out / "thesis.txt").write_text("dear")
    elif what == "empty manifest folder":
        (out / publish.MANIFEST).mkdir(parents=True)
    elif what == "link to ours":
        place.merge(out=place.folder / "real")
        out.symlink_to("real")
    else:
        out = place.folder / "out.safetensors"  # a checkpoint directory cannot take the place of a file
        out.write_text("dear")
    before = snapshot(place.folder)
    with pytest.raises((OutputError, UsageError)):
        place.merge(out=out, force=True)
    assert snapshot(place.folder) == before
    assert place.staged == []


def test_two_runs_in_one_folder(place: Place, merged: dict[str, bytes]) -> None:
    """Both are under way at the same time: each waits until the other has written something."""
    barrier = threading.Barrier(2, timeout=30)
    outs = [place.folder / "one", place.folder / "two"]
    runs = [
        threading.Thread(target=place.merge, kwargs={"out": out, "progress": once(barrier.wait)}, daemon=True)
        for out in outs
    ]
    threads = torch.get_num_threads()
    for each in runs:
        each.start()
    for each in runs:
        each.join(60)
    assert [snapshot(out) for out in outs] == [merged, merged]
    assert place.staged == []
    assert torch.get_num_threads() == threads


def test_name_of_out_may_be_as_long_as_the_disk_allows(place: Place, merged: dict[str, bytes]) -> None:
    out = place.folder / ("x" * 250)
    place.merge(out=out)
    assert snapshot(out) == merged


# --- modes ---


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("sticky_group", [False, True])
def test_modes_follow_the_umask(place: Place, mask: int, sticky_group: bool) -> None:
    """As if made by mkdir and open: whatever the modes in BASE, and with the group bit of a shared folder."""
    (place.base / "config.json").chmod(0o400)
    (place.base / "extra/notes.txt").chmod(0o777)
    (place.base / "extra").chmod(0o700)
    first_shard(place).chmod(0o755)
    if sticky_group:
        place.folder.chmod(stat.S_IMODE(place.folder.stat().st_mode) | stat.S_ISGID)
    before = os.umask(mask)
    try:
        (place.folder / "plain").mkdir()
        wise(place.base, place.adapter, place.out, ["0", "1"])
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    folder_mode = stat.S_IMODE((place.folder / "plain").stat().st_mode)
    paths = [place.out, *place.out.rglob("*")]
    assert len(paths) > 10
    modes = {str(path.relative_to(place.folder)): stat.S_IMODE(path.stat().st_mode) for path in paths}
    expected = {str(path.relative_to(place.folder)): folder_mode if path.is_dir() else 0o666 & ~mask for path in paths}
    assert {name: oct(mode) for name, mode in modes.items()} == {name: oct(mode) for name, mode in expected.items()}


def test_inputs_may_be_read_only_and_in_use(place: Place, merged: dict[str, bytes]) -> None:
    """A reader that keeps an input open, and links to the same file, are no change of it."""
    first_shard(place).chmod(0o444)
    with first_shard(place).open("rb"):
        place.merge()
    assert snapshot(place.out) == merged
    assert load(place.out).keys() == load(place.base).keys()


def test_the_error_is_told_and_not_that_others_were_stopped() -> None:
    """A thread that hashes stops as soon as another fails, and may come first."""
    futures = [Future[None](), Future[None](), Future[None]()]
    for future, error in zip(futures, (Interrupted("stopped"), InputError("the cause"), None), strict=True):
        future.set_result(None) if error is None else future.set_exception(error)
    with pytest.raises(InputError, match="the cause"):
        all_done(threading.Event(), futures)
