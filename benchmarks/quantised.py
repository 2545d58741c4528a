"""Merges into quantised bases, decoded to bf16, beside a copy of what is written: whole processes, in turn.

python benchmarks/quantised.py [RUNS]

Each base has the same layers as codes of its format, of random bits, and an adapter of rank 16 on all of them. The
figures are for a gigabyte (10⁹) of output.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import COPY, TOOL, WORK, Timing, copying, in_turn, into_page, machine, median, short_of
from safetensors.torch import save_file

FOLDER, OUT = WORK / "quantised", WORK / "out"
LAYERS, ROWS, COLUMNS, RANK = 8, 8192, 4096, 16  # 0.54 GB as bf16
ROOM = 6e9
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
Tensors = dict[str, torch.Tensor]


def bits(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.randint(0, 255, shape, dtype=torch.uint8).view(dtype)


def grouped(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def fp8() -> tuple[Tensors, dict[str, Any]]:
    codes = torch.randn(ROWS, COLUMNS).to(torch.float8_e4m3fn)
    scales = torch.rand(ROWS // 128, COLUMNS // 128)
    return {"weight": codes, "weight_scale_inv": scales}, {"quant_method": "fp8", "weight_block_size": [128, 128]}


def int4() -> tuple[Tensors, dict[str, Any]]:
    tensors = {
        "weight_packed": bits(ROWS, COLUMNS // 2, dtype=torch.int32), "weight_shape": torch.tensor([ROWS, COLUMNS]),
        "weight_scale": torch.rand(ROWS, COLUMNS // 32).bfloat16(),
    }  # fmt: skip
    return tensors, grouped(num_bits=4, type="int", symmetric=True, group_size=32)


def mxfp4() -> tuple[Tensors, dict[str, Any]]:
    scales = torch.randint(110, 125, (ROWS, COLUMNS // 32), dtype=torch.uint8)
    return {"weight_packed": bits(ROWS, COLUMNS // 2), "weight_scale": scales}, grouped(num_bits=4, type="float")


def nf4() -> tuple[Tensors, dict[str, Any]]:
    kind = ".quant_state.bitsandbytes__nf4"
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [ROWS, COLUMNS]}
    tensors = {
        "weight": bits(ROWS * COLUMNS // 2, 1), "weight.absmax": torch.rand(ROWS * COLUMNS // 64),
        "weight.quant_map": torch.linspace(-1, 1, 16),
        f"weight{kind}": torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8),
    }  # fmt: skip
    return tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True}


FORMATS: dict[str, Callable[[], tuple[Tensors, dict[str, Any]]]] = {
    "FP8, blocks of 128×128": fp8, "INT4, groups of 32": int4, "MXFP4": mxfp4, "NF4": nf4,
}  # fmt: skip


def modules() -> list[str]:
    return [f"model.layers.{number}.mlp.up_proj" for number in range(LAYERS)]


def make() -> dict[str, Path]:
    """The bases, and the adapter."""
    torch.manual_seed(0)
    found = {}
    for number, (name, one) in enumerate(FORMATS.items()):
        folder = FOLDER / f"base-{number}"
        folder.mkdir(parents=True)
        tensors, said = one()
        named = {f"{module}.{key}": value.clone() for module in modules() for key, value in tensors.items()}
        save_file(named, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": said}))
        found[name] = folder
    factors = {}
    for module in modules():
        factors[f"base_model.model.{module}.lora_A.weight"] = (torch.randn(RANK, COLUMNS) / 64).bfloat16()
        factors[f"base_model.model.{module}.lora_B.weight"] = (torch.randn(ROWS, RANK) / 64).bfloat16()
    (FOLDER / "adapter").mkdir()
    save_file(factors, FOLDER / "adapter" / "adapter_model.safetensors")
    (FOLDER / "adapter" / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 32})
    )
    return found


def row(name: str, done: list[Timing], copied: list[Timing]) -> str:
    size = LAYERS * ROWS * COLUMNS * 2 / 1e9
    wall, cpu = (median([getattr(one, field) for one in done]) / size for field in ("wall", "cpu"))
    beside = median([one.wall / other.wall for one, other in zip(done, copied, strict=True)])
    return f"| {name} | {wall:.2f} | {cpu:.2f} | {beside:.2f} |"


def main(runs: int) -> None:
    if missing := short_of(ROOM):
        return into_page("quantised", missing)
    shutil.rmtree(FOLDER, ignore_errors=True)
    bases, adapter = make(), FOLDER / "adapter"
    first, *_ = bases.values()
    dense = FOLDER / "dense"
    commands: dict[str, list[object]] = {COPY: copying(dense, OUT)}
    decode: list[object] = ["--dtype", "bf16", "-o"]
    in_turn({"dense": [*TOOL, "merge", first, adapter, *decode, dense]}, 0)
    for name, base in bases.items():
        commands[f"{name}, decoded"] = [*TOOL, "merge", base, adapter, "-w", "0", *decode, OUT]
        commands[f"{name}, decoded and merged"] = [*TOOL, "merge", base, adapter, *decode, OUT]
    commands["FP8, merged as FP8 (`--quantise keep`)"] = [
        *TOOL,
        "merge",
        first,
        adapter,
        "--quantise",
        "keep",
        "-o",
        OUT,
    ]
    timings = in_turn(commands, runs)
    shutil.rmtree(FOLDER)
    shutil.rmtree(OUT, ignore_errors=True)
    lines = [
        f"{machine()}; median of {runs} runs in turn, for each GB of output; `make bench`",
        "",
        "| `merge --dtype bf16` | wall s | CPU s | wall, copy = 1 |",
        "| --- | --- | --- | --- |",
    ]
    lines += [row(name, done, timings[COPY]) for name, done in timings.items()]
    return into_page("quantised", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
