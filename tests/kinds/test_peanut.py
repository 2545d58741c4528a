"""PEANuT against rationals, through every command."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, lora_factors, write_adapter, write_checkpoint
from one_kind import Formula, require_commands, times, together, write
from peft import PeftModel
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file
from torch import nn

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

OUT, IN, RANK = 8, 5, 3


def one_layer(folder: Path, layers: int = 2, dtype: torch.dtype = torch.float32, **more: Any) -> Path:
    shapes = {"A": (RANK, OUT), "B": (OUT, RANK)}
    shapes |= {f"{half}.{i}": (RANK, RANK) for half in ("encoders", "decoders") for i in range(layers)}
    tensors = {f"l.peanut_{name}.weight": torch.randn(shape).to(dtype) for name, shape in shapes.items()}
    fields = {"peft_type": "PEANUT", "r": RANK, "depth": layers, "act_fn": "relu", "scaling": 0.3}
    return write(folder, tensors, **{**fields, **more})


def turned(rows: Matrix) -> Matrix:
    return [list(column) for column in zip(*rows, strict=True)]


ZERO, SIX = Fraction(), Fraction(6)
FUNCTIONS: dict[str, Callable[[Fraction], Fraction]] = {
    "relu": lambda x: max(x, ZERO),
    "relu2": lambda x: max(x, ZERO) ** 2,
    "relu6": lambda x: min(max(x, ZERO), SIX),
    "leaky_relu": lambda x: x if x > 0 else x * Fraction(0.01),
    "hardswish": lambda x: x * min(max(x + 3, ZERO), SIX) / 6,
    "linear": lambda x: x,
}


def formula_of(adapter: Path, depth: int, weight: torch.Tensor, function: str = "relu") -> Formula:
    """W + s·B·Hᵀ, with the H of the base, whatever it finds."""
    found = load_file(adapter / "adapter_model.safetensors")
    one = FUNCTIONS[function]

    def relu(rows: Matrix) -> Matrix:
        return [[one(x) for x in row] for row in rows]

    own = {key.removeprefix(f"{PREFIX}l.peanut_").removesuffix(".weight"): matrix(x) for key, x in found.items()}
    h = relu(times(turned(matrix(weight)), turned(own["A"])))
    before = []
    for i in range(depth):
        before.append(h)
        h = relu(times(h, turned(own[f"encoders.{i}"])))
    for i in range(depth):
        h = together(relu(times(h, turned(own[f"decoders.{i}"]))), before.pop())
    return lambda w: together(w, times(own["B"], turned(h)), Fraction(0.3))


@pytest.mark.parametrize(
    ("depth", "dtype", "factors"),
    [(0, torch.bfloat16, torch.float32), (2, torch.float32, torch.float64), (1, torch.float32, torch.float32)],
    ids=str,
)
def test_every_command(
    tmp_path: Path, depth: int, dtype: torch.dtype, factors: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, adapter = torch.randn(OUT, IN).to(dtype), one_layer(tmp_path / "a", depth, factors)
    formulas = {"l.weight": formula_of(adapter, depth, weight)}
    require_commands(tmp_path, {"l.weight": weight, "rest": torch.ones(3)}, adapter, formulas, monkeypatch, lora=False)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_function(tmp_path: Path, function: str) -> None:
    """Each element is the rounding of the formula in rationals, and what PEFT makes in float64, but for its roundings.
    Weights are so large that some sums are beyond 6, some below −3."""
    weight = (torch.randn(OUT, IN) * 4).double()
    adapter = one_layer(tmp_path / "a", 2, torch.float64, act_fn=function)
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    adaptertool.merge(base, [adapter], tmp_path / "out")
    got = load(tmp_path / "out" / "model.safetensors")["l.weight"]
    expected = formula_of(adapter, 2, weight, function)(matrix(weight))
    assert got.tolist() == [[float(x) for x in row] for row in expected]  # float() rounds correctly
    model = nn.ModuleDict({"l": nn.Linear(IN, OUT, bias=False)}).double()
    model["l"].weight.data.copy_(weight)
    merged = PeftModel.from_pretrained(model, str(adapter), autocast_adapter_dtype=False).merge_and_unload()
    torch.testing.assert_close(merged["l"].weight.data, got, rtol=1e-11, atol=1e-11)
    for other in FUNCTIONS.keys() - {function}:
        assert formula_of(adapter, 2, weight, other)(matrix(weight)) != expected


@pytest.mark.parametrize(
    ("layers", "more", "message"),
    [
        (
            1,
            {"act_fn": "gelu"},
            r"act_fn = gelu is not supported \(relu, .*linear are\): others are no sums",
        ),
        (1, {"act_fn": ["relu"]}, "is not supported"),
        (1, {"depth": 2}, "depth = 2, with 2 layers"),
        (1, {"depth": "1"}, "depth must be a whole number"),
        (0, {"scaling": None}, "scaling must be a number"),
        (0, {"quite_new": 1}, "quite_new"),
    ],
)
def test_what_is_refused(tmp_path: Path, layers: int, more: dict[str, Any], message: str) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": torch.randn(OUT, IN)})
    with pytest.raises(InputError, match=message):
        adaptertool.merge(base, [one_layer(tmp_path / "a", layers, **more)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_weight_than_that_of_the_base_is_refused(tmp_path: Path) -> None:
    """After a LoRA, on one that is stored transposed, in memory, and of other sizes; a LoRA after it is right."""
    weight, adapter = torch.randn(OUT, IN), one_layer(tmp_path / "a")
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight})
    lora = write_adapter(tmp_path / "lora", lora_factors("l", weight.shape, 2), r=2, lora_alpha=2)
    with pytest.raises(UnsupportedError, match="which is changed before"):
        adaptertool.merge(base, [lora, adapter], tmp_path / "out")
    adaptertool.merge(base, [adapter, lora], tmp_path / "after")
    model = nn.ModuleDict({"l": nn.Linear(IN, OUT, bias=False)})
    with pytest.raises(UnsupportedError, match="a model in memory"), adaptertool.applied(model, [adapter]):
        pass
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, shape in (("A", (RANK, OUT + 1)), ("B", (OUT, RANK + 1)), ("encoders.1", (RANK, RANK + 1))):
        save_file({**tensors, f"{PREFIX}l.peanut_{key}.weight": torch.ones(shape)}, path)
        with pytest.raises(MismatchError, match=r"l\.weight"):
            adaptertool.merge(base, [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()
