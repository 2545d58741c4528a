"""The whole tree of OUT, manifest included, is the same whatever the threads, the size of blocks and the order in which
the system lists directories, and after a kill: for each sort of run."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lora_factors, snapshot, write_adapter, write_checkpoint

from adaptertool import merge, wise
from adaptertool.arithmetic import tiling
from adaptertool.errors import StorageError
from adaptertool.files.leftovers import left_behind
from adaptertool.files.staging import Staging

NAMES = [f"model.layers.{number}.mlp.up_proj" for number in range(4)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("inputs")
    for name, shift in (("base", 0.0), ("tuned", 0.01)):
        torch.manual_seed(1)
        tensors = {f"{module}.weight": (torch.randn(64, 48) + shift).bfloat16() for module in NAMES}
        tensors |= {"model.norm.weight": torch.ones(48), "model.embed_tokens.weight": torch.randn(70, 48)}
        write_checkpoint(folder / name, tensors, shards=3 if shift else 4)
        (folder / name / "sub").mkdir()
        for asset in ("z.txt", "a.txt", "sub/m.txt"):
            (folder / name / asset).write_text(asset)
    factors = {key: value for module in NAMES for key, value in lora_factors(module, (64, 48)).items()}
    write_adapter(folder / "lora", factors)
    factors |= {f"{module}.lora_magnitude_vector": torch.rand(64) + 5 for module in NAMES}
    write_adapter(folder / "dora", factors, use_dora=True)
    return folder


def _two(inputs: Path, out: Path, **options: Any) -> None:
    merge(inputs / "base", [inputs / "lora", inputs / "dora"], out, weights=[0.3, 1], sha256=True, **options)


RUNS: dict[str, Callable[..., object]] = {
    "two adapters, sha256": _two,
    "sweep of two checkpoints": lambda inputs, out, **o: wise(inputs / "base", inputs / "tuned", out, "0,0.3,1", **o),
    "sweep of DoRA": lambda inputs, out, **o: wise(inputs / "base", inputs / "dora", out, "0.1,0.7", **o),
    "sweep as adapter": lambda inputs, out, **o: wise(
        inputs / "base", inputs / "dora", out, "0.1,0.7", as_adapter=True, **o
    ),
}


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(the run, what it makes undisturbed, on one thread)"""
    out = tmp_path_factory.mktemp("good") / "out"
    RUNS[request.param](inputs, out, threads=1)
    return RUNS[request.param], snapshot(out)


@pytest.mark.long
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("elements", [48, 1000, 1 << 20])
def test_threads_and_blocks(
    run: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int, elements: int
) -> None:
    begin, expected = run
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", elements)
    begin(inputs, tmp_path / "out", threads=threads)
    assert snapshot(tmp_path / "out") == expected


@pytest.mark.parametrize("seed", [1, 2])
def test_order_of_directories(
    run: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """os.scandir and os.listdir are what os.walk, iterdir, glob and rglob list with."""
    begin, expected = run
    generator, calls = random.Random(seed), list[str]()

    class Shuffled:
        def __init__(self, entries: Any) -> None:
            with entries:
                self.entries = list(entries)
            generator.shuffle(self.entries)
            calls.append("scandir")

        def __iter__(self) -> Iterator[Any]:
            return iter(self.entries)

        def __next__(self) -> Any:
            if not self.entries:
                raise StopIteration
            return self.entries.pop()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def close(self) -> None:
            pass

    scandir, listdir = os.scandir, os.listdir
    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", lambda *a: Shuffled(scandir(*a)))
        patched.setattr(os, "listdir", lambda *a: generator.sample(names := listdir(*a), len(names)))
        begin(inputs, tmp_path / "out", threads=2)
    assert calls
    assert snapshot(tmp_path / "out") == expected


@pytest.mark.long
@pytest.mark.parametrize("after", range(1, 6))
def test_a_run_that_goes_on(
    run: Any, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """It fails when so many files are finished, twice; what is finished is not read again, and its hashes are there."""
    begin, expected = run
    real, count = Staging.finish, 0

    def finish(stage: Staging, *arguments: Any) -> None:
        nonlocal count
        count += 1
        if count > after:
            raise StorageError("the disk is full")
        real(stage, *arguments)

    went_on = 0
    for _ in range(2):
        with monkeypatch.context() as patched:
            patched.setattr(Staging, "finish", finish)
            count = 0
            try:
                begin(inputs, tmp_path / "out", threads=2)
            except StorageError:
                assert not (tmp_path / "out").exists()
                went_on += len(left_behind(tmp_path / "out"))
            else:
                break
    if not (tmp_path / "out").exists():
        begin(inputs, tmp_path / "out", threads=2)
    assert went_on or count <= after  # there are no more files
    assert snapshot(tmp_path / "out") == expected
