"""Fixed recipes over the fixtures, and the hashes of what they make.

    python tests/recipes.py FOLDER > tests/recorded.json    records them anew, in a new FOLDER: justify it
    python tests/recipes.py FOLDER INPUTS                   with what `recipe_inputs.make_inputs` has made

Recipes whose last bits may depend on the processor are not among them: --precision fast, slerp, and what an SVD makes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import blake3

import adaptertool

FIXTURES = Path(__file__).parent.parent / "fixtures"
LORA, RSLORA, TUNED = (FIXTURES / name for name in ("lora", "rslora", "tuned"))


def recipes(inputs: Path) -> Mapping[str, Callable[[Path], object]]:
    """name -> what writes its output to a path"""
    base = FIXTURES / "base"
    half, single, tuned, narrow, dora = (inputs / name for name in ("f16", "f32", "tuned-f32", "narrow", "dora"))
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


def hashes(folder: Path, inputs: Path) -> dict[str, dict[str, str]]:
    """The BLAKE3 hashes of the files of tensors that each recipe makes, in `folder`."""
    found = {}
    for number, (name, make) in enumerate(recipes(inputs).items()):
        out = folder / f"out-{number}"
        make(out)
        found[name] = {
            path.relative_to(out).as_posix(): blake3.blake3(path.read_bytes()).hexdigest()[:32]
            for path in sorted(out.rglob("*.safetensors"))
        }
    return found


if __name__ == "__main__":
    folder, *given = map(Path, sys.argv[1:])
    if not given:
        from recipe_inputs import make_inputs  # torch is loaded where it is needed alone

        given = [make_inputs(folder / "inputs")]
    print(json.dumps(hashes(folder, *given), indent=1))
