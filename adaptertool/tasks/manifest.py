"""`adaptertool.manifest.json`: how a checkpoint came to be. The same inputs and recipe give the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from blake3 import blake3

from adaptertool import __version__
from adaptertool.files.checkpoint import MANIFEST
from adaptertool.files.hashing import Digests, digests_of
from adaptertool.files.staging import Staging
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


def write_manifests(plan: Plan, stage: Staging, inputs: Mapping[Path, Digests]) -> None:
    """One beside every output, and one at the top of a sweep. No time, no absolute path."""
    for output in plan.outputs:
        _write(plan, stage, inputs, stage.work / output.folder, [output.alpha])
    if plan.outputs[0].folder:
        _write(plan, stage, inputs, stage.work, [output.alpha for output in plan.outputs])


def _write(plan: Plan, stage: Staging, inputs: Mapping[Path, Digests], folder: Path, alphas: list[float]) -> None:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    base, *sources = ({name: _input(plan, inputs, files[name]) for name in sorted(files)} for files in plan.files)
    content = {
        "schema": "manifest/1",
        "adaptertool": __version__,
        "command": plan.command,
        "sources": [
            {"name": path.resolve().name, "weight": weight, "files": facts}
            for path, weight, facts in zip(plan.sources, plan.weights, sources, strict=True)
        ],
        "alphas": alphas,
        "precision": plan.precision,
        "base": base,
        # --force replaces a folder that holds these and no others
        "files": {path.relative_to(folder).as_posix(): _output(stage, path) for path in files},
    }
    write_small(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())


Facts = dict[str, int | str]


def _input(plan: Plan, inputs: Mapping[Path, Digests], path: Path) -> Facts:
    """Size and hashes; of a file of which only the header was needed (--as-adapter) the size."""
    return {"size": plan.inputs[path][2], **inputs.get(path, {})}


def _output(stage: Staging, path: Path) -> Facts:
    if known := stage.finished.get(path.relative_to(stage.work).as_posix()):
        return {"size": known.size, **known.digests}
    return {"size": path.stat().st_size, **digests_of(path, stage.hashes)}
