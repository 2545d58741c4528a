"""`truncate` and `sum` of files with flat names, `--ratio`, and results in another format."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, Tensors, load, lora_factors, same_bits, write_adapter, write_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import AdapterToolError, UsageError
from adaptertool.numerics.lowrank import kept
from adaptertool.spec.choices import RankChoice
from adaptertool.tasks.truncate import truncate


def spectrum(values: list[float], out: int, wide: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(up, down) of a product with these singular values, float64."""
    left, right = (torch.linalg.qr(torch.randn(size, len(values), dtype=torch.double))[0] for size in (out, wide))
    return (left * torch.tensor(values, dtype=torch.double)).contiguous(), right.T.contiguous()


def layer(name: str, values: list[float], shape: tuple[int, int], alpha: float, dtype: torch.dtype) -> Tensors:
    up, down = spectrum(values, *shape)
    return {
        f"{name}.lora_down.weight": down.to(dtype),
        f"{name}.lora_up.weight": up.to(dtype),
        f"{name}.alpha": torch.tensor(alpha),
    }


def change(tensors: Tensors, name: str) -> torch.Tensor:
    up, down = (tensors[f"{name}.lora_{end}.weight"].double() for end in ("up", "down"))
    return tensors[f"{name}.alpha"].double() / len(down) * up.flatten(1) @ down.flatten(1)


X, Y, C = "lora_unet_x", "lora_unet_y", "lora_unet_conv"


def file_of(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, metadata=metadata)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_layer_keeps_its_scale_and_its_best_part(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = layer(X, [4.0, 2, 1, 0.5], (9, 9), 3.0, dtype) | layer(Y, [5.0, 1], (6, 8), 2.0, dtype)
    path = file_of(tmp_path / "a.safetensors", tensors, {"ss_tag": "t", "ss_network_dim": "4"})
    report = truncate(path, tmp_path / "b.safetensors", rank=2)
    assert [(one.layer, one.rank_before, one.rank) for one in report.layers] == [(X, 4, 2), (Y, 2, 2)]
    found = load(tmp_path / "b.safetensors")
    assert found.keys() == tensors.keys()
    assert all(found[key].equal(tensor) for key, tensor in tensors.items() if key.startswith(Y))
    assert (found[f"{X}.alpha"].item(), len(found[f"{X}.lora_down.weight"])) == (1.5, 2)
    left, values, right = torch.linalg.svd(change(tensors, X))
    best = left[:, :2] * values[:2] @ right[:2]
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    assert (change(found, X) - best).norm() < tolerance * best.norm()
    assert found[f"{X}.lora_up.weight"].dtype == dtype
    with safe_open(tmp_path / "b.safetensors", "pt") as opened:
        told = opened.metadata()
    assert (told["ss_tag"], told["ss_network_dim"], told["ss_network_alpha"]) == ("t", "2", "Dynamic")


@pytest.mark.parametrize(("ratio", "rank", "ranks"), [(4, None, [3, 2]), (1.5, None, [1, 1]), (100, 2, [2, 2])])
def test_a_ratio_keeps_what_is_large_beside_the_largest(
    tmp_path: Path, ratio: float, rank: int | None, ranks: list[int]
) -> None:
    tensors = layer(X, [4.0, 2, 1.1, 0.5], (9, 7), 4.0, torch.float32) | layer(
        Y, [5.0, 1.3, 1e-3], (6, 8), 2.0, torch.float32
    )
    path = file_of(tmp_path / "a.safetensors", tensors)
    report = truncate(path, tmp_path / "b.safetensors", ratio=ratio, rank=rank)
    assert [one.rank for one in report.layers] == ranks
    assert report.cut == {"ratio": str(ratio)} | ({} if rank is None else {"rank": rank})


def test_ratios_are_of_values_as_they_are() -> None:
    values = torch.tensor([8.0, 4.0, 1.0, 0.0]).double().numpy()
    counts = {Decimal(2): 2, Decimal(8): 3, Decimal("7.9"): 2, Decimal(1): 1}
    assert {ratio: kept(values, RankChoice(ratio=ratio)) for ratio in counts} == counts
    assert kept(values, RankChoice(rank=1, ratio=Decimal(8))) == 1
    assert kept(values * 0, RankChoice(ratio=Decimal(2))) >= 1
    for wrong in ({"ratio": "0.5"}, {"ratio": 2, "energy": "0.9"}, {"rank": 2, "energy": "0.9"}, {}):
        with pytest.raises(UsageError):
            truncate(FIXTURES / "lora", "out", **wrong)  # type: ignore[arg-type]


def test_convolutions_cores_dora_and_differences(tmp_path: Path) -> None:
    """A core is multiplied in; magnitudes and differences stay byte for byte."""
    tensors: Tensors = {
        f"{C}.lora_down.weight": torch.randn(3, 4, 1, 1),
        f"{C}.lora_up.weight": torch.randn(7, 3, 1, 1),
        f"{C}.lora_mid.weight": torch.randn(3, 3, 3, 3),
        f"{C}.alpha": torch.tensor(1.5),
        **layer(X, [4.0, 2, 1], (9, 9), 3.0, torch.float32),
        f"{X}.dora_scale": torch.rand(9, 1),
        **layer(Y, [4.0, 2, 1], (6, 8), 3.0, torch.float32),
        f"{Y}.dora_scale": torch.rand(1, 8),
        f"{Y}.diff_b": torch.randn(6),
    }
    path = file_of(tmp_path / "a.safetensors", tensors)
    truncate(path, tmp_path / "b.safetensors", rank=2)
    found = load(tmp_path / "b.safetensors")
    for key in (f"{X}.dora_scale", f"{Y}.dora_scale", f"{Y}.diff_b"):
        assert same_bits(found[key], tensors[key])
    assert {len(found[f"{name}.lora_down.weight"]) for name in (X, Y, C)} == {2}
    assert all(tensor.dtype == torch.float32 for tensor in found.values())
    up, mid, down = (tensors[f"{C}.lora_{end}.weight"].double() for end in ("up", "mid", "down"))
    whole = torch.einsum("mnij,om,nc->ocij", mid, up.flatten(1), down.flatten(1)).flatten(1) * 0.5
    left, values, right = torch.linalg.svd(whole)
    best = left[:, :2] * values[:2] @ right[:2]
    assert (change(found, C) - best).norm() < 1e-6 * best.norm()


def test_with_its_base_the_effect_is_told(tmp_path: Path) -> None:
    tensors = layer(X, [4.0, 2, 1], (9, 9), 3.0, torch.float32)
    base = write_checkpoint(tmp_path / "base", {"x.weight": torch.randn(9, 9)})
    path = file_of(tmp_path / "a.safetensors", tensors)
    (told,) = truncate(path, tmp_path / "b.safetensors", rank=2, base=base).layers
    assert told.effect == pytest.approx(1 / 21**0.5, rel=1e-4)


@pytest.mark.parametrize("to", ["kohya", "comfy"])
def test_a_result_in_another_format_is_the_one_that_is_converted(tmp_path: Path, to: str) -> None:
    adapter = write_adapter(
        tmp_path / "a",
        {**lora_factors("down_blocks.0.q", (9, 8)), **lora_factors("down_blocks.1.k", (7, 8))},
        alpha_pattern={"q": 6},
    )
    truncate(adapter, tmp_path / "one.safetensors", rank=2, to=to)
    truncate(adapter, tmp_path / "two", rank=2)
    adaptertool.convert(tmp_path / "two", tmp_path / "three.safetensors", to=to)
    one, three = load(tmp_path / "one.safetensors"), load(tmp_path / "three.safetensors")
    assert one.keys() == three.keys()
    assert all(tensor.equal(three[key]) for key, tensor in one.items())
    assert not list(tmp_path.glob(".*"))


def test_kohyas_in_pefts_format_needs_paths(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors", layer(X, [4.0, 2], (9, 9), 3.0, torch.float32))
    with pytest.raises(AdapterToolError, match="named as kohya's tools do"):
        truncate(path, tmp_path / "out", rank=1, to="peft")
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]


REFUSED: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "loha": (
        {f"hada_w{n}_{x}": (2, 8) if x == "b" else (8, 2) for n in (1, 2) for x in "ab"},
        "no pair of factors to cut",
    ),
    "no fit": ({"lora_down.weight": (2, 8), "lora_up.weight": (8, 3)}, "make no product"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(tmp_path: Path, case: str) -> None:
    shapes, match = REFUSED[case]
    path = file_of(tmp_path / "a.safetensors", {f"{X}.{end}": torch.randn(shape) for end, shape in shapes.items()})
    with pytest.raises(AdapterToolError, match=match):
        truncate(path, tmp_path / "b.safetensors", rank=1)


def test_names_of_out(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.safetensors", layer(X, [4.0, 2], (9, 9), 3.0, torch.float32))
    asked: list[tuple[Any, str, str | None]] = [(path, "b", None), (FIXTURES / "lora", "b", "kohya")]
    for adapter, out, to in asked:
        with pytest.raises(UsageError, match=r"is to end in \.safetensors"):
            truncate(adapter, tmp_path / out, rank=1, to=to)
    with pytest.raises(UsageError, match="named like a file"):
        truncate(FIXTURES / "lora", tmp_path / "b.safetensors", rank=1)


def test_the_sum_of_files_with_flat_names(tmp_path: Path) -> None:
    """Σ w·alpha/r·up·down, exact: A stays byte for byte, and the file is one of the same kind."""
    one = layer(X, [4.0, 2], (9, 9), 1.0, torch.float32) | layer(Y, [4.0, 2], (6, 8), 2.0, torch.float32)
    two = layer(X, [3.0, 1, 0.5, 0.25], (9, 9), 2.0, torch.float32)
    paths = [file_of(tmp_path / f"{number}.safetensors", some) for number, some in enumerate((one, two))]
    report = adaptertool.sum_adapters(paths, tmp_path / "sum.safetensors", weights=["0.5", "-2"])
    assert all(one.exact for one in report.layers)
    found = load(tmp_path / "sum.safetensors")
    assert (change(found, X) - (0.5 * change(one, X) - 2 * change(two, X))).abs().max() < 1e-12
    assert (change(found, Y) - 0.5 * change(one, Y)).abs().max() < 1e-12
    assert found[f"{X}.lora_down.weight"].equal(torch.cat([one[f"{X}.lora_down.weight"], two[f"{X}.lora_down.weight"]]))
    with pytest.raises(AdapterToolError, match="named as kohya's tools do"):
        adaptertool.sum_adapters(paths, tmp_path / "out", to="peft")
    with pytest.raises(AdapterToolError, match="whole difference added"):
        path = file_of(tmp_path / "d.safetensors", one | {f"{Y}.diff_b": torch.randn(6)})
        adaptertool.sum_adapters([path], tmp_path / "out.safetensors")


def test_a_sum_and_an_extract_in_another_format(tmp_path: Path) -> None:
    adapters = [write_adapter(tmp_path / str(n), lora_factors("down_blocks.0.q", (9, 8))) for n in range(2)]
    adaptertool.sum_adapters(adapters, tmp_path / "one.safetensors", to="kohya")
    adaptertool.sum_adapters(adapters, tmp_path / "two")
    adaptertool.convert(tmp_path / "two", tmp_path / "three.safetensors", to="kohya")
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "three.safetensors").read_bytes()
    tensors = {"down_blocks.0.q.weight": torch.randn(9, 8), "norm.weight": torch.randn(8)}
    base = write_checkpoint(tmp_path / "base", tensors)
    tuned = write_checkpoint(tmp_path / "tuned", {name: t + torch.randn(t.shape) / 9 for name, t in tensors.items()})
    with pytest.raises(AdapterToolError, match="saved whole"):
        adaptertool.extract(base, tuned, tmp_path / "e.safetensors", rank=3, to="kohya")
    assert not (tmp_path / "e.safetensors").exists()
    adaptertool.extract(base, tuned, tmp_path / "e.safetensors", rank=3, to="kohya", leave_out=["norm"])
    adaptertool.extract(base, tuned, tmp_path / "e", rank=3, leave_out=["norm"])
    kohya, peft = load(tmp_path / "e.safetensors"), load(tmp_path / "e")
    name = "lora_unet_down_blocks_0_q"
    for end, own in (("lora_down", "lora_A"), ("lora_up", "lora_B")):
        assert kohya[f"{name}.{end}.weight"].equal(peft[f"base_model.model.down_blocks.0.q.{own}.weight"])
    assert kohya[f"{name}.alpha"] == 3
