"""`adaptertool.manifest.json`: how a checkpoint came to be. The same inputs and recipe give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from adaptertool import __version__
from adaptertool.files.checkpoint import MANIFEST
from adaptertool.files.staging import Finished, Staging, digest_of
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
    fields = {
        "command": plan.command,
        "sources": [path.resolve().name for path in plan.sources],
        "weights": plan.weights,
        "alphas": alphas,
        "precision": plan.precision,
        "base": plan.base_files,
    }
    known = {stage.work / name: finished for name, finished in stage.finished.items()}
    write_manifest(folder, fields, known)


def write_manifest(folder: Path, fields: Mapping[str, object], known: Mapping[Path, Finished]) -> None:
    """The manifest of all files in `folder`. known: those whose size and hash need not be found."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    content = {
        "schema": "manifest/1",
        "adaptertool": __version__,
        **fields,
        # --force replaces a folder that holds these and no others
        "files": {path.relative_to(folder).as_posix(): _facts(path, known) for path in files},
    }
    write_small(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


def _facts(path: Path, known: Mapping[Path, Finished]) -> dict[str, int | str]:
    size, digest = known.get(path) or (path.stat().st_size, digest_of(path))
    return {"size": size, "blake3": digest}
