"""`adaptertool.manifest.json`: how a checkpoint came to be. The same inputs and recipe give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from adaptertool import __version__
from adaptertool.files.checkpoint import MANIFEST
from adaptertool.files.writer import write_small
from adaptertool.spec import Plan


def write_manifests(plan: Plan, folder: Path) -> None:
    """One beside every output, and one at the top of a sweep. No time, no absolute path."""
    for output in plan.outputs:
        _write(plan, folder / output.folder, [output.alpha])
    if plan.outputs[0].folder:
        _write(plan, folder, [output.alpha for output in plan.outputs])


def _write(plan: Plan, folder: Path, alphas: list[float]) -> None:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    content = {
        "schema": "manifest/1",
        "adaptertool": __version__,
        "command": plan.command,
        "sources": [path.resolve().name for path in plan.sources],
        "weights": plan.weights,
        "alphas": alphas,
        "precision": plan.precision,
        "base": plan.base_files,
        "files": files,  # --force replaces a folder that holds these and no others
    }
    write_small(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
