"""The judge of codes that were made anew: in rationals, element by element and block by block, by the formulas of the
formats' own documents."""

from __future__ import annotations

import bisect
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import Tensors, lora_factors, write_checkpoint
from quantised_bases import E2M1, Q, Quantised, X, nibbles
from quantised_bases import FORMATS as BASES
from rationals import Matrix

BF16, F32, U8, I8 = torch.bfloat16, torch.float32, torch.uint8, torch.int8
E4M3 = [Fraction(value.item()) if value == value else None
        for value in torch.arange(256, dtype=U8).view(torch.float8_e4m3fn).double()]  # fmt: skip


CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}


class Lattice(NamedTuple):
    """codes: of the tensors, (rows, columns) each a place of the table
    scales: names of what holds them; scale: the stored bits to rationals, each
    """

    table: list[Fraction | None]
    codes: Callable[[Tensors], list[list[int]]]
    scale: Callable[[Tensors], list[list[Fraction]]]
    block: tuple[int, int]
    stored: str  # the name of the scales
    reach: Fraction = Fraction(0)


def bytes_of(tensors: Tensors) -> list[list[int]]:
    return tensors[f"{X}.weight"].view(U8).tolist()


def table_of(tensor: torch.Tensor) -> list[list[Fraction]]:
    grid = tensor if tensor.ndim == 2 else tensor.reshape(1, 1)
    return [[Fraction(value) for value in row] for row in grid.to(torch.float64).tolist()]


def powers(tensor: torch.Tensor) -> list[list[Fraction]]:
    return [[Fraction(2) ** (value - 127) for value in row] for row in tensor.view(U8).tolist()]


def packed_codes(tensors: Tensors) -> list[list[int]]:
    count = int(tensors[f"{X}.weight_shape"][1])
    rows = []
    for row in tensors[f"{X}.weight_packed"].tolist():
        codes = [(word >> (4 * place)) & 15 for word in row for place in range(8)]
        rows.append(codes[:count])
    return rows


def _scale(name: str, read: Callable[[torch.Tensor], list[list[Fraction]]]) -> Callable[[Tensors], Any]:
    return lambda tensors: read(tensors[f"{X}.{name}"])


def _of_two(divides: bool) -> Callable[[Tensors], Any]:
    def scale(tensors: Tensors) -> list[list[Fraction]]:
        name = "weight_global_scale" if divides else "weight_scale_2"
        whole = Fraction(tensors[f"{X}.{name}"].double().reshape(-1)[0].item())
        factor = 1 / whole if divides else whole
        return [[value * factor for value in row] for row in table_of(tensors[f"{X}.weight_scale"])]

    return scale


INT8 = [Fraction(value) for value in torch.arange(256, dtype=U8).view(I8).tolist()]
INT4 = [Fraction(value - 8) for value in range(16)]
HALF = Fraction(1)


def fp4(name: str = "weight_packed") -> Callable[[Tensors], list[list[int]]]:
    return lambda tensors: nibbles(tensors[f"{X}.{name}"])


def positive(name: str) -> Callable[[], Quantised]:
    """NVFP4 without scales below 0, which no tool writes, and with none so large that a larger one is not there."""

    def base() -> Quantised:
        made = BASES[name]()
        scale = made.tensors[f"{X}.weight_scale"].view(U8)
        plain = scale.bitwise_and(0x3F)
        tensors = made.tensors | {f"{X}.weight_scale": plain.view(torch.float8_e4m3fn)}
        times = [
            [E4M3[new] / E4M3[old] if E4M3[old] else Fraction(0) for new, old in zip(*rows, strict=True)]
            for rows in zip(plain.tolist(), scale.tolist(), strict=True)
        ]
        exact = [[value * times[i][j // 16] for j, value in enumerate(row)] for i, row in enumerate(made.exact)]
        return made._replace(tensors=tensors, exact=exact)

    return base


FORMATS: dict[str, tuple[Callable[[], Quantised], Lattice]] = {
    name: (positive(name) if "NVFP4" in name else BASES[name], lattice)
    for name, lattice in {
        "FP8, blocks": Lattice(E4M3, bytes_of, _scale("weight_scale_inv", table_of), (16, 32), "weight_scale_inv"),
        "FP8, exponents": Lattice(E4M3, bytes_of, _scale("weight_scale_inv", powers), (16, 32), "weight_scale_inv"),
        "FP8, .scale": Lattice(E4M3, bytes_of, _scale("scale", powers), (16, 32), "scale"),
        "FP8, tensor": Lattice(E4M3, bytes_of, _scale("weight_scale", table_of), (20, 72), "weight_scale"),
        "FP8, rows": Lattice(E4M3, bytes_of, _scale("weight_scale", table_of), (1, 72), "weight_scale"),
        "MXFP8": Lattice(E4M3, bytes_of, _scale("weight_scale", powers), (1, 32), "weight_scale"),
        "INT8": Lattice(INT8, bytes_of, _scale("weight_scale", table_of), (1, 72), "weight_scale"),
        "INT8, groups": Lattice(INT8, bytes_of, _scale("weight_scale", table_of), (1, 24), "weight_scale"),
        "INT4": Lattice(INT4, packed_codes, _scale("weight_scale", table_of), (1, 32), "weight_scale"),
        "MXFP4": Lattice(E2M1, fp4(), _scale("weight_scale", powers), (1, 32), "weight_scale", HALF),
        "NVFP4": Lattice(E2M1, fp4(), _of_two(True), (1, 16), "weight_scale", HALF),
        "NVFP4 of ModelOpt": Lattice(E2M1, fp4("weight"), _of_two(False), (1, 16), "weight_scale", HALF),
    }.items()
}


def base_of(folder: Path, made: Quantised, shards: int = 1) -> Path:
    plain = {f"{Q}.weight": torch.arange(48.0).view(8, 6).bfloat16(), "model.norm.weight": torch.ones(6)}
    config = CONFIG | {"quantization_config": made.config}
    return write_checkpoint(folder, plain | dict(made.tensors), shards=shards, config=config)


def factors_of(made: Quantised, size: float) -> dict[str, torch.Tensor]:
    """Of a change about so large beside the largest weight."""
    largest = float(max(abs(value) for row in made.exact for value in row))
    found = lora_factors(X, (len(made.exact), len(made.exact[0])), rank=2, dtype=torch.bfloat16)
    return {key: (tensor * (size * largest) ** 0.5).bfloat16() for key, tensor in found.items()}


def _below(bits: torch.Tensor, words: torch.dtype) -> torch.Tensor:
    """The next smaller number of each; of 0 itself."""
    numbers = bits.reshape(-1).view(words)
    return torch.where(numbers == 0, numbers, numbers - 1).view(bits.dtype).reshape(bits.shape)


def judge(lattice: Lattice, before: Tensors, after: Tensors, exact: Matrix) -> None:
    """All four rules, for a weight whose exact values are these."""
    assert before.keys() == after.keys()
    assert all(after[name].dtype == one.dtype and after[name].shape == one.shape for name, one in before.items())
    codes, old = lattice.codes(after), lattice.codes(before)
    scales, were = lattice.scale(after), lattice.scale(before)
    bits = after[f"{X}.{lattice.stored}"]
    words = {1: U8, 2: torch.int16, 4: torch.int32}[bits.element_size()]
    lower = lattice.scale(after | {f"{X}.{lattice.stored}": _below(bits, words)})
    table, (down, across) = lattice.table, lattice.block
    known = sorted({value for value in table if value is not None})
    most, least = known[-1], known[0]
    for a, (line, line_before) in enumerate(zip(scales, were, strict=True)):
        for b, (scale, was) in enumerate(zip(line, line_before, strict=True)):
            rows = range(a * down, min((a + 1) * down, len(exact)))
            columns = range(b * across, min((b + 1) * across, len(exact[0])))
            values = [exact[i][j] for i in rows for j in columns]
            low, high = min(values), max(values)
            held = (least - lattice.reach) * was <= low and high <= (most + lattice.reach) * was
            if held:
                assert scale == was
            else:
                assert least * scale <= low and high <= most * scale
                less = lower[a][b]
                assert not (least * less <= low and high <= most * less)
            for i in rows:
                for j in columns:
                    own, value = table[codes[i][j]], exact[i][j]
                    assert own is not None
                    place = bisect.bisect(known, value / scale) if scale else 0
                    offs = [abs(one * scale - value) for one in known[max(place - 1, 0) : place + 1]]
                    best = min(offs)
                    assert abs(own * scale - value) == best, (i, j)
                    if held and table[old[i][j]] == own:
                        assert codes[i][j] == old[i][j]
                    if offs.count(best) > 1:
                        assert codes[i][j] % 2 == 0
