"""The table of docs/quantised.md: how much of a change survives where a quantised base stays in its own format.

    python tests/survival.py    writes the table anew (make survival)

Gaussian weights with a few columns that are eight times as large, quantised by the rules of the formats' own tools;
LoRA of rank 16 whose change is so large beside the weights.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT, write_adapter, write_checkpoint

from adaptertool.reports.run import RunReport
from adaptertool.tasks.run import merge

PAGE = ROOT / "docs" / "quantised.md"
BEGIN, END = "<!-- made by `make survival` -->", "<!-- end -->"
SIZES = (0.003, 0.01, 0.03, 0.1)
ROWS, COLUMNS, RANK = 512, 512, 16
X = "model.layers.0.mlp.up_proj"
F8, U8, I8, I32, BF16 = torch.float8_e4m3fn, torch.uint8, torch.int8, torch.int32, torch.bfloat16
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6.0])
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
Tensors = dict[str, torch.Tensor]
Stored = tuple[Tensors, dict[str, Any]]


def weights() -> torch.Tensor:
    torch.manual_seed(0)
    weight = torch.randn(ROWS, COLUMNS) * 0.02
    weight[:, ::101] *= 8
    return weight


def grouped(weight: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    groups = weight.reshape(ROWS, -1, size)
    return groups, groups.abs().amax(2, keepdim=True)


def said(**args: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": args}}}


def fp8_blocks(weight: torch.Tensor) -> Stored:
    blocks = weight.reshape(ROWS // 128, 128, COLUMNS // 128, 128)
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).reshape(ROWS, COLUMNS).to(F8)
    config = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    return {f"{X}.weight": codes, f"{X}.weight_scale_inv": scale}, config


def fp8_rows(weight: torch.Tensor) -> Stored:
    scale = (weight.abs().amax(1, keepdim=True) / 448).to(BF16)
    codes = (weight / scale.float()).to(F8)
    return {f"{X}.weight": codes, f"{X}.weight_scale": scale}, said(num_bits=8, type="float", strategy="channel")


def mxfp8(weight: torch.Tensor) -> Stored:
    groups, largest = grouped(weight, 32)
    exponent = (largest / 448).log2().ceil()
    codes = (groups / 2**exponent).reshape(ROWS, COLUMNS).to(F8)
    return {f"{X}.weight": codes, f"{X}.weight_scale": (exponent[..., 0] + 127).to(U8)}, said(
        num_bits=8, type="float", group_size=32
    )


def int8_rows(weight: torch.Tensor) -> Stored:
    scale = (weight.abs().amax(1, keepdim=True) / 127.5).to(BF16)
    codes = (weight / scale.float()).round().clamp(-128, 127).to(I8)
    return {f"{X}.weight": codes, f"{X}.weight_scale": scale}, said(num_bits=8, type="int", symmetric=True)


def int4(size: int) -> Callable[[torch.Tensor], Stored]:
    def stored(weight: torch.Tensor) -> Stored:
        groups, largest = grouped(weight, size)
        scale = (largest / 7.5).to(BF16)
        codes = (groups / scale.float()).round().clamp(-8, 7).reshape(ROWS, COLUMNS).long() + 8
        words = (codes.reshape(ROWS, -1, 8) << (4 * torch.arange(8))).sum(2)
        words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(I32)
        tensors = {f"{X}.weight_packed": words, f"{X}.weight_scale": scale[..., 0].contiguous()}
        config = said(num_bits=4, type="int", symmetric=True, group_size=size, strategy="group")
        return tensors | {f"{X}.weight_shape": torch.tensor([ROWS, COLUMNS])}, config

    return stored


def nearest_fp4(values: torch.Tensor) -> torch.Tensor:
    """Two codes of E2M1 a byte; ties to even."""
    middles = (E2M1[1:] + E2M1[:-1]) / 2
    low, high = torch.bucketize(values.abs(), middles), torch.bucketize(values.abs(), middles, right=True)
    codes = torch.where(low % 2 == 0, low, high) + 8 * (values < 0)
    codes = codes.reshape(ROWS, -1)
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(U8)


def mxfp4(rule: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], Stored]:
    def stored(weight: torch.Tensor) -> Stored:
        groups, largest = grouped(weight, 32)
        exponent = rule(largest)
        tensors = {f"{X}.weight_packed": nearest_fp4(groups / 2**exponent)}
        return tensors | {f"{X}.weight_scale": (exponent[..., 0] + 127).to(U8)}, said(num_bits=4, type="float")

    return stored


def nvfp4(weight: torch.Tensor) -> Stored:
    groups, largest = grouped(weight, 16)
    whole = 448 * 6 / weight.abs().max().reshape(1)
    scale = (largest / 6 * whole).to(F8)
    tensors = {f"{X}.weight_packed": nearest_fp4(groups / (scale.float() / whole))}
    return tensors | {f"{X}.weight_scale": scale[..., 0].contiguous(), f"{X}.weight_global_scale": whole}, said(
        num_bits=4, type="float"
    )


FORMATS: dict[str, Callable[[torch.Tensor], Stored]] = {
    "FP8, blocks of 128×128": fp8_blocks,
    "FP8, a scale for each row": fp8_rows,
    "MXFP8": mxfp8,
    "INT8, a scale for each row": int8_rows,
    "NVFP4": nvfp4,
    "MXFP4 (scales rounded down)": mxfp4(lambda largest: largest.log2().floor() - 2),
    "MXFP4 (scales of compressed-tensors)": mxfp4(lambda largest: (largest / 7).log2().ceil()),
    "INT4, groups of 32": int4(32),
    "INT4, groups of 128": int4(128),
}


def survivals(folder: Path, name: str, sizes: Collection[float] = SIZES, dtype: str | None = None) -> list[RunReport]:
    """The reports of merges of changes of these sizes."""
    weight = weights()
    tensors, config = FORMATS[name](weight)
    base = write_checkpoint(folder / "base", tensors, config=CONFIG | {"quantization_config": config})
    reports = []
    for number, size in enumerate(sizes):
        torch.manual_seed(1)
        a, b = torch.randn(RANK, COLUMNS), torch.randn(ROWS, RANK)
        b *= size * weight.norm() / (b @ a).norm()
        factors = {f"{X}.lora_A.weight": a, f"{X}.lora_B.weight": b}
        adapter = write_adapter(folder / f"adapter-{number}", factors, r=RANK, lora_alpha=RANK)
        out = folder / f"out-{number}"
        reports.append(merge(base, [adapter], out, dtype=dtype, quantise=None if dtype else "keep"))
    return reports


def table() -> str:
    heads = [f"Δ {size:.1%} of W" for size in SIZES]
    lines = ["| stored as | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
    with tempfile.TemporaryDirectory() as folder:
        shares = [report.survival[0] for report in survivals(Path(folder), next(iter(FORMATS)), dtype="bf16")]
        lines.append("| bf16 (--dtype bf16) | " + " | ".join(f"{share:.2f}" for share in shares) + " |")
    for name in FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            reports = [report.kept[-1] for report in survivals(Path(folder), name)]
        cells = [f"{one.survival:.2f} ({one.noise:.2f})" for one in reports]
        print(name, cells, [one.rescaled / one.blocks for one in reports], file=sys.stderr)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def page(text: str) -> str:
    return re.sub(f"(?s){re.escape(BEGIN)}.*{re.escape(END)}", f"{BEGIN}\n\n{table()}\n\n{END}", text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(page(PAGE.read_text()))
