"""Exit codes 2 to 5: usage, input, storage, and an OUT that is taken."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from commands import BASE, LORA, MODULE, TUNED, Result, clean, refused
from conftest import FIXTURES, adaptertool, lora_factors, snapshot, write_adapter

# --- exit 2: usage ---


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("bogus",), "bogus"),
        (("merge", BASE), "ADAPTER"),
        (("merge", BASE, LORA), "--out"),
        (("merge", BASE, LORA, "-o", "x", "--bogus"), "--bogus"),
        (("merge", BASE, LORA, "-o", "x", "--threads", "0"), "--threads"),
        (("merge", BASE, LORA, "-o", "x", "-w", "1", "-w", "2"), "2 weights for 1 adapter"),
        (("merge", BASE, LORA, LORA, "-o", "x", "-w", "1"), "1 weight for 2 adapters"),
        (("merge", BASE, LORA, "-o", "x", "-w", "nan"), "nan"),
        (("merge", BASE, LORA, "-o", "x", "-w", "1e999"), "1e999"),
        (("merge", BASE, LORA, "-o", "x", "-w", "half"), "half"),
        (("merge", BASE, LORA, "-o", "missing/x"), "does not exist"),
        (("merge", BASE, LORA, "-o", "file/x"), "file is a file, so OUT file/x cannot be made in it"),
        (("merge", BASE, LORA, "-o", "file/x/y"), "file is a file"),
        (("wise", BASE, TUNED, "-o", "x"), "--alpha"),
    ],
)
def test_usage_errors(tmp_path: Path, arguments: tuple[object, ...], word: str) -> None:
    (tmp_path / "file").touch()
    refused(adaptertool(*arguments, cwd=tmp_path), 2, word)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["equal", "inside", "around", "link", "adapter"])
def test_out_overlaps_an_input(small: tuple[Path, Path], tmp_path: Path, where: str) -> None:
    base, adapter = small
    (tmp_path / "link").symlink_to(base)
    out = {
        "equal": base,
        "inside": base / "out",
        "around": tmp_path,
        "link": tmp_path / "link/out",
        "adapter": adapter,
    }[where]
    before = snapshot(tmp_path)
    refused(adaptertool("merge", base, adapter, "-o", out, "--force", "--dry-run"), 2, "overlap")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("alpha", ["1:0:0.1", "0:1:0", "abc", "0,0", "0,-0.0", "0:1", "0:1:0.0001", "", "0:nan:1"])
def test_bad_alphas(tmp_path: Path, alpha: str) -> None:
    refused(adaptertool("wise", BASE, TUNED, "-o", tmp_path / "out", f"--alpha={alpha}"), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("alpha", "folders"),
    [
        ("0:1:0.3", ["alpha-0.000", "alpha-0.300", "alpha-0.600", "alpha-0.900"]),
        ("0:0.3:0.1", ["alpha-0.000", "alpha-0.100", "alpha-0.200", "alpha-0.300"]),
        ("1:0:-0.5", ["alpha-1.000", "alpha-0.500", "alpha-0.000"]),
        ("-0.5,1", ["alpha--0.500", "alpha-1.000"]),
        ("0.00025,1", ["alpha-0.00025", "alpha-1.00000"]),
        ("0.5", [""]),
    ],
)
def test_good_alphas(tmp_path: Path, alpha: str, folders: list[str]) -> None:
    arguments = ("wise", BASE, TUNED, "-o", tmp_path, "--alpha", alpha, "--dry-run", "--json")
    plan = json.loads(clean(adaptertool(*arguments), 0).stdout)
    assert plan["outputs"] == [str(tmp_path / folder) for folder in folders]


# --- exit 3: input ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("merge", "missing", LORA), ["missing", "does not exist"]),
        (("merge", BASE, "missing"), ["missing", "does not exist"]),
        (("merge", LORA, BASE), ["is an adapter", "comes first"]),
        (("merge", BASE, TUNED), ["is not an adapter", "wise"]),
        (("merge", BASE, BASE / "config.json"), ["config.json is no adapter: that is a directory"]),
        (("merge", BASE / "config.json", LORA), ["config.json", ".safetensors"]),
        (("merge", "meta-llama/Llama-3.2-1B", LORA), ["hf download"]),
        (("wise", BASE, FIXTURES, "--alpha", "1"), ["neither model.safetensors"]),
    ],
)
def test_input_errors(tmp_path: Path, arguments: tuple[object, ...], words: list[str]) -> None:
    refused(adaptertool(*arguments, "-o", tmp_path / "out", cwd=tmp_path), 3, *words)
    assert list(tmp_path.iterdir()) == []


def test_adapter_of_another_model(small: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", lora_factors(MODULE, (8, 7)))
    refused(adaptertool("merge", small[0], other, "-o", tmp_path / "out"), 3, f"{MODULE}.weight", "8×6", "7")
    named = write_adapter(tmp_path / "named", lora_factors(MODULE.replace("up", "gate"), (8, 6)))
    refused(adaptertool("merge", small[0], named, "-o", tmp_path / "out"), 3, "gate_proj", f"nearest: {MODULE}.weight")


def test_error_found_while_computing(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Too large for the dtype: seen only when all is on its way; then OUT must not be there."""
    factors = {name: torch.full_like(factor, 1e30) for name, factor in lora_factors(MODULE, (8, 6)).items()}
    before = snapshot(tmp_path)
    adapter = write_adapter(tmp_path / "large", factors)
    refused(adaptertool("merge", small[0], adapter, "-o", tmp_path / "out"), 3, f"{MODULE}.weight", "BF16")
    shutil.rmtree(adapter)
    assert snapshot(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


# --- exit 4 and 5: storage, and an OUT that is taken ---


def test_exit_4_without_write_permission(small: tuple[Path, Path], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused(adaptertool("merge", *small, "-o", closed / "out"), 4, str(closed))


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("what", ["directory", "file", "safetensors", "dangling link"])
def test_out_is_not_ours(small: tuple[Path, Path], tmp_path: Path, what: str, force: tuple[str, ...]) -> None:
    out = tmp_path / ("out.safetensors" if what == "safetensors" else "out")
    if what == "directory":
        out.mkdir()
        (out / "thesis.txt").write_text("dear")
    elif what == "dangling link":
        out.symlink_to("nowhere")
    else:
        out.write_text("dear")
    before = snapshot(tmp_path)
    refused(adaptertool("merge", *small, "-o", out, *force, "--dry-run"), 5, str(out))
    assert snapshot(tmp_path) == before


def test_force_replaces_ours(merged: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(merged[0], out)
    refused(adaptertool("merge", BASE, LORA, "-o", out, "--dry-run"), 5, "--force")
    assert snapshot(out) == snapshot(merged[0])
    clean(adaptertool("merge", BASE, LORA, "-o", out, "--force", "-w", "2"), 0)
    assert snapshot(out).keys() == snapshot(merged[0]).keys()
    assert snapshot(out) != snapshot(merged[0])
    assert list(tmp_path.iterdir()) == [out]


def test_out_in_a_loop_of_links(small: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / "loop", tmp_path / "loop/out"):
        result = adaptertool("merge", *small, "-o", out, "--dry-run")
        refused(result, result.returncode)
        assert result.returncode in (2, 5)
