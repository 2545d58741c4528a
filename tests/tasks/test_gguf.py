"""GGUF as a base: it is written as it was, but for the numbers; what verify, diff and inspect say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import adaptertool as command
from gguf_files import F16, F32, Q8_0, STRING, Tensor, field, packed, read_model, text
from safetensors.numpy import save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UsageError

pytest.importorskip("gguf")

FIELDS = [field("general.architecture", "llama"), field("llama.block_count", 1), field("odd.list", text("a"), STRING)]
SHAPES = {"a.weight": (5, 7), "b.weight": (3, 7), "c.bias": (3,), "d.weight": (40, 50)}


def tensors(seed: int) -> dict[str, Tensor]:
    """All of sizes that leave holes, some not to be computed on."""
    rng, found = np.random.default_rng(seed), dict[str, Tensor]()
    for name, shape in SHAPES.items():
        kind, dtype = (F16, np.float16) if name == "b.weight" else (F32, np.float32)
        found[name] = (kind, shape, rng.normal(size=shape).astype(dtype).tobytes())
    return {**found, "blocks": (Q8_0, (2, 32), bytes(range(68)))}


def with_noise(content: bytes) -> bytes:
    """The same with other bytes in the holes."""
    return content[:-1] + b"\7"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.gguf"
    path.write_bytes(with_noise(packed(tensors(0), FIELDS)))
    return path


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    path = tmp_path / "tuned.gguf"
    path.write_bytes(packed(tensors(1), FIELDS))
    return path


def between(base: Path, tuned: Path, alpha: float) -> dict[str, Any]:
    one, other = read_model(base), read_model(tuned)
    exact = {
        name: one[name].astype(float) + alpha * (other[name].astype(float) - one[name].astype(float)) for name in SHAPES
    }
    return {name: array.astype(one[name].dtype) for name, array in exact.items()}


def test_all_but_the_numbers_stays(tmp_path: Path, base: Path, tuned: Path) -> None:
    out = tmp_path / "out.gguf"
    adaptertool.wise(base, tuned, out, "0.3")
    before, after = base.read_bytes(), out.read_bytes()
    assert len(before) == len(after) and after[-1] == 7
    start = before.index(b"blocks")
    assert before[: start + 40] == after[: start + 40]
    want, got = between(base, tuned, 0.3), read_model(out)
    assert all(np.abs(got[name] - want[name]).max() <= np.spacing(np.abs(want[name])).max() for name in SHAPES)
    assert (got["blocks"] == read_model(base)["blocks"]).all()
    assert adaptertool.verify(out, base, [tuned], alpha="0.3", strict=True).ok


def test_nothing_to_do_is_a_copy(tmp_path: Path, base: Path) -> None:
    adaptertool.wise(base, base, tmp_path / "same.gguf", "1")
    assert (tmp_path / "same.gguf").read_bytes() == base.read_bytes()
    assert adaptertool.diff(base, tmp_path / "same.gguf").equal


def test_several_at_once_are_folders(tmp_path: Path, base: Path, tuned: Path) -> None:
    adaptertool.wise(base, tuned, tmp_path / "out", ["0", "1"])
    assert (tmp_path / "out" / "alpha-0.000" / "base.gguf").read_bytes() == base.read_bytes()
    assert adaptertool.verify(tmp_path / "out" / "alpha-1.000" / "base.gguf", base, [tuned], alpha="1").ok


def test_without_a_known_end(tmp_path: Path, base: Path, tuned: Path) -> None:
    """As Ollama keeps them."""
    blob = tmp_path / "sha256-0a1b"
    blob.write_bytes(base.read_bytes())
    adaptertool.wise(blob, tuned, tmp_path / "out.gguf", "0.5")
    assert adaptertool.verify(tmp_path / "out.gguf", blob, [tuned], alpha="0.5").ok
    with pytest.raises(UsageError, match="named like a file, but this run makes a directory, or a file of the base"):
        adaptertool.wise(blob, tuned, tmp_path / "out.safetensors", "0.5")
    blob.rename(tmp_path / "blob.safetensors")
    with pytest.raises(InputError, match=r"is a GGUF file; give it a name that ends in \.gguf"):
        adaptertool.wise(tmp_path / "blob.safetensors", tuned, tmp_path / "o.gguf", "0.5")


def test_a_folder_names_the_file(tmp_path: Path, base: Path) -> None:
    (tmp_path / "folder").mkdir()
    base.rename(tmp_path / "folder" / "m.gguf")
    with pytest.raises(InputError, match=r"to use m\.gguf, give the path of that file"):
        adaptertool.inspect(tmp_path / "folder")


def test_not_beside_safetensors(tmp_path: Path, base: Path) -> None:
    save_file({"a.weight": np.ones((5, 7), np.float32)}, tmp_path / "t.safetensors")
    for pair in ((base, tmp_path / "t.safetensors"), (tmp_path / "t.safetensors", base)):
        with pytest.raises(MismatchError, match=r"base\.gguf is GGUF, and what it is held against is not"):
            adaptertool.wise(*pair, tmp_path / "out", "0.5")


def test_verify_and_diff_tell_of_fields(tmp_path: Path, base: Path) -> None:
    other = tmp_path / "other.gguf"
    more = [field("general.architecture", "llama"), field("general.name", "x"), field("llama.block_count", 2)]
    other.write_bytes(packed(tensors(0), more))
    report = adaptertool.verify(other, base)
    assert not report.ok and report.summary.exact == len(SHAPES) + 1
    assert report.problems == (
        "the field llama.block_count is not the base's; a merge changes none",
        "the field odd.list is missing; a merge changes none",
    )
    differences = adaptertool.diff(base, other)
    assert differences.equal
    assert any("general.name, llama.block_count, odd.list" in note for note in differences.notes)


def test_inspect(base: Path) -> None:
    facts = adaptertool.inspect(base).checkpoint
    assert facts is not None and facts.quantised == "in blocks: 1 tensors of Q8_0"
    assert facts.config == {"general.architecture": "llama", "llama.block_count": 1}
    assert command("inspect", base).returncode == 0


def test_a_damaged_base_is_no_traceback(tmp_path: Path, base: Path, tuned: Path) -> None:
    base.write_bytes(base.read_bytes()[:-70])
    done = command("wise", base, tuned, "-o", tmp_path / "out.gguf", "--alpha", "1")
    assert done.returncode == 3 and "base.gguf is cut short" in done.stderr and "Traceback" not in done.stderr
