"""The same as test_resume with the kernel's own calls: strace kills the process at the n-th call, or has it fail. So
calls of C (renameat2, and those of libraries) are met too. A sample here, all of them in `make fault-test`."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, snapshot
from sharded import Place

from adaptertool import merge
from adaptertool.files.leftovers import left_behind
from adaptertool.output.integrity import check_files

WRITES = ("pwrite64", "fallocate", "fsync", "rename,renameat,renameat2", "mkdir,mkdirat", "flock")
READS = "preadv,preadv2"  # Python makes the second of the first, where there is one
KILLED = (*WRITES, READS, "unlink,unlinkat,rmdir")
# Once (N) or from there on (N+); the calls that such an error can come from
ERRORS = {
    "ENOSPC": ("pwrite64", "fallocate", "rename,renameat,renameat2", "mkdir,mkdirat"),
    "EDQUOT": ("pwrite64", "fallocate"),
    "EIO": ("pwrite64", "fsync", READS, "rename,renameat,renameat2"),
    "EROFS": ("rename,renameat,renameat2", "mkdir,mkdirat"),
}
ALL = bool(os.environ.get("ADAPTERTOOL_ALL_FAULTS"))


def sample(cases: Sequence[Any], every: int) -> Sequence[Any]:
    return cases if ALL else cases[1::every]


def _works() -> bool:
    if shutil.which("strace") is None:
        return False
    call = ["strace", "-f", "-qqq", "-o", os.devnull, "-e", "trace=getppid", "-e", "inject=getppid:error=EIO", "true"]
    return subprocess.run(call, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _works(), reason="strace is not here, or must not trace"),
]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    place = Place(tmp_path_factory.mktemp("good"))
    merge(place.base, [place.adapter], place.out, threads=1)
    return snapshot(place.out)


def traced(place: Place, calls: str, how: str, *more: str) -> tuple[subprocess.CompletedProcess[str], int]:
    """Run the merge with these calls tampered with; and how often strace did so."""
    log = place.folder.with_name(f"{place.folder.name}.log")
    present = ",".join(f"?{call}" for call in calls.split(","))  # not every machine has each
    # With the filter no other call stops the process, which takes most of the time; strace 6.1 then sends no signals
    only = ["--seccomp-bpf"] if how.startswith("error=") else []
    options = ["-f", *only, "-qqq", "-o", str(log), "-e", f"trace={present}", "-e", f"inject={present}:{how}"]
    command = ["strace", *options, sys.executable, "-m", "adaptertool", *place.command(*more)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)
    return done, log.read_text().count("(INJECTED)")


def check_all_is_well(place: Place, expected: dict[str, bytes], what: str) -> None:
    """Inputs are untouched, OUT is not there or complete, and the same command ends in the same bytes."""
    found = snapshot(place.folder)
    assert {name: found[name] for name in place.before} == place.before, what
    if place.out.exists():
        assert snapshot(place.out) == expected, what
        assert check_files(place.out).ok
        return
    kept = place.finished()
    merge(place.base, [place.adapter], place.out, threads=1)
    assert snapshot(place.out) == expected, what
    assert all((place.out / name).stat().st_ino == inode for name, inode in kept.items()), what
    assert left_behind(place.out) == []


def numbers() -> Iterator[int]:
    """Every call in turn, or some."""
    return itertools.count(1) if ALL else iter((2,))


@pytest.mark.parametrize("calls", sample(KILLED, 3))
def test_killed_at_every_call(tmp_path: Path, expected: dict[str, bytes], calls: str) -> None:
    for number in numbers():
        place = Place(tmp_path / f"{number}")
        done, _ = traced(place, calls, f"signal=SIGKILL:when={number}")
        assert done.returncode != 0 or number > 1, f"no call of {calls} was met"
        assert done.returncode in (0, -9, 137), done.stderr
        check_all_is_well(place, expected, f"killed at call {number} of {calls}")
        if done.returncode == 0:  # there are fewer calls
            break


@pytest.mark.parametrize(
    ("error", "calls", "lasting"),
    sample([(error, calls, lasting) for error in ERRORS for calls in ERRORS[error] for lasting in ("", "+")], 5),
)
def test_every_call_fails(tmp_path: Path, expected: dict[str, bytes], error: str, calls: str, lasting: str) -> None:
    for number in numbers():
        place = Place(tmp_path / f"{number}")
        done, hits = traced(place, calls, f"error={error}:when={number}{lasting}")
        what = f"{error} at call {number}{lasting} of {calls}: {done.stderr}"
        assert "Traceback" not in done.stderr, what
        assert done.returncode in (0, 4), what
        assert done.returncode == 4 or place.out.exists(), what
        if done.returncode == 4:
            assert not place.out.exists(), what
            assert len(left_behind(place.out)) <= 1, what
        check_all_is_well(place, expected, what)
        assert hits or number > 1, f"no call of {calls} was met"
        if not hits:
            break


@pytest.mark.parametrize("calls", sample([*WRITES, READS], 3))
def test_interrupted_calls_are_made_again(tmp_path: Path, expected: dict[str, bytes], calls: str) -> None:
    """EINTR is no error."""
    for number in numbers():
        place = Place(tmp_path / f"{number}")
        done, hits = traced(place, calls, f"error=EINTR:when={number}")
        what = f"EINTR at call {number} of {calls}: {done.stderr}"
        assert done.returncode in ((0, 4) if calls.startswith(("rename", "mkdir")) else (0,)), what
        check_all_is_well(place, expected, what)
        assert hits or number > 1, f"no call of {calls} was met"
        if not hits or number > 50:
            break


def test_force_killed_while_it_publishes(tmp_path: Path, expected: dict[str, bytes]) -> None:
    """OUT is the old or the new, never absent."""
    for number in itertools.count(1):
        place = Place(tmp_path / f"{number}")
        merge(place.base, [place.adapter], place.out, weights=[0.5], threads=1)
        old = snapshot(place.out)
        done, _ = traced(place, "renameat2", f"signal=SIGKILL:when={number}", "--force")
        assert snapshot(place.out) == (expected if done.returncode == 0 else old)
        if done.returncode == 0:
            break
    assert number == 2
