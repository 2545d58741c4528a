"""Fixed recipes over the fixtures, and the hashes of what they make.

    python tests/recipes.py FOLDER > tests/recorded.json    records them anew, in a new FOLDER: justify it

Recipes whose last bits may depend on the processor are not among them: --precision fast, slerp, and what an SVD makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import blake3
import torch
from safetensors.torch import load_file, save_file

import adaptertool

FIXTURES = Path(__file__).parent.parent / "fixtures"
LORA, RSLORA, TUNED = (FIXTURES / name for name in ("lora", "rslora", "tuned"))


def checkpoint(folder: Path, source: Path, dtype: torch.dtype) -> Path:
    """A fixture as one file, cast: by a rounding that every processor makes alike."""
    folder.mkdir()
    tensors = {name: t.to(dtype) for file in source.glob("*.safetensors") for name, t in load_file(file).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


def adapter(folder: Path, dtype: torch.dtype, *, dora: bool = False) -> Path:
    """The LoRA of the fixtures in another dtype, or with magnitudes that are small fractions."""
    folder.mkdir()
    tensors = {name: t.to(dtype) for name, t in load_file(LORA / "adapter_model.safetensors").items()}
    config = json.loads((LORA / "adapter_config.json").read_text()) | {"use_dora": dora}
    for name, factor in list(tensors.items()) if dora else ():
        if name.endswith(".lora_B.weight"):
            magnitude = 0.5 + torch.arange(factor.shape[0]) % 7 / 8
            tensors[name.replace(".lora_B.weight", ".lora_magnitude_vector")] = magnitude.to(dtype)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def recipes(folder: Path) -> Mapping[str, Callable[[Path], object]]:
    """name -> what writes its output to a path; their inputs are made in `folder`."""
    base = FIXTURES / "base"
    dtypes = (("f16", torch.float16), ("f32", torch.float32))
    half, single = (checkpoint(folder / name, base, dtype) for name, dtype in dtypes)
    tuned = checkpoint(folder / "tuned-f32", TUNED, torch.float32)
    narrow, dora = adapter(folder / "narrow", torch.bfloat16), adapter(folder / "dora", torch.float32, dora=True)
    merge, wise = adaptertool.merge, adaptertool.wise
    return {
        "lora": lambda out: merge(base, [LORA], out),
        "lora, bf16 factors": lambda out: merge(base, [narrow], out, weights=["0.3"]),
        "lora on f16": lambda out: merge(half, [LORA], out),
        "lora on f32": lambda out: merge(single, [LORA], out),
        "bf16 factors on f32": lambda out: merge(single, [narrow], out),
        "two adapters": lambda out: merge(base, [LORA, RSLORA], out, weights=["0.7", "-0.2"]),
        "dora": lambda out: merge(base, [dora], out),
        "dora on f32": lambda out: merge(single, [dora], out, weights=["0.9"]),
        "dora, then lora": lambda out: merge(base, [dora, LORA], out),
        "dora and lora, mixed": lambda out: merge(half, [dora, LORA], out, compose="mixed"),
        "ties": lambda out: merge(base, [LORA, TUNED], out, method="ties", density="0.3"),
        "dare": lambda out: merge(base, [LORA, RSLORA], out, method="dare_linear", density="0.5", seed=3),
        "wise, tuned": lambda out: wise(base, TUNED, out, "0,0.1,0.5,1"),
        "wise, tuned on f32": lambda out: wise(single, tuned, out, "0.3"),
        "wise, lora": lambda out: wise(base, LORA, out, "0.25"),
        "wise, dora": lambda out: wise(half, dora, out, "0.5"),
        "wise, lora as adapter": lambda out: wise(base, LORA, out, "0.3", as_adapter=True),
        "sum": lambda out: adaptertool.sum_adapters([LORA, RSLORA], out, weights=["0.5", "1"]),
    }  # fmt: skip


def hashes(folder: Path) -> dict[str, dict[str, str]]:
    """The BLAKE3 hashes of the files of tensors that each recipe makes."""
    found = {}
    for number, (name, make) in enumerate(recipes(folder).items()):
        out = folder / f"out-{number}"
        make(out)
        found[name] = {
            path.relative_to(out).as_posix(): blake3.blake3(path.read_bytes()).hexdigest()[:32]
            for path in sorted(out.rglob("*.safetensors"))
        }
    return found


if __name__ == "__main__":
    print(json.dumps(hashes(Path(sys.argv[1])), indent=1))
