"""RoAd against rationals, through every command."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from circles import cosine_and_sine
from conftest import Tensors, load, same_bits, write_checkpoint
from one_kind import Formula, require_commands, write
from rationals import EVERY, Matrix, matrix, require

import adaptertool
from adaptertool.errors import AdapterToolError, InputError, MismatchError, UnsupportedError

OUT, COLUMNS, GROUP = 12, 5, 4
SIZES = {"road_1": OUT // 2, "road_2": OUT, "road_4": 2 * OUT}


def fields(variant: Any = "road_2", group: Any = GROUP, **more: Any) -> dict[str, Any]:
    return {"peft_type": "ROAD", "variant": variant, "group_size": group, "init_weights": True, **more}


def formula_of(theta: torch.Tensor, alpha: torch.Tensor, variant: str) -> Formula:
    """R·W, by the formulas of PEFT's forward pass."""
    scales = [Fraction(number) for number in alpha.tolist()]
    cosines, sines = zip(*(cosine_and_sine(angle) for angle in theta.double().tolist()), strict=True)

    def numbers(row: int) -> tuple[Fraction, Fraction]:
        group, within = divmod(row, GROUP)
        one = other = row
        if variant == "road_1":
            one = other = group * GROUP // 2 + within % (GROUP // 2)
        elif variant == "road_4":
            one = group * 2 * GROUP + within
            other = one + GROUP
        return scales[one] * cosines[one], scales[other] * sines[other]

    def formula(w: Matrix) -> Matrix:
        made = []
        for row in range(OUT):
            first, second = numbers(row)
            ahead = row % GROUP < GROUP // 2
            rest = w[row + GROUP // 2] if ahead else w[row - GROUP // 2]
            made.append([first * x + (-second if ahead else second) * y for x, y in zip(w[row], rest, strict=True)])
        return made

    return formula


def random(variant: str, dtype: torch.dtype = torch.float32) -> tuple[Tensors, Formula]:
    size = SIZES[variant]
    theta = (torch.randn(size) * 2.0 ** torch.randint(-12, 7, (size,))).to(dtype)
    theta[:4] = torch.tensor([0.0, -0.0, math.pi / 2, math.pi]).to(dtype)
    alpha = torch.randn(size).to(dtype)
    return {"l.road_theta": theta, "l.road_alpha": alpha}, formula_of(theta, alpha, variant)


@pytest.mark.long("variant")
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("variant", SIZES)
def test_every_command(tmp_path: Path, dtype: torch.dtype, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weight and of the bias."""
    tensors, formula = random(variant, dtype)
    stored = {"l.weight": torch.randn(OUT, COLUMNS).to(torch.bfloat16), "l.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", tensors, **fields(variant))
    require_commands(tmp_path, stored, adapter, {"l.weight": formula, "l.bias": formula}, monkeypatch)


def test_a_layer_without_a_bias(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, formula = random("road_1")
    stored = {"l.weight": torch.randn(OUT, COLUMNS), "other.bias": torch.randn(OUT)}
    adapter = write(tmp_path / "a", tensors, **fields("road_1"))
    require_commands(tmp_path, stored, adapter, {"l.weight": formula}, monkeypatch)


def test_no_angle_and_no_scale_change_nothing(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS), "l.bias": torch.randn(OUT)})
    tensors = {"l.road_theta": torch.zeros(OUT), "l.road_alpha": torch.ones(OUT)}
    adaptertool.merge(base, [write(tmp_path / "a", tensors, **fields())], tmp_path / "out")
    before = load(base)
    assert all(same_bits(tensor, before[name]) for name, tensor in load(tmp_path / "out").items())


@pytest.mark.parametrize(
    ("theta", "alpha", "settings", "error"),
    [
        (OUT + 1, OUT, fields(), MismatchError),
        (OUT, OUT // 2, fields(), MismatchError),
        (OUT, OUT, fields("road_1"), MismatchError),
        (OUT // 2, OUT // 2, fields("road_4"), MismatchError),
        (OUT, OUT, fields(group=8), MismatchError),
        (OUT, OUT, fields(group=3), UnsupportedError),
        (OUT, OUT, fields(group=0), UnsupportedError),
        (OUT, OUT, fields(group=None), UnsupportedError),
        (OUT, OUT, fields("road_3"), UnsupportedError),
        (OUT, OUT, fields(["road_1"]), UnsupportedError),
        (OUT, OUT, fields(unknown=2), UnsupportedError),
        (OUT, None, fields(), InputError),
        (0, 0, fields(), AdapterToolError),
    ],
)
def test_what_is_refused(tmp_path: Path, theta: int, alpha: Any, settings: Any, error: type[Exception]) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, COLUMNS)})
    tensors = {"l.road_theta": torch.ones(theta)} | ({} if alpha is None else {"l.road_alpha": torch.ones(alpha)})
    adapter = write(tmp_path / "a", tensors, **settings)
    with pytest.raises(error):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_convolutions_and_split_tensors_are_refused(tmp_path: Path) -> None:
    name = "model.layers.0.self_attn"
    split = {f"{name}.{part}_proj.weight": torch.randn(OUT, COLUMNS) for part in "qkv"}
    base = write_checkpoint(tmp_path / "base", split | {"l.weight": torch.randn(OUT, 3, 2)})
    (base / "config.json").write_text('{"model_type": "phi3"}')
    for layer, rows in ((f"{name}.qkv_proj", 3 * OUT), ("l", OUT)):
        tensors = {f"{layer}.road_theta": torch.ones(rows), f"{layer}.road_alpha": torch.ones(rows)}
        adapter = write(tmp_path / layer, tensors, **fields())
        with pytest.raises(UnsupportedError):
            adaptertool.merge(base, [adapter], tmp_path / "out")


def test_a_part_of_a_fused_tensor(tmp_path: Path) -> None:
    """Its rows are turned among themselves."""
    name = "model.layers.0.self_attn.qkv_proj.weight"
    base = write_checkpoint(tmp_path / "base", stored := {name: torch.randn(3 * OUT, COLUMNS)})
    config = {"model_type": "phi3", "hidden_size": OUT, "num_attention_heads": 1, "num_key_value_heads": 1}
    (base / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    tensors, formula = random("road_2")
    own = {key.replace("l.", "model.layers.0.self_attn.v_proj.", 1): tensor for key, tensor in tensors.items()}
    adaptertool.merge(base, [write(tmp_path / "a", own, **fields())], tmp_path / "out")
    exact = matrix(stored[name])
    exact[2 * OUT :] = formula(exact[2 * OUT :])
    require(load(tmp_path / "out")[name], exact, stored[name])
