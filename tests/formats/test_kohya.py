"""Files of kohya's and LyCORIS's: how names are found, what alphas mean, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import adaptertool as command
from conftest import load, write_checkpoint
from oracle import half_ulp_excess
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError
from adaptertool.files.parsed import Parsed
from adaptertool.formats import is_adapter, recognised

OUT, IN, RANK = 8, 6, 4
TO_OUT = "down_blocks.0.attentions.1.to_out.0"
FLAT = TO_OUT.replace(".", "_")


def base_of(folder: Path, *more: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    names = [f"{TO_OUT}.weight", *more]
    return write_checkpoint(folder, {name: torch.randn(OUT, IN).to(dtype) for name in names})


def factors(name: str, alpha: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    down, up = torch.randn(RANK, IN), torch.randn(OUT, RANK)
    found = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
    return found | ({} if alpha is None else {f"{name}.alpha": alpha})


def write(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    save_file(tensors, path)
    return path


def change(path: Path) -> torch.Tensor:
    """B·A of the only module."""
    tensors = load_file(path)
    (down,) = (tensor.double() for key, tensor in tensors.items() if ".lora_down." in key)
    (up,) = (tensor.double() for key, tensor in tensors.items() if ".lora_up." in key)
    return up.flatten(1) @ down.flatten(1)


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_te_", "lora_te1_", "lora_transformer_", "lycoris_"])
@pytest.mark.parametrize(
    ("alpha", "scale"),
    [
        (None, 1.0),
        (torch.tensor(2.0), 0.5),
        (torch.tensor([1.3], dtype=torch.float16), 1.2998046875 / 4),
        (torch.tensor(2, dtype=torch.int64), 0.5),
        (torch.tensor(-4.0, dtype=torch.bfloat16), -1.0),
    ],
)
def test_the_scale_of_each_module_is_its_own_alpha(
    tmp_path: Path, prefix: str, alpha: torch.Tensor | None, scale: float
) -> None:
    base, path = base_of(tmp_path / "base"), write(tmp_path / "a.safetensors", factors(prefix + FLAT, alpha))
    adaptertool.merge(base, [path], tmp_path / "out")
    key = f"{TO_OUT}.weight"
    exact = load(base)[key].double() + scale * change(path)
    assert half_ulp_excess(load(tmp_path / "out")[key], exact).max() <= 1 + 1e-6
    assert adaptertool.verify(tmp_path / "out", base, [path]).ok


@pytest.mark.parametrize(("shape", "ones"), [((OUT, IN), (1, 1)), ((OUT, IN, 1, 1), ())])
def test_a_linear_layer_may_be_a_convolution_of_size_1(
    tmp_path: Path, shape: tuple[int, ...], ones: tuple[int, ...]
) -> None:
    """proj_in of SDXL is linear in one tool and a convolution in another."""
    base = write_checkpoint(tmp_path / "base", {"proj_in.weight": torch.randn(shape)})
    tensors = {key: tensor.reshape(*tensor.shape, *ones) for key, tensor in factors("lora_unet_proj_in").items()}
    path = write(tmp_path / "a.safetensors", tensors)
    adaptertool.merge(base, [path], tmp_path / "out")
    exact = load(base)["proj_in.weight"].double().reshape(OUT, IN) + change(path)
    assert half_ulp_excess(load(tmp_path / "out")["proj_in.weight"].reshape(OUT, IN), exact).max() <= 1 + 1e-6


def test_names_that_two_tensors_would_have_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", factors("lora_unet_" + FLAT))
    base = base_of(tmp_path / "base", "down_blocks.0.attentions.1.to_out_0.weight")
    with pytest.raises(MismatchError, match=r"can mean .*to_out\.0\.weight, .*to_out_0\.weight"):
        adaptertool.merge(base, [path], tmp_path / "out")


def test_a_module_that_the_base_lacks_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.safetensors", factors("lora_unet_" + FLAT) | factors("lora_unet_mid_block_attn"))
    with pytest.raises(MismatchError, match=r"1 of 2 modules.*\n.*lora_unet_mid_block_attn"):
        adaptertool.merge(base_of(tmp_path / "base"), [path], tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"alpha": torch.tensor(0.0)}, UnsupportedError, r"alpha is 0, which trainers take for the rank"),
        ({"alpha": torch.tensor(float("nan"))}, InputError, r"alpha is nan"),
        ({"alpha": torch.ones(2)}, InputError, r"alpha is F32 2; it is to be one number"),
        ({"alpha": torch.tensor(True)}, InputError, r"alpha is BOOL .*it is to be one number"),
        ({"lora_left.weight": torch.ones(2)}, UnsupportedError, r"lora_left\.weight: this tensor is not known"),
        ({"hada_w1_a": torch.ones(2, 2)}, UnsupportedError, r"has \.hada_w1_a.* together these are not supported"),
        ({"lora_up.weight": None}, InputError, r"has \.lora_down\.weight, and no \.lora_up\.weight \(lora\)"),
        ({"lora_up.weight": torch.ones(OUT, RANK).byte()}, UnsupportedError, r"lora_up\.weight is U8; factors are"),
        ({"on_input": torch.tensor(1)}, UnsupportedError, r"on_input stands beside factors of another kind"),
        ({"lora_down.weight": torch.tensor(1.0)}, InputError, r"lora_down\.weight is F32 scalar, and no factor"),
        ({"lora_up.weight": torch.ones(OUT + 1, RANK)}, MismatchError, r"must be 8×4, but it is F32 9×4"),
        ({"lora_up.weight": None, "lora_down.weight": None, "alpha": torch.ones(())}, InputError, "no factors for it"),
    ],
)
def test_refused_by_name(
    tmp_path: Path, more: dict[str, torch.Tensor | None], error: type[Exception], match: str
) -> None:
    tensors: dict[str, torch.Tensor | None] = {**factors("lora_unet_" + FLAT)}
    tensors |= {f"lora_unet_{FLAT}.{ending}": tensor for ending, tensor in more.items()}
    path = write(tmp_path / "a.safetensors", {key: tensor for key, tensor in tensors.items() if tensor is not None})
    base = base_of(tmp_path / "base")
    assert is_adapter(path)
    with pytest.raises(error, match=match):
        adaptertool.merge(base, [path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert command("inspect", path).returncode in (0, 3)


def test_two_names_for_one_factor_are_refused(tmp_path: Path) -> None:
    tensors = {f"lora_unet_{FLAT}.{ending}": torch.randn(OUT, IN) for ending in ("diff", "w_norm")}
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(UnsupportedError, match=r"has \.diff, \.w_norm; together these are not supported"):
        adaptertool.merge(base_of(tmp_path / "base"), [path], tmp_path / "out")


def test_every_command(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    path = write(tmp_path / "a.safetensors", factors("lora_unet_" + FLAT, torch.tensor(2.0)))
    assert recognised(path) is not None and recognised(base) is None
    other = write(tmp_path / "b.safetensors", factors("lora_unet_" + FLAT, torch.tensor(2.0)))
    assert command("merge", base, path, other, "-o", tmp_path / "out", "-w", "1", "-w", "0.5").returncode == 0
    assert command("verify", tmp_path / "out", base, path, other, "-w", "1", "-w", "0.5").returncode == 0
    assert command("verify", tmp_path / "out", base, path).returncode == 1
    for arguments in (
        ["wise", base, path, "-o", tmp_path / "wise", "--alpha", "0.3"],
        ["inspect", path],
        ["inspect", path, "--base", base],
        ["drift", base, path],
    ):
        done = command(*arguments)
        assert done.returncode == 0, done.stderr
    assert "rank 4" in command("inspect", path).stdout
    for arguments, code, said in (
        (["sum", path, other, "-o", tmp_path / "s"], 2, r"is to end in .safetensors"),
        (["truncate", path, "--rank", "1", "-o", tmp_path / "s"], 2, r"is to end in .safetensors"),
        (["wise", base, path, "-o", tmp_path / "s", "--alpha", "0.3", "--as-adapter"], 3, "convert --to kohya`"),
    ):
        done = command(*arguments)
        assert done.returncode == code and said in done.stderr, done.stderr
        assert not (tmp_path / "s").exists()
    assert command("sum", path, other, "-w", "1", "-w", "0.5", "-o", tmp_path / "s.safetensors").returncode == 0
    assert command("verify", tmp_path / "out", base, tmp_path / "s.safetensors").returncode == 0
    assert command("diff", path, other).returncode == 1
    assert command("diff", path, path).returncode == 0


def test_a_file_that_is_no_safetensors_file_is_no_adapter(tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes(b"lora_unet_")
    assert not is_adapter(tmp_path / "lora.safetensors")
    assert Parsed(tmp_path).path == tmp_path


@pytest.mark.parametrize(
    ("numbers", "on_input", "error", "match"),
    [
        (OUT, None, InputError, r"on_input is not there"),
        (OUT, 2, InputError, r"on_input is 2; .* 0 or 1"),
        (OUT, 1, MismatchError, rf"weight is F32 {OUT}, and on_input says that it is for the {IN} inputs"),
        (IN, 0, MismatchError, rf"weight is F32 {IN}, and on_input says that it is for the {OUT} outputs"),
        (IN + 5, 0, MismatchError, rf"must be {OUT}, but it is F32 {IN + 5}"),
    ],
)
def test_the_side_of_ia3_is_told_by_a_number(
    tmp_path: Path, numbers: int, on_input: int | None, error: type[Exception], match: str
) -> None:
    tensors = {f"lora_unet_{FLAT}.weight": torch.randn(numbers)}
    tensors |= {} if on_input is None else {f"lora_unet_{FLAT}.on_input": torch.tensor(on_input)}
    path = write(tmp_path / "a.safetensors", tensors)
    with pytest.raises(error, match=match):
        adaptertool.merge(base_of(tmp_path / "base"), [path], tmp_path / "out")
