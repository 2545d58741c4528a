"""What exactness costs on inputs built to hurt, which leave as many elements as possible open after each stage.

    python benchmarks/hurting.py [RUNS]

One linear layer of 2048 x 2048: CPU time of a merge by one thread, exact and with `--precision fast`, in turn; the
least of all runs. Middles are of two stored values. All factors have two columns more, whose products cancel, with all
bits.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import WORK, into_page, machine, scratch
from safetensors.torch import save_file

import adaptertool

SIZE = 2048
FOLDER = WORK / "hurting"
BITS = {"bf16": 8, "fp16": 11, "fp32": 24, "fp64": 53}
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64}
Adapter = tuple[torch.Tensor, ...]  # A and B, and a magnitude
Input = tuple[torch.Tensor, list[Adapter]]


def uniform(*shape: int) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64)


def column(number: float) -> torch.Tensor:
    """(out, 1): the number, and its negative, at random."""
    return torch.where(uniform(SIZE, 1) < 0.5, -number, number)


def row(number: float) -> torch.Tensor:
    return torch.full((1, SIZE), number, dtype=torch.float64)


def factors(wide: str, *terms: tuple[torch.Tensor, torch.Tensor]) -> Adapter:
    """A and B of the terms, each a column and a row, and of two more that cancel."""
    b, a = uniform(SIZE, 1).to(DTYPES[wide]), uniform(1, SIZE).to(DTYPES[wide])
    left = [b, -b, *(one.to(b.dtype) for one, _ in terms)]
    return torch.cat([a, a, *(one.to(a.dtype) for _, one in terms)]), torch.cat(left, 1)


def weights(dtype: str, top: float = 1.0) -> torch.Tensor:
    """From `top` to twice that."""
    return (top * (1 + 0.9 * uniform(SIZE, SIZE))).to(DTYPES[dtype])


def middles(dtype: str, wide: str, beside: int | None = None, top: float = 1.0) -> Input:
    """Every element on a middle, or next to it, by 2^beside."""
    terms = [(column(top**0.5), row(top**0.5 * 2.0 ** -BITS[dtype]))]
    if beside is not None:
        terms.append((column(2.0 ** (beside // 2)), row(2.0 ** (beside // 2))))
    return weights(dtype, top), [factors(wide, *terms)]


def subnormal(dtype: str) -> Input:
    """Middles of the smallest numbers."""
    smallest = torch.finfo(DTYPES[dtype]).smallest_normal * 2.0 ** (1 - BITS[dtype])
    base = (torch.floor(100 * uniform(SIZE, SIZE)) * smallest).to(DTYPES[dtype])
    a, b = factors("fp32", (column(smallest * 2.0**69), row(2.0**-70)))
    b[:, :2] *= 2.0**-60
    return base, [(a, b)]


def cancelled(dtype: str, wide: str, power: int) -> Input:
    """The adapter takes the base away, and leaves 2^power of it, with all bits of a product."""
    one = (1 + uniform(1, SIZE)).to(DTYPES[dtype]).double()
    half = 2.0 ** (power // 2)
    terms = (torch.ones(SIZE, 1), -one), (half * (1 + uniform(SIZE, 1)), half * (1 + uniform(1, SIZE)))
    return one.expand(SIZE, SIZE).to(DTYPES[dtype]).contiguous(), [factors(wide, *terms)]


def apart(dtype: str) -> Input:
    """Products of numbers that are 2^100 apart."""
    terms = (column(2.0**50), row(2.0**-50)), (column(2.0**-50), row(2.0**50) * (1 + uniform(1, SIZE)))
    return weights(dtype), [factors("fp32", *terms)]


def dora(dtype: str, wide: str, count: int = 1) -> Input:
    """Rows of 1 and 3, whose norms are powers of two, and magnitudes that three times make middles of."""
    threes = uniform(SIZE, SIZE).argsort(1) < (2**14 - SIZE) // 8  # so that the squares of a row add up to 2^14
    base = torch.where(threes, 3.0, 1.0).to(DTYPES[dtype])
    bits = BITS[dtype]
    last = 2.0 ** (bits - 1) + 2 * torch.floor(2.0 ** (bits - 3) * uniform(SIZE)) + 1
    lengths = [*[torch.full((SIZE,), 2.0**7)] * (count - 1), last]
    return base, [(*factors(wide), length.to(DTYPES[wide])) for length in lengths]


CASES: dict[str, tuple[Callable[[], Input], dict[str, bool]]] = {}  # how to make it, and how to write it
for name in ("bf16", "fp16", "fp32"):
    CASES[f"middles of {name}"] = partial(middles, name, "fp32"), {}
    CASES[f"2^-60 beside middles of {name}"] = partial(middles, name, "fp32", -60), {}
CASES |= {
    "the same, transposed": (partial(middles, "fp32", "fp32", -60), {"transposed": True}),
    "middles of subnormal fp16": (partial(subnormal, "fp16"), {}),
    "middles of subnormal bf16": (partial(subnormal, "bf16"), {}),
    "middles of the largest bf16": (partial(middles, "bf16", "fp32", top=2.0**126), {}),
    "cancelled to 2^-58, bf16": (partial(cancelled, "bf16", "fp32", -58), {}),
    "factors 2^100 apart, bf16": (partial(apart, "bf16"), {}),
}
for name in ("bf16", "fp32", "fp64"):
    CASES |= {
        f"middles of {name}, fp64 factors": (partial(middles, name, "fp64"), {}),
        f"2^-400 beside middles of {name}, fp64 factors": (partial(middles, name, "fp64", -400), {}),
        f"cancelled to 2^-118, {name}, fp64 factors": (partial(cancelled, name, "fp64", -118), {}),
        f"DoRA on middles of {name}": (partial(dora, name, "fp64"), {}),
        f"DoRA on middles of {name}, transposed": (partial(dora, name, "fp64"), {"transposed": True}),
        f"two DoRA on middles of {name}": (partial(dora, name, "fp64", 2), {}),
        f"the same of {name}, alpha a third of the rank": (partial(dora, name, "fp64", 2), {"third": True}),
    }


def written(made: Input, folder: Path, *, transposed: bool = False, third: bool = False) -> tuple[Path, list[Path]]:
    base, adapters = made
    (folder / "base").mkdir(parents=True)
    layer = "h.0.attn.c_attn" if transposed else "l"
    config: dict[str, object] = {"tie_word_embeddings": False} | ({"model_type": "gpt2"} if transposed else {})
    (folder / "base" / "config.json").write_text(json.dumps(config))
    stored = base.T.contiguous() if transposed else base
    save_file({f"{layer}.weight": stored}, folder / "base" / "model.safetensors")
    paths = [folder / str(number) for number in range(len(adapters))]
    roles = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
    for path, tensors in zip(paths, adapters, strict=True):
        path.mkdir()
        keys = [f"base_model.model.{layer}.{role}" for role in roles[: len(tensors)]]
        named = {key: tensor.contiguous() for key, tensor in zip(keys, tensors, strict=True)}
        save_file(named, path / "adapter_model.safetensors")
        rank = len(tensors[0])
        fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank / (3 if third else 1), "target_modules": [layer]}
        fields |= {"use_dora": len(tensors) > 2, "fan_in_fan_out": transposed}
        (path / "adapter_config.json").write_text(json.dumps(fields))
    return folder / "base", paths


def main(runs: int) -> None:
    lines = [
        f"{machine()}; CPU time of one thread, the least of {runs} runs in turn; `make bench`",
        "",
        f"| {SIZE} × {SIZE}, one layer | settled exactly | one by one | exact, CPU s | fast, CPU s | exact, fast = 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, (name, (make, how)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        with scratch(FOLDER):
            base, adapters = written(make(), FOLDER, **how)
            least, out = {"exact": float("inf"), "fast": float("inf")}, FOLDER / "out"
            for _ in range(runs):
                for precision in least:
                    start = time.process_time()
                    report = adaptertool.merge(base, adapters, out, precision=precision, threads=1)
                    least[precision] = min(least[precision], time.process_time() - start)
                    shutil.rmtree(out)
                    if precision == "exact":
                        counts = f"{report.settled / SIZE**2:.1%} | {report.settled_one_by_one}"
            times = f"{least['exact']:.2f} | {least['fast']:.2f} | {least['exact'] / least['fast']:.1f}"
            lines.append(f"| {name} | {counts} | {times} |")
            print(lines[-1], file=sys.stderr)
    into_page("hurting", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
