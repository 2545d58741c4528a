"""`adaptertool.manifest.json`: how a checkpoint came to be. The same inputs and recipe give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from blake3 import blake3

from adaptertool import __version__
from adaptertool.files.checkpoint import MANIFEST
from adaptertool.files.staging import Staging, digest_of
from adaptertool.files.writer import write_small
from adaptertool.plan import all_steps
from adaptertool.spec import Plan


def recipe_key(plan: Plan) -> str:
    """What tells a run from every other: the version, the recipe, each input file as it was found, each edit."""
    outputs = [(output.folder, output.alpha, output.files) for output in plan.outputs]
    inputs = sorted((str(path), stamp) for path, stamp in plan.inputs.items())
    state = blake3(repr((__version__, plan.command, plan.weights, plan.precision, outputs, inputs)).encode())
    for step in all_steps(plan):
        if step.edits:
            state.update(repr(step).encode())
    return state.hexdigest(8)


def write_manifests(plan: Plan, stage: Staging) -> None:
    """One beside every output, and one at the top of several. No time, no absolute path."""
    for output in plan.outputs:
        _write(plan, stage, stage.work / output.folder, [output.alpha])
    if [output.folder for output in plan.outputs] != [""]:
        _write(plan, stage, stage.work, [output.alpha for output in plan.outputs])


def _write(plan: Plan, stage: Staging, folder: Path, alphas: list[float]) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    content = {
        "schema": "manifest/1",
        "adaptertool": __version__,
        "command": plan.command,
        "sources": [path.resolve().name for path in plan.sources],
        "weights": plan.weights,
        "alphas": alphas,
        "precision": plan.precision,
        "base": plan.base_files,
        # --force replaces a folder that holds these and no others
        "files": {path.relative_to(folder).as_posix(): _facts(stage, path) for path in files},
    }
    write_small(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _facts(stage: Staging, path: Path) -> dict[str, int | str]:
    known = stage.finished.get(path.relative_to(stage.work).as_posix())
    size, digest = known or (path.stat().st_size, digest_of(path))
    return {"size": size, "blake3": digest}
