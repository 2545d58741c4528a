"""examples/slurm.sh on a Slurm of one node that is started for it: `make test-slurm`. It needs root, and Slurm: on
Debian `apt-get install slurm-wlm munge`."""

from __future__ import annotations

import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import ROOT, snapshot
from in_parts import Place

import adaptertool
from adaptertool.files.hashing import DEFAULT
from adaptertool.files.leftovers import left_behind
from adaptertool.files.receipts import Receipts

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ADAPTERTOOL_SLURM" not in os.environ, reason="`make test-slurm` starts a Slurm for it"),
    pytest.mark.skipif(bool(MISSING), reason=f"Slurm is not installed, there is no {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="daemons of Slurm need root to run jobs"),
]
PATIENCE = 90  # seconds

CONFIG = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
KillWait=1
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""

# `adaptertool` on the nodes. While there is a file `slow`, a part stays at work on a shard until it is killed
COMMAND = """#!/bin/sh
PYTHONPATH={root} exec {python} -c '
import os, pathlib, sys, time
from adaptertool.files.staging import Staging
folder, real = pathlib.Path("{folder}"), Staging.finish
def finish(*given, **more):
    real(*given, **more)
    if (folder / "slow").exists():
        (folder / (os.environ["SLURM_ARRAY_TASK_ID"] + ".busy")).write_text(str(os.getpid()))
        time.sleep(600)
Staging.finish = finish
from adaptertool.cli import main
main()
' "$@"
"""


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.2)


class Cluster:
    """munged, slurmctld and slurmd, with all that they write in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.processes = folder, list[subprocess.Popen[bytes]]()
        for name in ("state", "spool", "bin"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        host, sockets = platform.node().partition(".")[0], [socket.socket() for _ in range(2)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
        for one in sockets:
            one.close()
        (folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=folder, ports=ports))
        command = folder / "bin/adaptertool"
        command.write_text(COMMAND.format(root=ROOT, python=sys.executable, folder=folder))
        command.chmod(0o755)
        path = f"{folder}/bin:{os.environ['PATH']}"
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}

    def start(self) -> None:
        here = [f"--{name}={self.folder}/munge.{end}" for name, end in (
            ("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"),
        )]  # fmt: skip
        self._start("munged", "--foreground", "--force", *here)
        until((self.folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D")
        until(lambda: "idle" in self.ask("sinfo", "-h", "-o", "%t"))

    def _start(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as log:
            self.processes.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log))

    def ask(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return done.stdout

    def stop(self) -> None:
        self.ask("scancel", "--user", "root")
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def idle(self) -> bool:
        return not self.ask("squeue", "-h")

    def state(self, job: str) -> str:
        told = self.ask("scontrol", "show", "job", "-o", job)
        return "".join(word for word in told.split() if word.startswith(("JobState=", "ExitCode=")))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        found.start()
        yield found
    finally:
        found.stop()


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def submitted(cluster: Cluster, place: Place) -> list[str]:
    """Run the script of the examples; the numbers of the array and of `finish`."""
    script = [ROOT / "examples/slurm.sh", place.base, place.adapters[0], "-o", place.out]
    more = {"PARTS": "3", "CPUS": "1", "MEMORY": "500M"}
    command, environment = ["sh", *map(str, script)], {**cluster.environment, **more}
    done = subprocess.run(command, cwd=place.folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    finish = done.stdout.split()[-1].partition(";")[0]
    jobs = cluster.ask("scontrol", "show", "job", "-o").splitlines()
    arrays = [
        int(found[1])
        for job in jobs
        if (found := re.search(r"JobName=merge\b", job) and re.search(r"ArrayJobId=(\d+)", job))
    ]
    return [str(max(arrays)), finish]


def require_as_by_one(place: Place) -> None:
    adaptertool.merge(place.base, place.adapters[:1], place.folder / "one")
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []


def test_an_array(cluster: Cluster, place: Place) -> None:
    """And the script again, when OUT is there: all end well, with nothing to do."""
    submitted(cluster, place)
    until(cluster.idle)
    require_as_by_one(place)
    array, finish = submitted(cluster, place)
    until(cluster.idle)
    for job in (f"{array}_0", f"{array}_2", finish):
        assert cluster.state(job) == "JobState=COMPLETEDExitCode=0:0"


def test_tasks_that_are_killed_and_requeued(cluster: Cluster, place: Place) -> None:
    """The process of one is killed, another is requeued as when its node is lost. `finish` says what is missing; the
    same script goes on."""
    (cluster.folder / "slow").touch()
    array, finish = submitted(cluster, place)
    busy = [cluster.folder / f"{number}.busy" for number in range(3)]
    until(lambda: all(path.exists() and path.read_text() for path in busy))
    (stage,) = left_behind(place.out)
    made = {(stage / "parts" / one.part).stat().st_ino for one in Receipts(stage / "receipts", DEFAULT).all()}
    assert len(made) == 3
    (cluster.folder / "slow").unlink()
    cluster.ask("scontrol", "requeue", f"{array}_1")
    for number in (0, 2):
        os.kill(int(busy[number].read_text()), 9)
    until(lambda: "FAILED" in cluster.state(f"{array}_0"))
    cluster.ask("scontrol", "update", f"JobId={array}_1", "StartTime=now")
    until(cluster.idle)
    # A part that is killed has another shard in hand
    assert cluster.state(finish) == "JobState=FAILEDExitCode=4:0"
    assert "1 of 4 shards are not made yet" in (place.folder / f"slurm-{finish}.out").read_text()
    submitted(cluster, place)
    until(cluster.idle)
    require_as_by_one(place)
    assert made < {path.stat().st_ino for path in place.out.iterdir()}
