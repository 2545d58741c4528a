"""OFT against rationals, through every command."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load, same_bits, write_checkpoint
from one_kind import Formula, require_commands, write
from rationals import EVERY, Matrix, matrix, require
from skews import cayley, identity, times

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, MismatchError, NonFiniteError, UnsupportedError
from adaptertool.kinds.oft import OFT, R, becomes
from adaptertool.kinds.rotation import HIGH, LOW
from adaptertool.spec.tensors import Ref, TensorSpec

OUT, COLUMNS, WIDE = 5, 12, 4
PACKED = WIDE * (WIDE - 1) // 2
FIELDS: dict[str, Any] = {
    "peft_type": "OFT", "peft_version": "0.21.2", "use_cayley_neumann": False, "num_cayley_neumann_terms": 5,
    "coft": False, "eps": 6e-5, "block_share": False, "r": 0, "oft_block_size": WIDE,
}  # fmt: skip


def skew(packed: torch.Tensor) -> Any:
    q = np.full((WIDE, WIDE), Fraction())
    above = np.triu_indices(WIDE, 1)
    q[above] = [Fraction(number) for number in packed.tolist()]
    return q - q.T


def series(q: Any) -> Any:
    square = times(q, q)
    return identity(WIDE) + 2 * q + 2 * square + 2 * times(square, q) + times(square, square)


def multiplied(blocks: list[Any]) -> Formula:
    """W·R"""

    def formula(w: Matrix) -> Matrix:
        rows = np.array(w)
        parts = [times(rows[:, k * WIDE : (k + 1) * WIDE], block) for k, block in enumerate(blocks)]
        return np.concatenate(parts, axis=1).tolist()

    return formula


def blocks_of(packed: torch.Tensor, **fields: Any) -> list[Any]:
    """R as PEFT has it; its transpose is what a linear layer's weight is multiplied by."""
    rows = list(packed) * (COLUMNS // WIDE // len(packed))
    return [series(skew(row)) if fields.get("use_cayley_neumann") else cayley(-skew(row)) for row in rows]


@pytest.mark.long("fields")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("fields", [{}, {"use_cayley_neumann": True}, {"block_share": True}])
def test_every_command(
    tmp_path: Path, dtype: torch.dtype, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 1 if fields.get("block_share") else COLUMNS // WIDE
    packed = (torch.randn(count, PACKED) * 2.0 ** torch.randint(-9, 3, (count, PACKED))).to(dtype)
    stored = {"l.weight": torch.randn(OUT, COLUMNS).to(torch.bfloat16), "l.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", {"l.oft_R.weight": packed}, **FIELDS | fields)
    formula = multiplied([block.T for block in blocks_of(packed, **fields)])
    require_commands(tmp_path, stored, adapter, {"l.weight": formula}, monkeypatch)


@pytest.mark.parametrize("neumann", [False, True])
def test_embeddings_and_convolutions_of_one_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, neumann: bool
) -> None:
    fields = FIELDS | {"use_cayley_neumann": neumann}
    packed = torch.randn(COLUMNS // WIDE, PACKED) / 2
    turn = blocks_of(packed, use_cayley_neumann=neumann)
    stored = {"e.weight": torch.randn(7, COLUMNS), "c.weight": torch.randn(OUT, COLUMNS, 1, 1)}
    for name, key, formula in (
        ("e", "oft_embedding_R", multiplied(turn)),
        ("c", "oft_R", multiplied([block.T for block in turn])),
    ):
        adapter = write(tmp_path / name / "a", {f"{name}.{key}.weight": packed}, **fields)
        require_commands(tmp_path / name, stored, adapter, {f"{name}.weight": formula}, monkeypatch, lora=False)


def test_shortened_blocks_are_near_those_of_that_length() -> None:
    packed = np.random.default_rng(0).standard_normal((3, PACKED))
    packed[1] *= 1e-6
    ref = Ref(Path("a"), 0, TensorSpec("l.oft_R.weight", "F64", packed.shape, packed.nbytes))
    (part,) = becomes({R: ref}, (OUT, COLUMNS), 1.0, {"coft": True, "eps": 0.3})
    made = [part.factors[role].made for role in (HIGH, LOW)]
    high, low = (how.rows(lambda _, a, b: packed[a:b], 0, COLUMNS) for how in made if how is not None)
    for k, row in enumerate(packed):
        q = skew(torch.tensor(row))
        length = Fraction(float((2 * (row**2).sum() * 3) ** 0.5))
        square = 2 * 3 * sum(Fraction(x) ** 2 for x in row.tolist())
        for _ in range(4):
            length = (length + square / length) / 2
        wanted = cayley(q * min(Fraction(1), Fraction(0.3) / length))
        at = slice(k * WIDE, (k + 1) * WIDE)
        found = np.frompyfunc(Fraction, 1, 1)(high[at]) + np.frompyfunc(Fraction, 1, 1)(low[at])
        assert abs(found - wanted).max() < 2.0**-100


def test_blocks_that_were_never_trained_turn_nothing(tmp_path: Path) -> None:
    """Their norm is 0, which is not longer than any bound."""
    stored, packed = {"l.weight": torch.randn(OUT, COLUMNS)}, torch.zeros(COLUMNS // WIDE, PACKED)
    base = write_checkpoint(tmp_path / "base", stored)
    adapter = write(tmp_path / "a", {"l.oft_R.weight": packed}, **FIELDS | {"coft": True})
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert same_bits(load(tmp_path / "out")["l.weight"], stored["l.weight"])


@pytest.mark.parametrize(
    ("shape", "fields", "error"),
    [
        ((3, PACKED + 1), {}, UnsupportedError),
        ((3, 0), {}, AdapterToolError),
        ((4, PACKED), {}, MismatchError),
        ((2, PACKED), {}, MismatchError),
        ((1, PACKED), {}, MismatchError),
        ((3, PACKED), {"block_share": True}, MismatchError),
        ((3, PACKED), {"use_cayley_neumann": None}, UnsupportedError),
        ((3, PACKED), {"use_cayley_neumann": True, "peft_version": "0.17.1"}, UnsupportedError),
        ((3, PACKED), {"use_cayley_neumann": True, "peft_version": "0.18.0.dev0@abc"}, UnsupportedError),
        ((3, PACKED), {"use_cayley_neumann": True, "peft_version": None}, UnsupportedError),
        ((3, PACKED), {"use_cayley_neumann": True, "num_cayley_neumann_terms": 5.0}, UnsupportedError),
        ((3, PACKED), {"coft": True, "eps": "1"}, UnsupportedError),
        ((3, PACKED), {"coft": 1}, UnsupportedError),
        ((3, PACKED), {"unknown": 1}, UnsupportedError),
    ],
)
def test_what_is_refused(
    tmp_path: Path, shape: tuple[int, ...], fields: dict[str, Any], error: type[Exception]
) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    adapter = write(tmp_path / "a", {"l.oft_R.weight": torch.ones(shape)}, **FIELDS | fields)
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")


@pytest.mark.parametrize("key", ["l.oft_r", "l.oft_R", "l.oft_s.weight"])
def test_other_keys_are_refused(tmp_path: Path, key: str) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    adapter = write(tmp_path / "a", {key: torch.ones(3, PACKED)}, **FIELDS)
    with pytest.raises(InputError):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_larger_convolutions_are_refused(tmp_path: Path) -> None:
    """What PEFT merges there is not what its forward pass computes."""
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, 3, 2, 2)})
    adapter = write(tmp_path / "a", {"l.oft_R.weight": torch.ones(3, PACKED)}, **FIELDS)
    with pytest.raises(UnsupportedError):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_a_part_of_a_fused_tensor(tmp_path: Path) -> None:
    """The same blocks for all of its rows."""
    name = "model.layers.0.self_attn.qkv_proj.weight"
    base = write_checkpoint(tmp_path / "base", stored := {name: torch.randn(3 * OUT, COLUMNS)})
    config = {"model_type": "phi3", "hidden_size": OUT, "num_attention_heads": 1, "num_key_value_heads": 1}
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    packed = torch.randn(COLUMNS // WIDE, PACKED)
    adapter = write(tmp_path / "a", {"model.layers.0.self_attn.k_proj.oft_R.weight": packed}, **FIELDS)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    exact = matrix(stored[name])
    exact[OUT : 2 * OUT] = multiplied([block.T for block in blocks_of(packed)])(exact[OUT : 2 * OUT])
    require(load(tmp_path / "out")[name], exact, stored[name])


def test_the_kind_does_not_tell_a_weight() -> None:
    assert OFT.weight_of({R: (3, PACKED)}) is None


@pytest.mark.parametrize("fields", [{}, {"coft": True}, {"use_cayley_neumann": True}])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(tmp_path: Path, fields: dict[str, Any], wrong: float) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    packed = torch.ones(3, PACKED)
    packed[1, 2] = wrong
    adapter = write(tmp_path / "a", {"l.oft_R.weight": packed}, **FIELDS | fields)
    for call in (
        lambda: adaptertool.merge(base, [adapter], tmp_path / "o"),
        lambda: adaptertool.drift(base, [adapter]),
    ):
        with pytest.raises(NonFiniteError, match=r"oft_R|high"):
            call()
