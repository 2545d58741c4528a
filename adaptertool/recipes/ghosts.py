"""What a plan would write, as far as headers and configs go: enough to plan a later step, before there is a byte of
data. The files have their sizes and no content beyond that, and take no room on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from adaptertool.files.reader import open_input, read_exact
from adaptertool.spec.plan import Asset, Plan

_SMALL = 100_000_000  # bytes of a file that is copied whole: config, index, tokenizer


def write_ghost(plan: Plan, out: Path) -> None:
    """Write to `out` the headers and small files of each output. Raises OSError, and what reading raises."""
    for output in plan.outputs:
        folder = out / output.folder
        folder.mkdir(parents=True, exist_ok=True)
        for shard in plan.shards:
            head = shard.header
            if head is None:
                with open_input(shard.source) as file:
                    head = bytes(read_exact(file, 0, shard.data_start))
            path = folder / shard.name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(head)
            os.truncate(path, shard.size)
        for name, content in output.files:
            (folder / name).write_bytes(content)
        for asset in plan.assets:
            _carry(asset, folder / asset.name)


def _carry(asset: Asset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if asset.content is not None:
        path.write_bytes(asset.content)
    elif asset.size <= _SMALL:
        with open_input(asset.source) as file:
            path.write_bytes(read_exact(file, 0, asset.size))
    else:
        path.touch()
        os.truncate(path, asset.size)
