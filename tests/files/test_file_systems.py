"""File systems of clusters, and limits: Lustre without flock, NFS without lockd, FUSE without fsync of directories, no
fallocate, short writes, threads that do not start, closed streams. A library (preload.c) has the calls fail."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import forks
import pytest
from conftest import ROOT, adaptertool, snapshot
from staged import Place

from adaptertool import sum_adapters, wise_curve
from adaptertool.engine.pool import Pool
from adaptertool.errors import OutputError, StorageError
from adaptertool.files.leftovers import left_behind
from adaptertool.tasks.clean import clean


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler, path = shutil.which("gcc"), tmp_path_factory.mktemp("library") / "preload.so"
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("there is no gcc to compile the library with")
    call = [compiler, "-shared", "-fPIC", "-O1", "-o", str(path), str(ROOT / "tests/preload.c"), "-ldl"]
    subprocess.run(call, check=True)
    return path


def run(place: Place, library: Path, *more: str, **how: str) -> subprocess.CompletedProcess[str]:
    """The merge, with these variables for the library."""
    command = ["merge", str(place.base), str(place.adapter), "-o", str(place.out), "--threads", "2", *more]
    return under(library, command, None, **how)


def under(library: Path, command: list[str], cwd: Path | None, **how: str) -> subprocess.CompletedProcess[str]:
    start = {"LD_PRELOAD": str(library), "PYTHONPATH": str(ROOT)}
    if (done := forks.run(command, cwd, start=start, environment=how)) is not None:
        return done
    return adaptertool(*command, cwd=cwd, env={**os.environ, **start, **how})


def failing(**calls: str) -> str:
    """For FAIL: each call with its errno by name, and what else."""
    parts = {name: how.split(":", 1) for name, how in calls.items()}
    return ",".join(":".join([name, str(getattr(errno, code)), *rest]) for name, (code, *rest) in parts.items())


LOCKS, SYNC, SPACE = "without locks", "without fsync of directories", "without a count of its free space"
CASES: dict[str, tuple[dict[str, str], list[str]]] = {
    "flock: ENOLCK": ({"FAIL": failing(flock="ENOLCK")}, [LOCKS]),
    "flock: ENOSYS": ({"FAIL": failing(flock="ENOSYS")}, [LOCKS]),
    "flock: EOPNOTSUPP": ({"FAIL": failing(flock="EOPNOTSUPP")}, [LOCKS]),
    "flock: EINTR": ({"FAIL": failing(flock="EINTR:0:3")}, []),
    "fsync of a directory: EINVAL": ({"FAIL": failing(fsyncdir="EINVAL")}, [SYNC]),
    "fsync of a directory: ENOTSUP": ({"FAIL": failing(fsyncdir="ENOTSUP")}, [SYNC]),
    "fallocate: EOPNOTSUPP": ({"FAIL": failing(fallocate="EOPNOTSUPP")}, []),  # and posix_fallocate aborts
    "fallocate: EINTR": ({"FAIL": failing(fallocate="EINTR:0:2")}, []),
    "sync_file_range: ENOSYS": ({"FAIL": failing(sync_file_range="ENOSYS")}, []),
    "short reads and writes": ({"SHORT": "100"}, []),
    "pwrite, preadv: EINTR": ({"FAIL": failing(pwrite="EINTR:0:3", preadv="EINTR:0:3")}, []),
    "statvfs: ENOSYS": ({"FAIL": failing(statvfs="ENOSYS")}, [SPACE]),
    "statvfs counts nothing": ({"NO_COUNT": "1"}, [SPACE]),
    "one thread starts": ({"FAIL": failing(pthread_create="EAGAIN:1:")}, ["1 of 2 threads"]),
    "no thread starts": ({"FAIL": failing(pthread_create="EAGAIN")}, ["1 of 2 threads"]),
    "all at once": (
        {"FAIL": failing(flock="ENOLCK", fsyncdir="EINVAL", fallocate="EOPNOTSUPP", link="EPERM", statvfs="ENOSYS")},
        [LOCKS, SYNC, SPACE],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_goes_on_and_says_so(place: Place, merged: dict[str, bytes], library: Path, case: str) -> None:
    how, said = CASES[case]
    done = run(place, library, "--json", **how)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert snapshot(place.out) == merged
    notes = json.loads(done.stdout)["notes"]
    assert len(notes) == bool(said), notes
    assert all(what.removeprefix("without ") in notes[0] for what in said)
    assert all(note in done.stderr for note in notes)
    assert left_behind(place.out) == []


@pytest.mark.parametrize("code", ["EINVAL", "ENOSYS"])
def test_force_without_an_exchange(place: Place, merged: dict[str, bytes], library: Path, code: str) -> None:
    place.merge(weights=[0.5])
    assert run(place, library, "--force", FAIL=failing(renameat2=code)).returncode == 0
    assert snapshot(place.out) == merged and left_behind(place.out) == []


@pytest.mark.parametrize("code", ["EPERM", "EOPNOTSUPP"])
def test_one_file_without_links(place: Place, library: Path, code: str) -> None:
    place.base = next(place.base.glob("*00001*"))
    place.out = place.folder / "out.safetensors"
    done = run(place, library, FAIL=failing(link=code))
    assert done.returncode == 0, done.stderr
    assert place.out.stat().st_size == place.base.stat().st_size


@pytest.mark.parametrize("calls", [{"flock": "EIO"}, {"fsyncdir": "EIO"}, {"fallocate": "ENOSPC"}, {"pwrite": "EIO"}])
def test_what_is_a_failure_stays_one(place: Place, library: Path, calls: dict[str, str]) -> None:
    done = run(place, library, FAIL=failing(**calls))
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert not place.out.exists() and left_behind(place.out) == []


# --- no locks ---


def _no_locks(*_: Any) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_two_runs_without_locks_leave_each_other_alone(
    place: Place, merged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are under way; the first to finish publishes, and the other is refused."""
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    started: list[int] = []

    def meanwhile(_: int) -> None:
        if not started:
            started.append(len(left_behind(place.out)))
            place.merge()
            assert snapshot(place.out) == merged

    with pytest.raises(OutputError, match="another run of the same command has published"):
        place.merge(threads=1, progress=meanwhile)
    assert started == [1]
    assert snapshot(place.out) == merged and left_behind(place.out) == []


def test_nothing_is_kept_that_cannot_be_continued(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _no_locks)

    def full(_: int) -> None:
        raise StorageError("the disk is full")

    with pytest.raises(StorageError, match=r"the disk is full$"):
        place.merge(progress=full)
    assert left_behind(place.out) == []


def test_what_a_killed_run_left_is_named_and_spared(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without locks a run that is at work cannot be told from a dead one."""
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    (place.stage / "work").mkdir(parents=True)
    (place.stage / "lock").touch()
    report = sum_adapters([place.adapter], place.out, clean=True)
    (hint,) = [note for note in report.notes if "rm -r" in note]
    assert str(place.stage) in hint and place.stage.exists()
    with pytest.raises(StorageError, match=f"no locks.*rm -r {place.stage}"):
        clean(place.out)
    assert place.stage.exists()


def test_a_curve_without_locks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", _no_locks)
    report = wise_curve(place.base, place.adapter, place.out, ["0", "1"], lambda path: float(len(path)))
    assert report.ok and "file system without locks" in report.notes[-1]
    assert left_behind(place.out) == []


# --- threads ---


def test_a_pool_goes_on_with_the_threads_that_start(monkeypatch: pytest.MonkeyPatch) -> None:
    real = threading.Thread.start
    for allowed, size in ((0, 1), (2, 2), (9, 4)):
        started: list[str] = []

        def start(thread: threading.Thread, started: list[str] = started, allowed: int = allowed) -> None:
            if len(started) >= allowed:
                raise RuntimeError("can't start new thread")
            started.append(thread.name)
            real(thread)

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with Pool(4) as pool:
                assert pool.size == size
                futures = [pool.submit(pow, 2, number) for number in range(20)]
                failed = pool.submit(int, "x")
        assert [future.result() for future in futures] == [2**number for number in range(20)]
        assert isinstance(failed.exception(), ValueError)


COMMANDS = {
    "verify": (["verify", "out", "base", "adapter"], 0),
    "verify the files": (["verify", "out"], 0),
    "diff": (["diff", "out", "base"], 1),
    "truncate": (["truncate", "adapter", "--rank", "2", "-o", "new"], 0),
}


@pytest.mark.parametrize("case", COMMANDS)
def test_other_commands_without_a_thread(place: Place, library: Path, case: str) -> None:
    place.merge()
    arguments, code = COMMANDS[case]
    done = under(library, arguments, place.folder, FAIL=failing(pthread_create="EAGAIN"))
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr


# --- closed streams ---

CLOSED = {
    "stderr": ("2>&-", 0),
    "stdout": (">&-", 0),
    "all": ("<&- >&- 2>&-", 0),
    "stderr is full": ("2>/dev/full", 0),
    "stdout is full": (">/dev/full", 4),
}


def told(place: Place, arguments: str, how: str) -> subprocess.CompletedProcess[str]:
    call = ["sh", "-c", f'"$0" -m adaptertool {arguments} {how}', sys.executable]
    return subprocess.run(call, cwd=place.folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("case", CLOSED)
def test_streams_that_are_closed_or_full(place: Place, merged: dict[str, bytes], case: str) -> None:
    how, code = CLOSED[case]
    done = told(place, "merge base adapter -o out", how)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert snapshot(place.out) == merged


REFUSED = {"merge base adapter -o out": 5, "merge --none": 2, "merge base base -o new": 3}


@pytest.mark.long("case")
@pytest.mark.parametrize("case", CLOSED)
@pytest.mark.parametrize("arguments", REFUSED)
def test_a_refusal_where_streams_are_closed_or_full(place: Place, case: str, arguments: str) -> None:
    place.merge()
    done = told(place, arguments, CLOSED[case][0])
    assert (done.returncode, done.stdout) == (REFUSED[arguments], "")


def test_threads_of_a_scoring_command_are_its_own(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """What our own process is spared is not taken from those that it starts."""
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    score = "print(float('OPENBLAS_NUM_THREADS' in os.environ))"
    (place.folder / "score.py").write_text(f"import os\n{score}\n")
    command = ["wise", "base", "adapter", "--alpha", "1", "--score", f"{sys.executable} score.py {{}}", "--json"]
    call = [sys.executable, "-m", "adaptertool", *command]
    done = subprocess.run(call, cwd=place.folder, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["points"][0]["scores"] == {"score": 0.0}
