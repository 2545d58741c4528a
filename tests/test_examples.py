"""The examples for clusters are run: the script for Slurm with an `sbatch` that runs at once, the command of the
Kubernetes Job as a pod would, and the script for Dask where that is installed. OUT is that of one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from in_parts import Place

import adaptertool

EXAMPLES = ROOT / "examples"
# Of one array task after the other, by number; the last first, since their order is nobody's
SBATCH = """#!/bin/sh
echo "$@" >> "$JOBS"
tasks=; wrap=
while [ $# -gt 0 ]; do
    case $1 in --array=0-*) tasks=$(seq "${1#--array=0-}" -1 0) ;; --wrap) shift; wrap=$1 ;; esac
    shift
done
for task in ${tasks:-none}; do SLURM_ARRAY_TASK_ID=$task sh -c "$wrap" >&2 || exit 1; done
echo "7;cluster"
"""


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Commands that are run as they stand: `adaptertool` is this one, `sbatch` runs what it is given."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "adaptertool").write_text(f'#!/bin/sh\nexec {sys.executable} -m adaptertool "$@"\n')
    (programs / "sbatch").write_text(SBATCH)
    for program in programs.iterdir():
        program.chmod(0o755)
    inherited = {**os.environ, "PYTHONPATH": str(ROOT), "JOBS": str(tmp_path / "jobs")}
    return {**inherited, "PATH": f"{programs}:{os.environ['PATH']}"}


def run(command: list[object], cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def require_as_by_one(place: Place) -> None:
    adaptertool.merge(place.base, place.adapters[:1], place.folder / "single")
    one, many = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (place.folder / "single", place.out)
    )
    assert many == one


def test_slurm(place: Place, environment: dict[str, str]) -> None:
    script = [EXAMPLES / "slurm.sh", place.base, place.adapters[0], "-o", place.out]
    run(["sh", *script], place.folder, {**environment, "PARTS": "2", "CPUS": "1"})
    require_as_by_one(place)
    array, finish = (place.folder / "jobs").read_text().splitlines()
    assert "--array=0-1 --cpus-per-task=1" in array
    assert "--dependency=afterany:7 " in finish


def test_kubernetes(place: Place, environment: dict[str, str]) -> None:
    job: dict[str, Any] = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    spec = job["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert (job["kind"], spec["completionMode"]) == ("Job", "Indexed")
    assert container["env"] == [{"name": "PARTS", "value": str(spec["completions"])}]
    adaptertool.plan_merge(place.base, place.adapters[:1], place.out, place.file)
    command = [part.replace("/data/", f"{place.folder}/") for part in container["command"]]
    for index in ("1", "0"):
        run(command, place.folder, {**environment, "PARTS": "2", "JOB_COMPLETION_INDEX": index})
    adaptertool.finish(place.file)
    require_as_by_one(place)


def test_dask(place: Place, environment: dict[str, str]) -> None:
    pytest.importorskip("distributed")
    run([sys.executable, EXAMPLES / "dask_merge.py", place.base, place.adapters[0], place.out], ROOT, environment)
    require_as_by_one(place)
