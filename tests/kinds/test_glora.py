"""GLoRA against rationals, and in every command."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, same_bits, write_checkpoint
from one_kind import (
    IN,
    JOINED,
    OUT,
    Numbers,
    base_of,
    every_dtype,
    normal,
    own,
    require_commands,
    times,
    together,
    try_commands,
    try_joined_is_refused,
    try_merges,
    varied,
    vector,
    write,
)
from rationals import Matrix, matrix
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, UnsupportedError

RANK = 3
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "lora": {"Xd": (OUT, RANK), "Xu": (RANK, IN)},
    "vector": {"X": (OUT, 1)},
    "constant": {"X": (1,)},
}


def one_layer(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    layer: str = "l",
    make: Numbers = normal,
    what: str = "lora",
    **fields: Any,
) -> Path:
    """With zeros for the parts of a bias that is not there, as PEFT saves them."""
    tensors = {
        f"{layer}.glora_{side}.{end}": make(*shape, dtype=dtype) for side in "AB" for end, shape in SHAPES[what].items()
    }
    for side, shape in (("C", (IN, 1)), ("D", (OUT,)), ("E", (OUT,))):
        tensors[f"{layer}.glora_{side}.zeros"] = torch.zeros(shape)
    return write(folder, tensors, **{"peft_type": "GLORA", "r": RANK, "config_A_B": what, **fields})


def path_of(found: dict[str, torch.Tensor], side: str) -> Matrix:
    if f"glora_{side}.Xd" in found:
        return times(matrix(found[f"glora_{side}.Xd"]), matrix(found[f"glora_{side}.Xu"]))
    column = vector(found[f"glora_{side}.X"])
    return [[number] * IN for number in (column * OUT if len(column) == 1 else column)]


def change_of(adapter: Path, weight: Matrix, layer: str = "l") -> Matrix:
    found = own(adapter, layer)
    gain = path_of(found, "A")
    return together(
        [[w * g for w, g in zip(*rows, strict=True)] for rows in zip(weight, gain, strict=True)],
        path_of(found, "B"),
        Fraction(1),
    )


@pytest.mark.long("what")
@every_dtype
@pytest.mark.parametrize("what", SHAPES)
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, what: str
) -> None:
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors, make=varied, what=what)
    try_merges(tmp_path, base, adapter, change_of(adapter, matrix(load(base)["l.weight"])))


@pytest.mark.parametrize("what", SHAPES)
def test_every_command(tmp_path: Path, what: str) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a", what=what)
    try_commands(tmp_path, base, adapter, "glora")


def test_projections_that_are_stored_apart_are_refused(tmp_path: Path) -> None:
    try_joined_is_refused(tmp_path, one_layer(tmp_path / "a", layer=JOINED), "glora")


def test_what_is_not_handled_is_refused_by_name(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    with pytest.raises(InputError, match="quite_new"):
        adaptertool.merge(base, [one_layer(tmp_path / "f", quite_new=1)], tmp_path / "out")
    path = one_layer(tmp_path / "a") / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, shape, message in (
        ("glora_C.X", (IN, 1), "for a bias, and the base has none"),
        ("glora_D.X", (1,), "for a bias, and the base has none"),
        ("glora_A.zeros", (OUT, IN), ""),
        ("glora_D.zeros", (OUT,), "must be zeros"),
        ("glora_A.X", (1,), ""),
        ("glora_A.Xu", (RANK, IN + 1), ""),
        ("glora_E.zeros", (OUT + 1,), ""),
    ):
        save_file({**tensors, f"{PREFIX}l.{key}": torch.ones(shape)}, path)
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [path.parent], tmp_path / "out")
    save_file({name: tensor for name, tensor in tensors.items() if not name.endswith(".Xu")}, path)
    with pytest.raises(UnsupportedError):
        adaptertool.merge(base, [path.parent], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def with_bias(
    folder: Path, what: str, dtype: torch.dtype = torch.float32, layer: str = "l", make: Numbers = normal
) -> Path:
    """All five, as PEFT saves them of a layer with a bias. what: the form of C; D and E are one number each for lora"""
    ends = {"lora": {"Xd": (IN, RANK), "Xu": (RANK, 1)}, "vector": {"X": (IN, 1)}}[what]
    tensors = {f"{layer}.glora_C.{end}": make(*shape, dtype=dtype) for end, shape in ends.items()}
    for side in "DE":
        tensors[f"{layer}.glora_{side}.X"] = make(1 if what == "lora" else OUT, dtype=dtype)
    for side in "AB":
        tensors |= {f"{layer}.glora_{side}.{end}": make(*shape, dtype=dtype) for end, shape in SHAPES[what].items()}
    return write(folder, tensors, peft_type="GLORA", r=RANK)


@pytest.mark.parametrize(
    ("what", "dtype", "factors"),
    [
        ("lora", torch.bfloat16, torch.float32),
        ("vector", torch.float32, torch.float64),
        ("vector", torch.float16, torch.float32),
    ],
    ids=str,
)
def test_the_bias(
    tmp_path: Path, what: str, dtype: torch.dtype, factors: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """b + b ⊙ D + E + W·C, in every command, and in small blocks."""
    weight = torch.randn(OUT, IN).to(dtype)
    stored = {"l.weight": weight, "l.bias": torch.randn(OUT).to(dtype), "rest": torch.randn(4)}
    adapter = with_bias(tmp_path / "a", what, factors, make=varied)
    found = own(adapter)
    if what == "lora":
        c = times(matrix(found["glora_C.Xd"]), matrix(found["glora_C.Xu"]))
    else:
        c = matrix(found["glora_C.X"])
    d, e = (vector(found[f"glora_{side}.X"]) * (OUT if what == "lora" else 1) for side in "DE")

    def of_bias(b: Matrix) -> Matrix:
        added = times(matrix(weight), c)
        return [[x + x * d[i] + e[i] + added[i][0]] for i, (x,) in enumerate(b)]

    formulas = {"l.bias": of_bias, "l.weight": lambda w: together(w, change_of(adapter, w))}
    require_commands(tmp_path, stored, adapter, formulas, monkeypatch, lora=False)


def test_where_the_weight_of_a_bias_is_not_known(tmp_path: Path) -> None:
    """Another adapter changed it before, it is one of a model in memory, or it has other inputs."""
    layer = torch.nn.Linear(IN, OUT)
    stored = {f"l.{name}": tensor.detach() for name, tensor in layer.state_dict().items()}
    base, adapter = write_checkpoint(tmp_path / "base", stored), with_bias(tmp_path / "a", "vector")
    with pytest.raises(UnsupportedError, match="which is changed before:"):
        adaptertool.merge(base, [adapter, adapter], tmp_path / "out")
    model = torch.nn.Module()
    model.l = layer
    with pytest.raises(UnsupportedError, match="a model in memory"), adaptertool.applied(model, [adapter]):
        pass
    path = adapter / "adapter_model.safetensors"
    save_file({**load_file(path), f"{PREFIX}l.glora_C.X": torch.ones(IN + 1, 1)}, path)
    with pytest.raises(InputError, match=f"must have {IN} rows, but it is F32 {IN + 1}×1"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_for_the_weight(tmp_path: Path) -> None:
    """As PEFT saves config_A_B = none: the weight stays as it is, also its zeros of both signs."""
    weight = torch.randn(OUT, IN)
    weight[0] = -0.0
    base = write_checkpoint(tmp_path / "base", {"l.weight": weight, "l.bias": torch.zeros(OUT)})
    shapes = {"A": (OUT, IN), "B": (OUT, IN), "C": (IN, 1)}
    tensors = {f"l.glora_{side}.zeros": torch.zeros(shape) for side, shape in shapes.items()}
    tensors |= {f"l.glora_{side}.X": torch.randn(OUT) for side in "DE"}
    adapter = write(tmp_path / "a", tensors, peft_type="GLORA", r=RANK, config_A_B="none")
    adaptertool.merge(base, [adapter], tmp_path / "out", verify=True)
    found = load(tmp_path / "out")
    assert same_bits(found["l.weight"], weight) and same_bits(found["l.bias"], tensors["l.glora_E.X"])
    for side in "ABC":
        wrong = tensors | {f"l.glora_{side}.zeros": torch.ones(shapes[side])}
        other = write(tmp_path / side, wrong, peft_type="GLORA", r=RANK, config_A_B="none")
        with pytest.raises(InputError, match=rf"glora_{side}\.zeros must be zeros"):
            adaptertool.merge(base, [other], tmp_path / "no")
