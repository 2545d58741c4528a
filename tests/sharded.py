"""A base of four shards with an adapter, merged by a process that is killed, or meets errors, at its n-th call."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch
from commands import faulty
from conftest import lora_factors, snapshot, write_adapter, write_checkpoint

from adaptertool.files.hashing import DEFAULT
from adaptertool.files.leftovers import left_behind
from adaptertool.files.receipts import Receipts


class Place:
    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder, self.out = folder, folder / "out"
        names = [f"model.layers.{number}.mlp.up_proj" for number in range(4)]
        tensors = {f"{name}.weight": torch.randn(24, 16).bfloat16() for name in names}
        self.base = write_checkpoint(folder / "base", tensors, shards=4)
        factors = {key: value for name in names for key, value in lora_factors(name, (24, 16)).items()}
        self.adapter = write_adapter(folder / "adapter", factors)
        self.before = snapshot(folder)

    def command(self, *more: str) -> list[str]:
        return ["merge", str(self.base), str(self.adapter), "-o", str(self.out), "--threads", "1", *more]

    def run(self, kind: str = "kill", number: int = 0, *more: str) -> subprocess.CompletedProcess[str]:
        return faulty(kind, number, self.command(*more))

    def finished(self) -> dict[str, int]:
        """Files that an earlier run finished, by inode."""
        return {
            receipt.name: part.stat().st_ino
            for folder in left_behind(self.out)
            for receipt in Receipts(folder / "receipts", DEFAULT).all()
            if receipt.name and (part := folder / "parts" / receipt.part).exists()
        }
