"""`adaptertool.manifest.json`: how a checkpoint came to be. The same inputs and recipe give the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

from adaptertool import __version__
from adaptertool.files.checkpoint import MANIFEST
from adaptertool.files.publish import write_file
from adaptertool.spec import Plan


def write_manifests(plan: Plan, folder: Path) -> None:
    """One beside every output, and one at the top of a sweep. No time, no absolute path."""
    for output in plan.outputs:
        write_file(folder / output.folder / MANIFEST, _manifest(plan, [output.alpha]))
    if plan.outputs[0].folder:
        write_file(folder / MANIFEST, _manifest(plan, [output.alpha for output in plan.outputs]))


def _manifest(plan: Plan, alphas: list[float]) -> bytes:
    content = {
        "schema": "manifest/1",
        "adaptertool": __version__,
        "command": plan.command,
        "sources": [path.resolve().name for path in plan.sources],
        "weights": plan.weights,
        "alphas": alphas,
        "base": {shard.name: shard.size for shard in plan.shards},
    }
    return (json.dumps(content, indent=2) + "\n").encode()
