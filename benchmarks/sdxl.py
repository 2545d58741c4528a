"""A file of kohya's in the size of those for SDXL onto SDXL as one file, beside a copy: whole processes, in turn.

python benchmarks/sdxl.py [RUNS]

The base has the tensors of the U-Net and of the larger text encoder by the names of the original repository, in fp16
(6.5 GB); the adapter every linear layer of the U-Net's transformers, at rank 64, with an alpha for each (345 MB).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator

from checkpoints import Shapes, normal, write
from measure import TOOL, WORK, figures, in_turn, into_page, machine, ratio, remove, short_of

FOLDER = WORK / "sdxl"
BASE, ADAPTER = FOLDER / "sdxl.safetensors", FOLDER / "lora.safetensors"
MODEL, RANK, CONTEXT, TIME = "model.diffusion_model.", 64, 2048, 1280
COPY = "`cp` and fsync"
ROOM = 30e9


def resnet(name: str, inner: int, outer: int) -> Shapes:
    found = {
        f"{name}.in_layers.2.weight": [outer, inner, 3, 3],
        f"{name}.emb_layers.1.weight": [outer, TIME],
        f"{name}.out_layers.3.weight": [outer, outer, 3, 3],
    }
    return found | ({f"{name}.skip_connection.weight": [outer, inner, 1, 1]} if inner != outer else {})


def transformer(name: str, width: int, depth: int) -> Shapes:
    found: Shapes = {f"{name}.proj_in.weight": [width, width], f"{name}.proj_out.weight": [width, width]}
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, inner in (("attn1", width), ("attn2", CONTEXT)):
            found |= {f"{block}.{attention}.{end}.weight": [width, width] for end in ("to_q", "to_out.0")}
            found |= {f"{block}.{attention}.{end}.weight": [width, inner] for end in ("to_k", "to_v")}
        found |= {f"{block}.ff.net.0.proj.weight": [8 * width, width], f"{block}.ff.net.2.weight": [width, 4 * width]}
    return found


def unet() -> Shapes:
    """The tensors of SDXL's U-Net, but for biases and norms."""
    found: Shapes = {"input_blocks.0.0.weight": [320, 4, 3, 3], "out.2.weight": [4, 320, 3, 3]}
    for number, inner, outer, depth in (
        (1, 320, 320, 0), (2, 320, 320, 0), (4, 320, 640, 2), (5, 640, 640, 2), (7, 640, 1280, 10), (8, 1280, 1280, 10)
    ):  # fmt: skip
        found |= resnet(f"input_blocks.{number}.0", inner, outer)
        found |= transformer(f"input_blocks.{number}.1", outer, depth) if depth else {}
    found |= {f"input_blocks.{number}.0.op.weight": [width, width, 3, 3] for number, width in ((3, 320), (6, 640))}
    found |= resnet("middle_block.0", 1280, 1280) | transformer("middle_block.1", 1280, 10)
    found |= resnet("middle_block.2", 1280, 1280)
    for number, (inner, outer, depth) in enumerate(
        [(2560, 1280, 10), (2560, 1280, 10), (1920, 1280, 10), (1920, 640, 2), (1280, 640, 2), (960, 640, 2),
         (960, 320, 0), (640, 320, 0), (640, 320, 0)]
    ):  # fmt: skip
        found |= resnet(f"output_blocks.{number}.0", inner, outer)
        found |= transformer(f"output_blocks.{number}.1", outer, depth) if depth else {}
    return found | {f"output_blocks.{n}.2.conv.weight": [w, w, 3, 3] for n, w in ((2, 1280), (5, 640))}


def text_encoder() -> Shapes:
    """The tensors of OpenCLIP's bigG, but for biases and norms."""
    found: Shapes = {"token_embedding.weight": [49408, 1280], "text_projection": [1280, 1280]}
    for number in range(32):
        block = f"transformer.resblocks.{number}"
        found |= {f"{block}.attn.in_proj_weight": [3840, 1280], f"{block}.attn.out_proj.weight": [1280, 1280]}
        found |= {f"{block}.mlp.c_fc.weight": [5120, 1280], f"{block}.mlp.c_proj.weight": [1280, 5120]}
    return found


def factors(shapes: Shapes) -> Iterator[tuple[str, list[int]]]:
    for name, shape in shapes.items():
        if len(shape) == 2 and ".1." in name:  # of transformers; those of resnets are in place 0
            module = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            yield f"{module}.lora_down.weight", [RANK, shape[1]]
            yield f"{module}.lora_up.weight", [shape[0], RANK]
            yield f"{module}.alpha", []


def make() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    own = {MODEL + name: shape for name, shape in unet().items()}
    own |= {f"conditioner.embedders.1.model.{name}": shape for name, shape in text_encoder().items()}
    write(BASE, own, "F16", normal("F16", 0.02))
    write(ADAPTER, dict(factors(unet())), "F16", normal("F16", 0.02, seed=1).abs().clamp(min=1e-3))


OUT = WORK / "out.safetensors"
RUNS: dict[str, list[object]] = {
    COPY: ["bash", "-c", 'cp "$1" "$2" && sync "$2"', "bash", BASE, OUT],
    "`merge`": [*TOOL, "merge", BASE, ADAPTER, "-o", OUT],
    "`convert --to diffusers`": [*TOOL, "convert", ADAPTER, "--to", "diffusers", "--base", BASE, "-o", OUT],
    "`truncate --rank 16`": [*TOOL, "truncate", ADAPTER, "--rank", "16", "-o", OUT],
    "`truncate --ratio 10`": [*TOOL, "truncate", ADAPTER, "--ratio", "10", "-o", OUT],
}


def main(runs: int) -> None:
    if missing := short_of(ROOM):
        return into_page("sdxl", missing)
    make()
    timings = in_turn(RUNS, runs)
    remove(OUT)
    shutil.rmtree(FOLDER)
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        "| SDXL in one file of 6.5 GB, adapter of 345 MB | wall s | CPU s | peak memory | wall, copy = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    lines += [f"| {name} | {figures(done)} | {ratio(done, timings[COPY]):.2f} |" for name, done in timings.items()]
    return into_page("sdxl", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
