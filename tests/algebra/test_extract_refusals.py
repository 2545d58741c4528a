"""What `extract` refuses, by name and before any weight is read where headers tell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, write_checkpoint
from tuned_models import EYE, TEN, ZERO, write_pair

from adaptertool.errors import (
    AdapterToolError,
    InputError,
    MismatchError,
    NonFiniteError,
    OutputError,
    UnsupportedError,
    UsageError,
)
from adaptertool.tasks.extract import extract


@pytest.mark.parametrize(
    ("base", "tuned", "error", "text"),
    [
        ({"a.weight": EYE}, {"b.weight": EYE}, MismatchError, "in .*base but not in .*tuned: a.weight"),
        ({"a.weight": EYE}, {"a.weight": torch.eye(5)}, MismatchError, "a.weight is F32 4×4 .* but F32 5×5"),
        ({"a.weight": EYE}, {"a.weight": EYE}, UsageError, "do not differ"),
        ({"n.weight": EYE[0]}, {"n.weight": EYE[1]}, UsageError, "that an adapter could hold"),
        ({"a.weight": EYE}, {"a.weight": EYE * torch.nan}, NonFiniteError, "tuned/model.*a.weight holds NaN"),
        ({"a.weight": EYE, "i": TEN}, {"a.weight": EYE, "i": TEN + 1}, UnsupportedError, "i is I64"),
        ({"a.weight": 1e300 * EYE.double()}, {"a.weight": -EYE.double()}, NonFiniteError, "a.weight is too far"),
        ({"e.experts.up": torch.zeros(2, 4, 4)}, {"e.experts.up": torch.ones(2, 4, 4)}, UnsupportedError, "fused"),
        ({"c_proj.weight": EYE}, {"c_proj.weight": ZERO}, UnsupportedError, "may be stored transposed"),
    ],
)  # fmt: skip
def test_refused_by_name(
    tmp_path: Path, base: dict[str, Any], tuned: dict[str, Any], error: type[AdapterToolError], text: str
) -> None:
    with pytest.raises(error, match=text):
        extract(*write_pair(tmp_path, base, tuned, tie_word_embeddings=False), tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


def test_experts_that_are_joined_in_memory_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    paths = write_pair(
        tmp_path, {name: EYE}, {name: ZERO}, architectures=["MixtralForCausalLM"], tie_word_embeddings=False
    )
    with pytest.raises(UnsupportedError, match="no tensor of its own in memory"):
        extract(*paths, tmp_path / "out", rank=2)


def test_embeddings_of_unknown_ties_are_refused(tmp_path: Path) -> None:
    base = {"embed_tokens.weight": torch.eye(4), "a.weight": torch.eye(4)}
    paths = write_pair(tmp_path, base, {name: 2 * tensor for name, tensor in base.items()}, model_type="x")
    with pytest.raises(UnsupportedError, match="may be tied"):
        extract(*paths, tmp_path / "out", rank=2)
    assert extract(*paths, tmp_path / "out", rank=2, leave_out=["embed"]).tensors[0].how == "factors"


def test_wrong_use(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="one of rank"):
        extract(*pair, tmp_path / "out")
    with pytest.raises(UsageError, match="found in no name"):
        extract(*pair, tmp_path / "out", rank=1, leave_out=["nothing"])
    with pytest.raises(UsageError, match="no valid regex"):
        extract(*pair, tmp_path / "out", rank=1, leave_out=["("])
    with pytest.raises(UsageError, match="dtype"):
        extract(*pair, tmp_path / "out", rank=1, dtype="f8")
    with pytest.raises(InputError, match="truncate"):
        extract(FIXTURES / "base", FIXTURES / "lora", tmp_path / "out", rank=1)
    with pytest.raises(UnsupportedError, match="an error of 1E-9"):
        extract(*pair, tmp_path / "out", max_error="1e-9")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputError):
        extract(*pair, tmp_path / "out", rank=1)


def test_misfits_are_found_before_any_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"model.embed_tokens.weight": torch.randn(50, 8), "x.weight": torch.randn(8, 8)}
    tuned = {"model.embed_tokens.weight": torch.randn(52, 8), "x.weight": torch.randn(8, 8)}
    paths = write_pair(tmp_path, base, tuned, tie_word_embeddings=False)

    def fail(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("adaptertool.files.reader.Inputs.read_into", fail)
    with pytest.raises(MismatchError, match=r"embed_tokens.weight is F32 50×8 .* but F32 52×8"):
        extract(*paths, tmp_path / "out", rank=2)
    with pytest.raises(AssertionError, match="weights were read"):
        extract(paths[0], paths[0], tmp_path / "out", rank=2)


def test_a_change_below_the_squares_of_float64_is_refused(tmp_path: Path) -> None:
    name, other = (f"model.layers.0.self_attn.{end}_proj.weight" for end in "qk")
    plain = {name: torch.zeros(6, 5, dtype=torch.float64), other: torch.zeros(6, 5)}
    tuned = {name: 1e-170 * torch.randn(6, 5, dtype=torch.float64), other: torch.randn(6, 5)}
    pair = write_checkpoint(tmp_path / "base", plain), write_checkpoint(tmp_path / "tuned", tuned)
    with pytest.raises(UnsupportedError, match=r"q_proj\.weight is so near to the base"):
        extract(*pair, tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()
    extract(*pair, tmp_path / "out", rank=2, leave_out=["q_proj"])
