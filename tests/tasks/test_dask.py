"""Merges on a cluster of Dask on this machine: workers, and clients, that are killed while a shard is made.
`make test-dask` installs what they need."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, main_here, snapshot
from in_parts import Place

from adaptertool import merge, wise
from adaptertool.files.leftovers import left_behind

pytest.importorskip("distributed")
pytestmark = pytest.mark.slow
Here = Callable[..., tuple[object, Any, str]]

# In the place of the worker: a shard takes long, so that it can be killed meanwhile
SLOW = """
import os, pathlib, time
from adaptertool.files.staging import Staging
real = Staging.part
def part(stage):
    found = real(stage)
    folder = pathlib.Path(os.environ["BUSY"])
    if (folder / "slow").exists():
        (folder / f"{os.getpid()}.pid").touch()
        time.sleep(60)
    return found
Staging.part = part
"""


class Cluster:
    """A scheduler and workers with a nanny each, which starts a worker that died anew."""

    def __init__(self, folder: Path, *workers: str) -> None:
        (folder / "busy").mkdir()
        (folder / "slow_worker.py").write_text(SLOW)
        self.folder, self.busy, self.file = folder, folder / "busy", folder / "scheduler.json"
        paths = os.pathsep.join([str(ROOT), str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.environment = {**os.environ, "PYTHONPATH": paths, "BUSY": str(self.busy)}
        self.processes = [
            self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"),
            self.start("worker", *workers, "--nthreads", "1", "--no-dashboard", "--preload", "slow_worker"),
        ]

        for _ in range(1200):
            if self.file.exists():  # which a command does not wait for
                return
            time.sleep(0.05)
        raise AssertionError("the scheduler did not start")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        call = [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(self.file)]
        with (self.folder / f"{arguments[0]}.log").open("wb") as log:
            return subprocess.Popen(call, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def command(self, place: Place, *more: str) -> subprocess.Popen[str]:
        call = [sys.executable, "-m", "adaptertool", *more, "-o", str(place.out), "--dask", str(self.file), "--json"]
        return subprocess.Popen(
            call, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=place.folder
        )

    def kill_the_busy(self) -> int:
        """Kill the first worker that is found amid a shard."""
        for _ in range(600):
            for path in self.busy.glob("*.pid"):
                (self.busy / "slow").unlink(missing_ok=True)
                path.unlink()
                os.kill(int(path.stem), signal.SIGKILL)
                return int(path.stem)
            time.sleep(0.05)
        raise AssertionError("no worker was busy")

    def wait_until_busy(self) -> None:
        for _ in range(600):
            if list(self.busy.glob("*.pid")):
                return
            time.sleep(0.05)
        raise AssertionError("no worker was busy")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("cluster"), "--nworkers", "2")
    yield found
    found.stop()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def ended(process: subprocess.Popen[str]) -> tuple[int, Any, str]:
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, json.loads(stdout) if stdout else None, stderr


@pytest.fixture
def here(cluster: Cluster, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """A command in this process, where no one is to be killed: Dask is imported once."""

    def run(*arguments: str) -> tuple[object, Any, str]:
        monkeypatch.chdir(place.folder)
        capsys.readouterr()
        options = ["-o", str(place.out), "--dask", str(cluster.file), "--json"]
        code = main_here([*arguments, *options], monkeypatch)
        out, err = capsys.readouterr()
        return code, json.loads(out) if out else None, err

    return run


def test_merge_and_wise(place: Place, here: Here) -> None:
    merge(place.base, place.adapters[:1], place.folder / "one")
    code, report, stderr = here("merge", "base", "adapter0")
    assert (code, stderr) == (0, "") and report["schema"] == "run/1"
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []
    wise(place.base, place.tuned, place.folder / "two", "0.25,0.5")
    place.out = place.folder / "more"
    code, _, stderr = here("wise", "base", "tuned", "--alpha", "0.25,0.5")
    assert (code, stderr) == (0, "")
    assert snapshot(place.out) == snapshot(place.folder / "two")


def test_a_worker_is_killed_amid_a_shard(cluster: Cluster, place: Place) -> None:
    """Dask repeats it elsewhere, and the merge ends well."""
    merge(place.base, place.adapters[:1], place.folder / "one")
    (cluster.busy / "slow").touch()
    process = cluster.command(place, "merge", "base", "adapter0")
    cluster.kill_the_busy()
    for path in cluster.busy.glob("*.pid"):  # the other one sleeps too
        os.kill(int(path.stem), signal.SIGKILL)
        path.unlink()
    code, _, stderr = ended(process)
    assert (code, stderr) == (0, "")
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []


def test_the_client_is_killed(cluster: Cluster, place: Place, here: Here) -> None:
    """The same command goes on."""
    merge(place.base, place.adapters[:1], place.folder / "one")
    (cluster.busy / "slow").touch()
    process = cluster.command(place, "merge", "base", "adapter0")
    cluster.wait_until_busy()
    process.kill()
    process.communicate()
    assert not place.out.exists()
    (cluster.busy / "slow").unlink()
    for path in cluster.busy.glob("*.pid"):
        os.kill(int(path.stem), signal.SIGKILL)
        path.unlink()
    code, _, stderr = here("merge", "base", "adapter0")
    assert (code, stderr) == (0, "")
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []


def test_the_scheduler_is_killed(tmp_path: Path, place: Place, here: Here) -> None:
    """Amid a shard: the command ends with a message, and the same goes on when there is another."""
    merge(place.base, place.adapters[:1], place.folder / "one")
    (tmp_path / "first").mkdir()
    first = Cluster(tmp_path / "first", "--nworkers", "1")
    try:
        (first.busy / "slow").touch()
        process = first.command(place, "merge", "base", "adapter0")
        first.wait_until_busy()
        first.processes[0].kill()
        code, report, stderr = ended(process)
        assert code == 4 and "the Dask scheduler at" in stderr and "is gone" in stderr and stderr.count("\n") == 1, (
            stderr
        )
        assert report["error"]["exit_code"] == 4 and not place.out.exists()
    finally:
        first.stop()
        for path in first.busy.glob("*.pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(path.stem), signal.SIGKILL)
    code, _, stderr = here("merge", "base", "adapter0")
    assert (code, stderr) == (0, "")
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []


def test_no_scheduler(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from adaptertool.errors import StorageError  # noqa: PLC0415
    from adaptertool.tasks import on_dask  # noqa: PLC0415

    monkeypatch.setattr(on_dask, "_PATIENCE", 1)
    with pytest.raises(StorageError, match="no Dask scheduler answers"):
        on_dask._connected("tcp://127.0.0.1:9")
    with pytest.raises(StorageError, match="no Dask scheduler answers"):
        on_dask._connected(str(place.folder / "none.json"))
