"""Large inputs, each through a whole merge in bounded memory: many tensors, many shards, long names, a large header. As
large as docs/safety.md says with ADAPTERTOOL_LIMITS=1 (`make limits-test`), else a twentieth of it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lora_factors, write_adapter
from safetensors import safe_open
from safetensors.numpy import save_file

from adaptertool.output.integrity import check_files

WHOLE = bool(os.environ.get("ADAPTERTOOL_LIMITS"))
SHARE = 1 if WHOLE else 20
MODULE = "model.layers.0.mlp.up_proj"
EDITED = f"{MODULE}.weight"


def base_of(folder: Path, names: list[str], shards: int = 1) -> Path:
    """One tensor that is edited, and many that are not."""
    folder.mkdir()
    ones, index = {EDITED: np.ones((8, 4), np.float32)}, dict[str, str]()
    for number in range(shards):
        part = ones | {name: np.ones(2, np.float16) for name in names[number::shards]}
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        save_file(part, folder / file)
        index |= dict.fromkeys(part, file)
        ones = {}
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return folder


def merged(base: Path, adapter: Path, *more: str, descriptors: int = 256) -> Mapping[str, Any]:
    """The report of a merge in a process of its own, which may open few files at a time."""
    out = base.parent / "out"
    command = [sys.executable, "-m", "adaptertool", "merge", base, adapter, "-o", out, "--json", "-q", *more]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors)),
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_adapter(tmp_path / "adapter", lora_factors(MODULE, (8, 4)))


def check(report: Mapping[str, Any], tensors: int, memory: float) -> None:
    assert report["tensors_copied"] + report["tensors_edited"] == tensors
    assert report["tensors_edited"] == 1
    assert report["peak_memory"] < memory * 1e6
    assert check_files(report["out"]).ok


@pytest.mark.slow
def test_many_tensors(tmp_path: Path, adapter: Path) -> None:
    count = 100_000 // SHARE
    base = base_of(tmp_path / "base", [f"model.layers.{number}.self_attn.norm.weight" for number in range(count)], 4)
    check(merged(base, adapter), count + 1, 500)


@pytest.mark.slow
def test_many_edited_tensors(tmp_path: Path) -> None:
    count = 100_000 // SHARE
    modules = [f"model.layers.{number}.mlp.up_proj" for number in range(count)]
    base = tmp_path / "base"
    base.mkdir()
    save_file({f"{name}.weight": np.ones((2, 2), np.float32) for name in modules}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    factors = {key: torch.ones(2, 2) for name in modules for key in (f"{name}.lora_A.weight", f"{name}.lora_B.weight")}
    report = merged(base, write_adapter(tmp_path / "adapter", factors, r=2))
    assert (report["tensors_edited"], report["tensors_copied"]) == (count, 0)
    assert report["peak_memory"] < 800e6
    with safe_open(tmp_path / "out/model.safetensors", "numpy") as opened:
        assert opened.get_tensor(f"{modules[-1]}.weight").tolist() == [[9.0, 9.0], [9.0, 9.0]]  # 1 + 8/2 · (1·1 + 1·1)


@pytest.mark.slow
def test_many_shards(tmp_path: Path, adapter: Path) -> None:
    count = 10_000 // SHARE
    base = base_of(tmp_path / "base", [f"t{number}" for number in range(count)], count)
    check(merged(base, adapter), count + 1, 300)
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == count


@pytest.mark.parametrize("letter", ["n", "ü", "\\", "\x1b"])
def test_long_names(tmp_path: Path, adapter: Path, letter: str) -> None:
    names = [letter * 4000 + f"{number:096}" for number in range(20)]
    base = base_of(tmp_path / "base", names, 3)
    check(merged(base, adapter), 21, 200)
    with safe_open(tmp_path / "out/model-00002-of-00003.safetensors", "numpy") as opened:
        assert set(opened.keys()) == set(names[1::3])


@pytest.mark.slow
@pytest.mark.parametrize("what", ["long names", "metadata"])
def test_large_header(tmp_path: Path, adapter: Path, what: str) -> None:
    """The format allows 100 MB."""
    size, names, metadata = 90_000_000 // SHARE, list[str](), dict[str, str]()
    if what == "metadata":
        metadata = {f"key {number}": "v" * 10_000 for number in range(size // 10_020)}
    else:
        names = ["n" * 4000 + str(number) for number in range(size // 4080)]
    base = base_of(tmp_path / "base", [])
    part = {EDITED: np.ones((8, 4), np.float32)} | {name: np.ones(2, np.float16) for name in names}
    save_file(part, base / "model.safetensors", metadata=metadata)
    header = int.from_bytes((base / "model.safetensors").open("rb").read(8), "little")
    assert 0.95 * size < header < 1.1 * size
    check(merged(base, adapter), len(names) + 1, 1000)


def test_outputs_of_a_long_sweep(tmp_path: Path, adapter: Path) -> None:
    """Each has a file open, and those of the shard before are still being finished."""
    base = base_of(tmp_path / "base", ["a", "b", "c"], 3)
    out, alphas = tmp_path / "out", 1000 // SHARE
    command = ["wise", str(base), str(adapter), "--alpha", f"0:1:{1 / (alphas - 1):.20f}", "-o", str(out), "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "adaptertool", *command],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
        preexec_fn=lambda: resource.setrlimit(
            resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
        ),
    )
    assert done.returncode == 0, done.stderr
    assert len(list(out.iterdir())) == alphas + 1
    assert check_files(out).ok


def test_more_outputs_than_files_that_may_be_open(tmp_path: Path, adapter: Path) -> None:
    base, out = base_of(tmp_path / "base", ["a", "b", "c"], 3), tmp_path / "out"
    for alphas, code in ((79, 4), (77, 0)):
        done = subprocess.run(
            [sys.executable, "-m", "adaptertool", "wise", base, adapter, "--alpha", f"1:{alphas}:1", "-o", out, "-q"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
        )
        assert done.returncode == code, done.stderr
        if code:
            assert "79 outputs at once need 258 open files, but this process may have 256" in done.stderr
            assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]
