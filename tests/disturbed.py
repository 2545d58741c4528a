"""A merge that is disturbed: what must be left of it, and what not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lora_factors, snapshot, write_adapter, write_checkpoint

from adaptertool import merge
from adaptertool.errors import AdapterToolError
from adaptertool.tasks.clean import clean

MODULE = "model.layers.0.mlp.up_proj"
WEIGHT = f"{MODULE}.weight"


class Place:
    """A folder with base and adapter, where OUT is to appear and nothing else."""

    def __init__(self, folder: Path, rows: int = 256) -> None:
        self.folder, self.out = folder, folder / "out"
        tensors = {WEIGHT: torch.randn(rows, 64).bfloat16(), "model.norm.weight": torch.ones(64)}
        self.base = write_checkpoint(folder / "base", tensors, shards=2)
        (self.base / "extra").mkdir()
        (self.base / "extra/notes.txt").write_text("an asset in a subfolder")
        self.adapter = write_adapter(folder / "adapter", lora_factors(MODULE, (rows, 64)))
        self.before = snapshot(folder)

    def merge(self, **options: Any) -> None:
        merge(self.base, [self.adapter], options.pop("out", self.out), threads=options.pop("threads", 2), **options)

    @property
    def staged(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name.startswith(".")]

    def check_untouched(self, told: str = "") -> None:
        """All is as it was made: no OUT, the same inputs, and no staging, unless we were told that it is kept."""
        assert bool(self.staged) == ("goes on from there" in told)
        clean(self.out)
        assert snapshot(self.folder) == self.before
        assert sorted(path.name for path in self.folder.iterdir()) == ["adapter", "base"]

    def check_refusal(self, error: type[AdapterToolError] = AdapterToolError, **options: Any) -> str:
        """A merge fails with `error`, and leaves nothing of any sort behind. Returns the message."""
        threads, descriptors = threading.active_count(), descriptors_open()
        with pytest.raises(error) as caught:
            self.merge(**options)
        message = str(caught.value)
        del caught
        self.check_untouched(message)
        assert (threading.active_count(), descriptors_open()) == (threads, descriptors)
        return message


def descriptors_open() -> list[str]:
    return [name for name in os.listdir("/proc/self/fd") if Path(f"/proc/self/fd/{name}").exists()]  # noqa: PTH208


def once(action: Callable[[], object]) -> Callable[[int], None]:
    """A progress callback that acts the first time that bytes were written."""
    lock = threading.Lock()
    done: list[bool] = []

    def progress(_: int) -> None:
        with lock:
            if not done:
                done.append(True)
                action()

    return progress


def delete_tree(path: Path) -> None:
    """Delete a tree without the help of anything that is under test."""
    for here, folders, files in os.walk(path, topdown=False):
        for name in files:
            (Path(here) / name).unlink()
        for name in folders:
            (Path(here) / name).rmdir()
    if path.is_dir():
        path.rmdir()


def first_shard(place: Place) -> Path:
    return place.base / "model-00001-of-00002.safetensors"


def alter(path: Path) -> None:
    """Another last byte, in place."""
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
