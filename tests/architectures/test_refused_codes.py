"""Codes that are not decoded, and configs and tensors that do not agree: each refused by name, with the way out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, lora_factors, write_adapter, write_checkpoint
from quantised_bases import BF16, F32, FORMATS, I8, I32, U8, Q, X, drawn, e4m3, scales

import adaptertool as library
from adaptertool.errors import InputError, MismatchError, UnsupportedError

PLAIN = {f"{Q}.weight": torch.ones(8, 6).bfloat16()}
W, S = f"{X}.weight", f"{X}.weight_scale"
FP8: dict[str, Any] = {"quant_method": "fp8", "weight_block_size": [16, 32]}
CT: dict[str, Any] = {"quant_method": "compressed-tensors"}
BNB, GPTQ, AWQ = ({"quant_method": name} for name in ("bitsandbytes", "gptq", "awq"))

Case = tuple[dict[str, Any] | None, Tensors, type[InputError], str]


def state(**fields: Any) -> torch.Tensor:
    said = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [4, 32]} | fields
    return torch.frombuffer(bytearray(json.dumps(said).encode()), dtype=U8)


def of(name: str, drop: tuple[str, ...] = (), **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensors of a format, without some, and with others in their place; by what follows the module."""
    found = {key: value for key, value in FORMATS[name]().tensors.items() if key.removeprefix(f"{X}.") not in drop}
    return found | {f"{X}.{key}": value for key, value in more.items()}


NF4 = {W: drawn(64, 1), f"{W}.absmax": scales(2), f"{W}.quant_map": scales(16)}
STATE = f"{W}.quant_state.bitsandbytes__nf4"
MINE = {"bits": 4, "group_size": 32}
REFUSED: dict[str, Callable[[], Case]] = {
    "HQQ": lambda: ({"quant_method": "hqq"}, {f"{X}.W_q": drawn(4, 4)}, UnsupportedError, "hqq is not decoded"),
    "torchao": lambda: ({"quant_method": "torchao"}, {f"{X}._weight_qdata": drawn(4, 4)}, UnsupportedError, "torchao"),
    "AQLM": lambda: ({"quant_method": "aqlm"}, {f"{X}.codes": drawn(4, 4)}, UnsupportedError, "aqlm"),
    "QuIP": lambda: ({"quant_method": "quip"}, {f"{X}.Qidxs": drawn(4, 4)}, UnsupportedError, "quip"),
    "EXL3": lambda: ({"quant_method": "exl3"}, {f"{X}.trellis": drawn(4, 4)}, UnsupportedError, "exl3"),
    "codes of nobody": lambda: (FP8, of("FP8, blocks", codes=drawn(4, 4)), UnsupportedError, "looks like codes"),
    "a scale alone": lambda: (None, PLAIN | {f"{Q}.weight_scale": scales(1)}, UnsupportedError, "looks like codes"),
    "no codes": lambda: (FP8, {}, MismatchError, "no weight is stored as codes"),
    "codes, and no config": lambda: (None, of("FP8, blocks"), MismatchError, "has no quantization_config"),
    "codes of another method": lambda: (AWQ, of("FP8, blocks"), MismatchError, "says quant_method awq"),
    "FP8 without a scale": lambda: (FP8, {W: e4m3(4, 4)}, MismatchError, "without a scale"),
    "FP8 with two": lambda: (
        FP8, {W: e4m3(4, 4), S: scales(1), f"{W}_scale_inv": scales(1)}, UnsupportedError, "which"),
    "FP8, another grid": lambda: (FP8, {W: e4m3(20, 72), S: scales(2, 2)}, MismatchError, "blocks of 16×32"),
    "FP8, no blocks": lambda: (
        {"quant_method": "fp8"}, {W: e4m3(20, 72), S: scales(2, 3)}, MismatchError, "no size of"),
    "FP8, a vector": lambda: (FP8, {W: e4m3(20), S: scales(1)}, MismatchError, "is a matrix"),
    "FP8, scale of codes": lambda: (FP8, {W: e4m3(4, 4), S: drawn(1, dtype=I32)}, UnsupportedError, "stored as I32"),
    "FP4 in bytes of I8": lambda: (FP8, {W: drawn(4, 4, dtype=I8), f"{X}.scale": scales(1)}, UnsupportedError, "fp4"),
    "INT8 without a scale": lambda: (CT, {W: drawn(4, 4, dtype=I8)}, MismatchError, "without a scale"),
    "INT8 of a GPU": lambda: (BNB, of("INT8 of bitsandbytes", weight_format=torch.tensor(2, dtype=U8)),
                              UnsupportedError, "laid out for a GPU"),
    "INT8, other sizes": lambda: (BNB, of("INT8 of bitsandbytes", SCB=scales(3)), MismatchError, "SCB is F32 3"),
    "INT4 without a scale": lambda: (CT, of("INT4", ("weight_scale",)), MismatchError, "is not there"),
    "INT4 without a shape": lambda: (CT, of("INT4", ("weight_shape",)), MismatchError, "weight_shape is not there"),
    "INT4, a wrong shape": lambda: (CT, of("INT4", weight_shape=torch.tensor([21, -1])), MismatchError, "no shape"),
    "INT4 of unknown bits": lambda: (CT, of("INT2", weight_shape=torch.tensor([21, 4])), UnsupportedError, "how many"),
    "INT4, other zeros": lambda: (FORMATS["INT4, zeros"]().config, of("INT4, zeros", weight_zero_point=drawn(
        3, 9, dtype=I32)), MismatchError, "zero_point is I32 3×9"),
    "INT4, zeros are missing": lambda: (FORMATS["INT4, zeros"]().config, of("INT4, zeros", ("weight_zero_point",)),
                                        MismatchError, "symmetric: false"),
    "NVFP4 without its scale": lambda: (CT, of("NVFP4", ("weight_global_scale",)), MismatchError, "not there"),
    "NVFP4_AWQ": lambda: ({"quant_method": "modelopt"}, of("NVFP4 of ModelOpt", pre_quant_scale=scales(64)),
                          UnsupportedError, "NVFP4_AWQ"),
    "MXFP4, other scales": lambda: (CT, of("MXFP4", weight_scale=drawn(20, 4)), MismatchError, "32 numbers"),
    "NF4, not JSON": lambda: (BNB, NF4 | {STATE: drawn(9)}, MismatchError, "JSON"),
    "NF4, of another shape": lambda: (BNB, NF4 | {STATE: state(shape=[4, 33])}, MismatchError, "132 numbers"),
    "NF4, no shape": lambda: (BNB, NF4 | {STATE: state(shape=[-1, 0])}, UnsupportedError, "not known"),
    "NF4, of other blocks": lambda: (BNB, NF4 | {STATE: state(blocksize=32)}, MismatchError, "4 blocks of 32"),
    "NF4, no table": lambda: (
        BNB, {W: drawn(64, 1), f"{W}.absmax": scales(2), STATE: state()}, MismatchError, "not there"),
    "GPTQ of marlin": lambda: (GPTQ | MINE | {"checkpoint_format": "marlin"}, of("GPTQ"), UnsupportedError, "marlin"),
    "GPTQ of 3 bits": lambda: (GPTQ | MINE | {"bits": 3}, of("GPTQ"), UnsupportedError, "bits 3"),
    "GPTQ, other groups": lambda: (GPTQ | MINE | {"group_size": 16}, of("GPTQ"), MismatchError, "group_size 16"),
    "AWQ of another layout": lambda: (AWQ | MINE | {"version": "gemv"}, of("AWQ"), UnsupportedError, "gemv"),
    "rotations": lambda: (CT | {"transform_config": {"a": 1}}, of("INT4"), UnsupportedError, "transform_config"),
    "zeros left out": lambda: (CT | {"sparsity_config": {"format": "sparse-24-bitmask"}}, of("INT8"), UnsupportedError,
                               "sparse-24-bitmask"),
    "two names": lambda: (
        FORMATS["INT4"]().config, of("INT4", weight=torch.ones(21, 70).to(BF16)), UnsupportedError, "stored twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    config, tensors, error, words = REFUSED[name]()
    more = {} if config is None else {"quantization_config": config}
    base = write_checkpoint(tmp_path / "base", PLAIN | tensors, config={"model_type": "llama"} | more)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))
    with pytest.raises(error, match=words):
        library.prepare_merge(base, [adapter], dtype="bf16")


def test_groups_that_are_not_there(tmp_path: Path) -> None:
    """What only the numbers tell: refused in the run, and nothing is published."""
    index = {"weight_g_idx": torch.full((70,), 7).to(I32)}
    wrong: dict[str, tuple[str, dict[str, torch.Tensor], str]] = {
        "INT4, ordered": ("INT4, ordered", index, "names the group 7 of 3"),
        "GPTQ": ("GPTQ", {"g_idx": torch.full((64,), -2).to(I32)}, "names the group -2 of 2"),
        "NVFP4": ("NVFP4", {"weight_global_scale": torch.zeros(1)}, "and no scale"),
        "MXFP4": ("MXFP4", {"weight_scale": torch.full((20, 3), 255, dtype=U8)}, "holds nan"),
        "FP8, blocks": ("FP8, blocks", {"weight": torch.full((20, 72), -1, dtype=I8).view(torch.float8_e4m3fn)}, "nan"),
    }  # fmt: skip
    adapter = write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))
    for name, (made, more, words) in wrong.items():
        quantised = FORMATS[made]()
        config = {"model_type": "llama", "quantization_config": quantised.config}
        base = write_checkpoint(tmp_path / name, PLAIN | of(made, (), **more), config=config)
        with pytest.raises(InputError, match=words):
            library.merge(base, [adapter], tmp_path / "out", dtype="bf16")
        assert not (tmp_path / "out").exists()


def test_a_file_without_a_config(tmp_path: Path) -> None:
    """Then the tensors alone tell, where they can."""
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 72)))
    for name, works in (("FP8, rows", True), ("NF4", True), ("FP8, blocks", False)):
        base = write_checkpoint(tmp_path / name, PLAIN | dict(FORMATS[name]().tensors))
        (base / "config.json").unlink()
        if works:
            library.merge(base / "model.safetensors", [adapter], tmp_path / f"{name}.safetensors", dtype="bf16")
        else:
            with pytest.raises(MismatchError, match="says no size of blocks"):
                library.prepare_merge(base / "model.safetensors", [adapter], dtype="bf16")


def test_without_dtype_the_way_out_is_named(tmp_path: Path) -> None:
    made = FORMATS["NF4"]()
    config = {"model_type": "llama", "quantization_config": made.config}
    base = write_checkpoint(tmp_path / "base", PLAIN | dict(made.tensors), config=config)
    adapter = write_adapter(tmp_path / "adapter", lora_factors(X, (20, 72)))
    with pytest.raises(UnsupportedError, match=r"bitsandbytes.*--dtype bf16"):
        library.prepare_merge(base, [adapter])
    assert F32 in {tensor.dtype for tensor in made.tensors.values()}
