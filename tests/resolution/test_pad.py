"""Control LoRAs of ComfyUI: the weight is padded with zeros to `reshape_weight`, and then changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import snapshot, write_checkpoint
from oracle import half_ulp_excess
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

OUT, OLD, NEW, RANK = 8, 6, 12, 4
LAYER, OTHER = "img_in", "double_blocks.0.img_attn.proj"
FRONT = f"diffusion_model.{LAYER}"


def adapter(path: Path, *, wide: int = NEW, **more: torch.Tensor) -> Path:
    tensors = {"lora_A.weight": torch.randn(RANK, wide), "lora_B.weight": torch.randn(OUT, RANK)}
    tensors |= {"alpha": torch.tensor(2.0), "reshape_weight": torch.tensor([OUT, wide])} | more
    save_file({f"{FRONT}.{name}": tensor for name, tensor in tensors.items() if tensor.numel()}, path)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    weights = {f"{LAYER}.weight": torch.randn(OUT, OLD).bfloat16(), f"{OTHER}.weight": torch.randn(OUT, OUT).bfloat16()}
    save_file(weights, tmp_path / "base.safetensors")
    return tmp_path / "base.safetensors"


def expected(base: Path, control: Path, times: float = 1.0) -> torch.Tensor:
    """As ComfyUI has it (pad_tensor_to_shape of comfy/weight_adapter/base.py), in float64."""
    weight, factors = load_file(base)[f"{LAYER}.weight"], load_file(control)
    down, up = (factors[f"{FRONT}.lora_{role}.weight"].double() for role in "AB")
    grown = torch.zeros(*factors[f"{FRONT}.reshape_weight"].tolist(), dtype=torch.float64)
    grown[tuple(slice(0, size) for size in weight.shape)] = weight.double()
    return grown + times * float(factors[f"{FRONT}.alpha"]) / RANK * (up.flatten(1) @ down.flatten(1)).view_as(grown)


def test_a_padded_layer_is_merged_interpolated_and_verified(tmp_path: Path, base: Path) -> None:
    control, out = adapter(tmp_path / "control.safetensors"), tmp_path / "out.safetensors"
    report = adaptertool.merge(base, [control], out, weights=[0.7])
    assert any("8×6 in the base, and 8×12 in the output" in note for note in report.notes)
    merged = load_file(out)
    assert merged[f"{LAYER}.weight"].dtype == torch.bfloat16
    assert half_ulp_excess(merged[f"{LAYER}.weight"], expected(base, control, 0.7)).max() <= 1
    assert torch.equal(merged[f"{OTHER}.weight"], load_file(base)[f"{OTHER}.weight"])
    assert adaptertool.verify(out, base, [control], weights=[0.7]).summary.exact == 2
    adaptertool.wise(base, control, tmp_path / "wise", [0, 0.3])
    for alpha in (0, 0.3):
        found = load_file(tmp_path / "wise" / f"alpha-{alpha:.3f}" / base.name)[f"{LAYER}.weight"]
        assert half_ulp_excess(found, expected(base, control, alpha)).max() <= 1
    adaptertool.merge(base, [control, control], tmp_path / "two.safetensors", weights=[1, -1])
    found = load_file(tmp_path / "two.safetensors")[f"{LAYER}.weight"]
    assert half_ulp_excess(found, expected(base, control, 0)).max() <= 1


def test_what_others_may_have_made_of_it(tmp_path: Path, base: Path) -> None:
    control = adapter(tmp_path / "control.safetensors")
    right, zero = expected(base, control), expected(base, control, 0)

    def judged(weight: torch.Tensor) -> tuple[str, str | None]:
        save_file(load_file(base) | {f"{LAYER}.weight": weight.contiguous()}, tmp_path / "other.safetensors")
        (found,) = [
            one
            for one in adaptertool.verify(tmp_path / "other.safetensors", base, [control]).tensors
            if one.name == f"{LAYER}.weight"
        ]
        return found.status, found.diagnosis

    assert judged(zero.bfloat16() + (right - zero).bfloat16()) == ("rounding", None)
    assert judged((2 * right - zero).bfloat16()) == ("wrong", "applied-twice")
    assert judged(zero.bfloat16()) == ("wrong", "not-applied")
    assert judged(zero[:, :OLD].bfloat16()) == ("wrong", "shape-changed")
    assert judged((right - zero + zero.roll(OLD, 1)).bfloat16())[0] == "wrong"
    report = adaptertool.drift(base, [control])
    assert report.ok and report.modules[0].shape == (OUT, NEW)


@pytest.mark.parametrize("shape", [(OUT + 2, OLD, 3, 3), (OUT, OLD + 1, 3, 5), (OUT, OLD, 3, 3)])
def test_a_convolution_grows_in_any_dimension(tmp_path: Path, shape: tuple[int, ...]) -> None:
    base, control = tmp_path / "base.safetensors", tmp_path / "control.safetensors"
    save_file({f"{LAYER}.weight": torch.randn(OUT, OLD, 3, 3).half()}, base)
    up, down = torch.randn(shape[0], RANK, 1, 1), torch.randn(RANK, *shape[1:])
    adapter(control, **{"lora_B.weight": up, "lora_A.weight": down, "reshape_weight": torch.tensor(shape)})
    notes = adaptertool.merge(base, [control], tmp_path / "out.safetensors").notes
    found = load_file(tmp_path / "out.safetensors")[f"{LAYER}.weight"]
    assert half_ulp_excess(found, expected(base, control)).max() <= 1
    assert any("padded" in note for note in notes) == (shape != (OUT, OLD, 3, 3))


@pytest.mark.parametrize(
    ("more", "error", "match"),
    [
        ({"reshape_weight": torch.tensor([OUT, OLD - 1])}, MismatchError, r"to 8×5, but img_in\.weight is 8×6 .* grow"),
        ({"reshape_weight": torch.tensor([OUT, NEW, 1])}, MismatchError, r"8×12×1, but img_in\.weight is 8×6"),
        ({"reshape_weight": torch.tensor([OUT, NEW + 1])}, MismatchError, r"lora_A\.weight must be 4×13"),
        ({"reshape_weight": torch.tensor([0, NEW])}, InputError, r"says \[0, 12\], which is the shape of no weight"),
        ({"reshape_weight": torch.tensor([-8, NEW])}, InputError, r"which is the shape of no weight"),
        ({"reshape_weight": torch.tensor([8.0, NEW])}, InputError, r"is F32 2; it is to be the shape of a weight"),
        ({"reshape_weight": torch.tensor([[8, NEW]])}, InputError, r"is I64 1×2; it is to be the shape"),
        ({"lora_A.weight": torch.ones(0), "lora_B.weight": torch.ones(0)}, InputError, r"and no factors for it"),
        ({"lora_magnitude_vector": torch.ones(OUT)}, UnsupportedError, r"reshape_weight stands beside no plain LoRA"),
    ],
)  # fmt: skip
def test_shapes_that_are_refused(
    tmp_path: Path, base: Path, more: dict[str, torch.Tensor], error: type[Exception], match: str
) -> None:
    control = adapter(tmp_path / "control.safetensors", **more)
    before = snapshot(tmp_path)
    with pytest.raises(error, match=match):
        adaptertool.merge(base, [control], tmp_path / "out.safetensors")
    assert snapshot(tmp_path) == before


def test_places_where_it_is_refused(tmp_path: Path, base: Path) -> None:
    control, plain = adapter(tmp_path / "control.safetensors"), tmp_path / "plain.safetensors"
    adapter(plain, wide=OLD, reshape_weight=torch.ones(0))
    name, out = {"x_embedder.weight": torch.randn(OUT, OLD)}, tmp_path / "out.safetensors"
    flux: dict[str, object] = {"_class_name": "FluxTransformer2DModel", "num_layers": 1}
    other = write_checkpoint(tmp_path / "other", name, config=flux | {"in_channels": OLD - 1})
    flux |= {"_class_name": "Flux2Transformer2DModel", "in_channels": OLD}
    early = write_checkpoint(tmp_path / "early", name, config=flux)
    refused: list[tuple[Callable[[], object], type[Exception], str]] = [
        (
            lambda: adaptertool.merge(base, [plain, control], out),
            UnsupportedError,
            "an adapter before it changes; give",
        ),
        (lambda: adaptertool.merge(base, [control, plain], out), MismatchError, r"must be 4×12, but it is F32 4×6"),
        (
            lambda: adaptertool.merge(base, [control, control], out, method="ties", density=0.5),
            UnsupportedError,
            "pads",
        ),
        (lambda: adaptertool.convert(control, out, to="kohya"), UnsupportedError, "which no format but ComfyUI's says"),
        (lambda: adaptertool.truncate(control, out, rank=2), UnsupportedError, "which no format but ComfyUI's says"),
        (lambda: adaptertool.merge(other, [control], out), UnsupportedError, "does not say the size of x_embedder"),
        (lambda: adaptertool.merge(early, [control], out), UnsupportedError, "has no out_channels, which loaders may"),
    ]
    for run, error, match in refused:
        with pytest.raises(error, match=match):
            run()
        assert not out.exists()
