"""A curve between two checkpoints, scored by a script that tells which alpha it is shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import snapshot, write_checkpoint

from adaptertool import CurveReport, wise_curve
from adaptertool.scoring import run as scored_module

# Of tensors that are 0 in the base and 1 in the tuned: so a score says of which alpha the checkpoint is. It is run
# hundreds of times, and to import json and struct would take longer than all the rest of it
SCRIPT = """\
import os, sys, time
path, log = sys.argv[1], sys.argv[3]
with open(path + "/model.safetensors", "rb") as file:
    size = int.from_bytes(file.read(8), "little")
    start = eval(file.read(size))["w"]["data_offsets"][0]
    file.seek(8 + size + start)
    w = round(memoryview(file.read(4)).cast("f")[0], 6)
with open(log, "a") as file:
    file.write(f"{w:g}\\n")
extra = {}
#
if extra:
    import json
print(json.dumps({"old": 1 - w * w, "new": w / 2, **extra}) if extra else f'{{"old": {1 - w * w}, "new": {w / 2}}}')
"""
ALPHAS = "0:1:0.25"
SWEEP = [0.0, 0.25, 0.5, 0.75, 1.0]


class Place:
    def __init__(self, folder: Path, body: str = "") -> None:
        self.folder, self.out, self.log, self.script = (
            folder, folder / "out", folder / "calls", folder / "score.py",
        )  # fmt: skip
        same = {"same": torch.randn(3, 3)}
        self.base = write_checkpoint(folder / "base", {"w": torch.zeros(4, 4), **same})
        self.tuned = write_checkpoint(folder / "tuned", {"w": torch.ones(4, 4), **same})
        self.write(body)
        self.before = snapshot(self.base) | snapshot(self.tuned)

    def write(self, body: str) -> None:
        self.script.write_text(SCRIPT.replace("#\n", body + "\n"))

    @property
    def command(self) -> str:
        return f"{sys.executable} {self.script} {{}} --log {self.log}"

    def run(self, alphas: str = ALPHAS, out: bool = True, **options: Any) -> CurveReport:
        return wise_curve(self.base, self.tuned, self.out if out else None, alphas, self.command, **options)

    def arguments(self, *more: str) -> list[str]:
        # a second --alpha counts, and not the first
        return ["wise", str(self.base), str(self.tuned), "--alpha", ALPHAS, "--score", self.command, *more]

    def calls(self) -> list[float]:
        """Of which alphas the command was run since the last time."""
        found = [float(line) for line in self.log.read_text().split()] if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return found


def scores_of(report: CurveReport) -> dict[float, dict[str, float]]:
    return {point.alpha: dict(point.scores) for point in report.points if point.scores}


EXPECTED = {alpha: {"old": 1 - alpha**2, "new": alpha / 2} for alpha in SWEEP}


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scored_module.CheckpointMaker, "has_room", lambda _self, _outputs: False)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many outputs each pass over the base has."""
    passes: list[int] = []
    true = scored_module.run_plan

    def counted(plan: Any, *rest: Any) -> Any:
        passes.append(len(plan.outputs))
        return true(plan, *rest)

    monkeypatch.setattr(scored_module, "run_plan", counted)
    return passes
