"""The same bytes on every processor: fixed recipes give the hashes that were recorded, also with instruction sets
and kernels turned off."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from recipe_inputs import make_inputs

from adaptertool.numerics.compiled import LEVELS, levels

RECORDED = json.loads((ROOT / "tests/recorded.json").read_text())


def dispatched() -> str:
    """What numpy chooses at run time beyond its baseline, as far as this processor has it."""
    found = np._core._multiarray_umath  # type: ignore[attr-defined]
    return " ".join(name for name in found.__cpu_dispatch__ if found.__cpu_features__.get(name))


LESS = {
    "all that this processor has": {},
    "numpy's baseline": {"NPY_DISABLE_CPU_FEATURES": dispatched()},
    "the oldest kernels of BLAS": {"OPENBLAS_CORETYPE": "Prescott"},
    **{f"the kernel's {level}": {"ADAPTERTOOL_KERNEL": level} for level in LEVELS},
    "without the compiled kernel": {"ADAPTERTOOL_KERNEL": "off"},
    "the least of all": {
        "NPY_DISABLE_CPU_FEATURES": dispatched(),
        "OPENBLAS_CORETYPE": "Prescott",
        "ADAPTERTOOL_KERNEL": "off",
    },
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("recipes") / "inputs")


@pytest.mark.parametrize(
    "less", [name if not LESS[name] else pytest.param(name, marks=pytest.mark.long) for name in LESS]
)
def test_recorded_hashes(tmp_path: Path, inputs: Path, less: str) -> None:
    wanted = LESS[less].get("ADAPTERTOOL_KERNEL", "off")
    if wanted in LEVELS and wanted not in levels():
        pytest.skip(f"this processor, or this build of the kernel, has no {wanted}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ROOT / "tests/recipes.py", tmp_path, inputs],
        env=os.environ | LESS[less],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == RECORDED


@pytest.mark.skipif(platform.machine() != "x86_64", reason="a kernel for x86")
def test_the_kernels_of_blas_can_be_chosen() -> None:
    """Else the test above would show nothing."""
    script = (
        "import numpy, threadpoolctl; print([pool.get('architecture') for pool in threadpoolctl.threadpool_info()])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"OPENBLAS_CORETYPE": "Prescott"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Prescott" in done.stdout or "Katmai" in done.stdout  # how it calls what it has for that
