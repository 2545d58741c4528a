"""What goes wrong from outside: signals, a full disk, failing calls, inputs that change, two runs at once.

After every failure: OUT is as it was, inputs are untouched, no thread or descriptor leaks, and nothing is left beside
OUT but what the message says is kept for the next run (tests/test_resume.py).
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from conftest import ROOT, adaptertool, load, lora_factors, main_here, snapshot, write_adapter, write_checkpoint

from adaptertool import merge, prepare_merge, sum_adapters, wise
from adaptertool.engine.pool import all_done
from adaptertool.errors import AdapterToolError, InputError, Interrupted, OutputError, StorageError, UsageError
from adaptertool.files import publish, writer
from adaptertool.files.staging import Staging
from adaptertool.output.checkpoint import run
from adaptertool.output.options import Options
from adaptertool.tasks.clean import clean

MODULE = "model.layers.0.mlp.up_proj"
WEIGHT = f"{MODULE}.weight"


class Place:
    """A folder with base and adapter, where OUT is to appear and nothing else."""

    def __init__(self, folder: Path, rows: int = 256) -> None:
        self.folder, self.out = folder, folder / "out"
        tensors = {WEIGHT: torch.randn(rows, 64).bfloat16(), "model.norm.weight": torch.ones(64)}
        self.base = write_checkpoint(folder / "base", tensors, shards=2)
        (self.base / "extra").mkdir()
        (self.base / "extra/notes.txt").write_text("an asset in a subfolder")
        self.adapter = write_adapter(folder / "adapter", lora_factors(MODULE, (rows, 64)))
        self.before = snapshot(folder)

    def merge(self, **options: Any) -> None:
        merge(self.base, [self.adapter], options.pop("out", self.out), threads=options.pop("threads", 2), **options)

    @property
    def staged(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name.startswith(".")]

    def check_untouched(self, told: str = "") -> None:
        """All is as it was made: no OUT, the same inputs, and no staging, unless we were told that it is kept."""
        assert bool(self.staged) == ("goes on from there" in told)
        clean(self.out)
        assert snapshot(self.folder) == self.before
        assert sorted(path.name for path in self.folder.iterdir()) == ["adapter", "base"]

    def check_refusal(self, error: type[AdapterToolError] = AdapterToolError, **options: Any) -> str:
        """A merge fails with `error`, and leaves nothing of any sort behind. Returns the message."""
        threads, descriptors = threading.active_count(), _descriptors()
        with pytest.raises(error) as caught:
            self.merge(**options)
        message = str(caught.value)
        del caught
        self.check_untouched(message)
        assert (threading.active_count(), _descriptors()) == (threads, descriptors)
        return message


def _descriptors() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()]  # noqa: PTH208


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run with nothing wrong makes of the same inputs."""
    torch.manual_seed(0)
    good = Place(tmp_path_factory.mktemp("good"))
    good.merge()
    return snapshot(good.out)


def once(action: Callable[[], object]) -> Callable[[int], None]:
    """A progress callback that acts the first time that bytes were written."""
    lock = threading.Lock()
    done: list[bool] = []

    def progress(_: int) -> None:
        with lock:
            if not done:
                done.append(True)
                action()

    return progress


# --- signals ---


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One edited tensor of 268 MB, zeros and sparse: on one thread it keeps a run busy for a while."""
    rows = 1 << 21
    place = Place(tmp_path_factory.mktemp("large"), rows=8)
    header = f'{{"{WEIGHT}":{{"dtype":"BF16","shape":[{rows},64],"data_offsets":[0,{rows * 128}]}}}}'.encode()
    place.base = place.folder / "base.safetensors"
    with place.base.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 128)
    write_adapter(place.adapter, lora_factors(MODULE, (rows, 64)))
    return place


def _stamps(place: Place) -> list[tuple[int, int]]:
    paths = (place.base, *place.adapter.iterdir())
    return [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_during_a_run(large: Place, number: signal.Signals) -> None:
    before = _stamps(large)
    out = large.folder / f"out-{number.name}"
    command = [sys.executable, "-m", "adaptertool", "merge", large.base, large.adapter, "-o", out, "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(large.folder.glob(f".{out.name}*/*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert not out.exists()
    assert stdout == ""
    assert "Traceback" not in stderr
    assert _stamps(large) == before
    left = list(large.folder.glob(f".{out.name}*"))
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "nothing was published" in stderr
        assert left == []
    else:
        assert process.returncode == -number
        assert len(left) == 1
        merge(large.base, [large.adapter], out)  # what a killed run leaves is in nobody's way
        assert (out / publish.MANIFEST).is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_stop_the_cleaning(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    real = shutil.rmtree

    def impatient(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(number)
        real(*arguments, **options)

    monkeypatch.setattr(Staging, "finish", lambda *_, **__: signal.raise_signal(number))
    monkeypatch.setattr(shutil, "rmtree", impatient)
    code = main_here(["merge", str(place.base), str(place.adapter), "-o", str(place.out)], monkeypatch)
    monkeypatch.undo()
    assert code == 130
    place.check_untouched()


TRACED = (
    "files/publish.py",
    "files/staging.py",
    "files/leftovers.py",
    "output/checkpoint.py",
    "cli/boundary.py",
    "cli/options.py",
)


def _interrupt_at(n: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str]:
    """Run the command line in this process, with SIGINT before the n-th line (of those that write and publish)
    that it comes to. Returns the exit code, and that line."""
    seen: list[str] = []

    def tracer(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        file = code.co_filename.rpartition("adaptertool/")[2]
        if file not in TRACED or (file == "cli/boundary.py" and code.co_name == "run"):
            return None
        line = f"{file}:{frame.f_lineno} {code.co_name}"
        if event == "line" and len(seen) < n and line not in seen:
            seen.append(line)
            if len(seen) == n:
                signal.raise_signal(signal.SIGINT)
        return tracer

    outer = sys.gettrace()
    sys.settrace(tracer)
    try:
        code = main_here(arguments, monkeypatch)
    finally:
        sys.settrace(outer)
    return code, seen[-1] if len(seen) == n else ""


@pytest.mark.parametrize("force", [(), ("--force",)])
def test_ctrl_c_at_every_line(
    place: Place, merged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, force: tuple[str, ...]
) -> None:
    """For n = 1, 2, ...: with 130 OUT is as it was, with 0 the new one. Staging is left with finished files only."""
    arguments = ["merge", str(place.base), str(place.adapter), "-o", str(place.out), "--threads", "2", *force]
    wrong: list[str] = []
    for n in range(1, 500):
        if force:
            merge(place.base, [place.adapter], place.out, weights=[0.5])
        old = snapshot(place.out)
        code, line = _interrupt_at(n, arguments, monkeypatch)
        if code not in (0, 130) or snapshot(place.out) != (merged if code == 0 else old):
            wrong.append(f"{line}: exit code {code}, and OUT is {'new' if snapshot(place.out) == merged else 'wrong'}")
        kept = code == 130 and all((folder / "journal").exists() for folder in place.staged)
        if place.staged and not kept:
            wrong.append(f"{line}: staging was left: {[str(p) for f in place.staged for p in f.rglob('*')]} {code}")
        for path in (place.out, *place.staged):
            _remove(path)
        if not line:
            break
    assert n > 50
    assert (code, line) == (0, "")
    assert not wrong, "\n".join(wrong)


def test_ctrl_c_while_the_command_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = adaptertool("--help", env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (done.returncode, done.stderr) == (130, "adaptertool: interrupted; nothing was published\n")


def _remove(path: Path) -> None:
    """Delete a tree without the help of anything that is under test."""
    for here, folders, files in os.walk(path, topdown=False):
        for name in files:
            (Path(here) / name).unlink()
        for name in folders:
            (Path(here) / name).rmdir()
    if path.is_dir():
        path.rmdir()


# --- calls that fail ---


@pytest.mark.parametrize("name", ["open", "fsync", "pwrite", "preadv", "copy_file_range", "allocate", "rename"])
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
            _remove(place.out)
        failed += 1
        place.check_untouched(told)
    assert failed > 0
    assert not wrong, "\n".join(wrong)
    assert snapshot(place.out) == merged


@pytest.mark.parametrize("call", ["pwrite", "fsync", "copy_file_range", "allocate"])
def test_failure_leaks_nothing(place: Place, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """An error in one of many threads stops all of them, and closes every file."""

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer if call == "allocate" else os, call, fail)
    assert "No space left on device" in place.check_refusal(StorageError, threads=8)


def test_fails_while_an_asset_is_copied(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Assets come last, on a path of their own."""
    real = os.copy_file_range

    def fail_for_small(source: int, target: int, size: int, *more: int) -> int:
        if os.fstat(source).st_size == len("an asset in a subfolder"):
            raise OSError(28, "No space left on device")
        return real(source, target, size, *more)

    monkeypatch.setattr(os, "copy_file_range", fail_for_small)
    assert "notes.txt" in place.check_refusal(StorageError)


def test_progress_callback_fails(place: Place) -> None:
    def fail(_: int) -> None:
        raise ValueError("a bug of the caller")

    threads, descriptors = threading.active_count(), _descriptors()
    with pytest.raises(ValueError, match="a bug of the caller"):
        place.merge(progress=fail, threads=8)
    place.check_untouched()
    assert (threading.active_count(), _descriptors()) == (threads, descriptors)


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
    threads, descriptors = threading.active_count(), _descriptors()
    with pytest.raises(StorageError, match="No space left on device"):
        place.merge(out=small_disk / "out", progress=once(action))
    clean(small_disk / "out")  # of what the run has finished
    assert [path.name for path in small_disk.iterdir() if path.name != "other"] == []
    assert (threading.active_count(), _descriptors()) == (threads, descriptors)


def _fill(path: Path) -> None:
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


# --- inputs that change ---


def _shard(place: Place) -> Path:
    return place.base / "model-00001-of-00002.safetensors"


def _alter(path: Path) -> None:
    """Another last byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))


def _alter_and_keep_times(path: Path) -> None:
    info = path.stat()
    _alter(path)
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(path.read_bytes())
    _alter(new)
    os.utime(new, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    new.rename(path)


CHANGES: dict[str, Callable[[Path], None]] = {
    "overwritten": _alter,
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
        place.merge(force=True, progress=once(lambda: _alter(_shard(place))))
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
    _shard(place).chmod(0o755)
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
    _shard(place).chmod(0o444)
    with _shard(place).open("rb"):
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
