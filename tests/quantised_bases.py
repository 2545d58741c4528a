"""Weights as codes, in every format that is decoded, and what they mean: in rationals, one by one, by the formulas of
the formats' own documents. Codes are drawn at random: all that there are, but NaN."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from conftest import Tensors
from oracle import fractions
from rationals import Matrix

Q, X = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj"
BF16, F16, F32, U8, I8, I32 = (
    torch.bfloat16, torch.float16, torch.float32, torch.uint8, torch.int8, torch.int32,
)  # fmt: skip
E2M1 = [Fraction(value) for value in ("0", "1/2", "1", "3/2", "2", "3", "4", "6")]
E2M1 += [-value for value in E2M1]


class Quantised(NamedTuple):
    tensors: Tensors
    config: dict[str, Any]  # quantization_config
    exact: Matrix
    name: str = f"{X}.weight"


def drawn(*shape: int, low: int = 0, high: int = 256, dtype: torch.dtype = U8) -> torch.Tensor:
    return torch.randint(low, high, shape).to(dtype)


def scales(*shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
    return (torch.rand(shape) * 0.02 + 0.001).to(dtype)


def e4m3(*shape: int) -> torch.Tensor:
    codes = drawn(*shape)
    return torch.where(codes % 128 == 127, codes - 1, codes).view(torch.float8_e4m3fn)


def words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (n, m) as words of 32 bits, low bits first, without gaps."""
    rows = []
    for row in codes.tolist():
        whole = sum(code << (bits * place) for place, code in enumerate(row))
        rows.append([(whole >> (32 * place)) & 0xFFFFFFFF for place in range(-(-len(row) * bits // 32))])
    return torch.tensor([[word - (1 << 32) * (word >> 31) for word in row] for row in rows], dtype=I32)


def table(codes: torch.Tensor) -> Matrix:
    return [fractions(row) for row in codes.to(torch.float64)]


def times(codes: Matrix, scale: Callable[[int, int], Fraction]) -> Matrix:
    return [[code * scale(i, j) for j, code in enumerate(row)] for i, row in enumerate(codes)]


def powers(exponent: torch.Tensor) -> Matrix:
    """Of two, by E8M0."""
    return [[Fraction(2) ** (one - 127) for one in row] for row in exponent.tolist()]


def exponents(*shape: int) -> torch.Tensor:
    return drawn(*shape, low=115, high=130)


# --- FP8 ---


def fp8_block(end: str = ".weight_scale_inv", scale: torch.Tensor | None = None) -> Quantised:
    codes, scale = e4m3(20, 72), scales(2, 3) if scale is None else scale
    grid = scale.view(torch.float8_e8m0fnu) if scale.dtype == U8 else scale
    factors = table(grid)
    exact = times(table(codes), lambda i, j: factors[i // 16][j // 32])
    config = {"quant_method": "fp8", "weight_block_size": [16, 32], "activation_scheme": "dynamic"}
    return Quantised({f"{X}.weight": codes, f"{X}{end}": scale}, config, exact)


def fp8_ue8m0() -> Quantised:
    return fp8_block(scale=exponents(2, 3))


def fp8_of_module() -> Quantised:
    return fp8_block(".scale", exponents(2, 3).view(torch.float8_e8m0fnu))


def fp8_tensor() -> Quantised:
    codes, scale = e4m3(20, 72), scales(1)[0]
    tensors = {f"{X}.weight": codes, f"{X}.weight_scale": scale, f"{X}.input_scale": scales(1)[0]}
    (whole,) = fractions(scale)
    return Quantised(tensors, {"quant_method": "modelopt"}, times(table(codes), lambda *_: whole))


def group(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


def fp8_row() -> Quantised:
    codes, scale = e4m3(20, 72), scales(20, 1, dtype=BF16)
    config, factors = group(num_bits=8, type="float", strategy="channel"), fractions(scale)
    return Quantised({f"{X}.weight": codes, f"{X}.weight_scale": scale}, config,
                     times(table(codes), lambda i, _: factors[i]))  # fmt: skip


def mxfp8() -> Quantised:
    codes, scale = e4m3(20, 72), exponents(20, 3)
    config = group(num_bits=8, type="float", strategy="group", group_size=32)
    factors = powers(scale)
    exact = times(table(codes), lambda i, j: factors[i][j // 32])
    return Quantised({f"{X}.weight": codes, f"{X}.weight_scale": scale}, config, exact)


# --- integers ---


def int8(*, group_size: int = 0, symmetric: bool = True) -> Quantised:
    codes, wide = drawn(20, 72, low=-128, high=128, dtype=I8), group_size or 72
    scale, zero = scales(20, -(-72 // wide), dtype=BF16), drawn(20, -(-72 // wide), low=-128, high=128, dtype=I8)
    tensors: dict[str, torch.Tensor] = {f"{X}.weight": codes, f"{X}.weight_scale": scale}
    if not symmetric:
        tensors[f"{X}.weight_zero_point"] = zero
    zeros, factors = zero.tolist(), table(scale)
    shifted = [[code - (0 if symmetric else zeros[i][j // wide]) for j, code in enumerate(row)]
               for i, row in enumerate(table(codes))]  # fmt: skip
    config = group(num_bits=8, type="int", symmetric=symmetric, group_size=group_size or None)
    return Quantised(tensors, config, times(shifted, lambda i, j: factors[i][j // wide]))


def packed(bits: int, *, symmetric: bool = True, order: bool = False, columns: int = 70) -> Quantised:
    codes, size = drawn(21, columns, high=1 << bits), 32
    groups = -(-columns // size)
    scale, zero = scales(21, groups, dtype=BF16), drawn(21, groups, high=1 << bits)
    index = torch.randint(0, groups, (columns,)).to(I32)
    tensors: dict[str, torch.Tensor] = {
        f"{X}.weight_packed": words(codes, bits), f"{X}.weight_scale": scale,
        f"{X}.weight_shape": torch.tensor([21, columns]),
    }  # fmt: skip
    if not symmetric:
        tensors[f"{X}.weight_zero_point"] = words(zero.T, bits).T.contiguous()
    if order:
        tensors[f"{X}.weight_g_idx"] = index
    middle = 1 << (bits - 1)

    of = index.tolist() if order else [column // size for column in range(columns)]
    zeros, factors = zero.tolist(), table(scale)
    exact = [[(code - (middle if symmetric else zeros[i][of[j]])) * factors[i][of[j]] for j, code in enumerate(row)]
             for i, row in enumerate(codes.tolist())]  # fmt: skip
    config = group(num_bits=bits, type="int", symmetric=symmetric, group_size=size, actorder="group" if order else None)
    return Quantised(tensors, config, exact)


def bnb_int8() -> Quantised:
    codes, sizes = drawn(20, 72, low=-128, high=128, dtype=I8), scales(20)
    tensors = {f"{X}.weight": codes, f"{X}.SCB": sizes, f"{X}.weight_format": torch.tensor(0, dtype=U8)}
    factors = [size / 127 for size in fractions(sizes)]
    exact = times(table(codes), lambda i, _: factors[i])
    return Quantised(tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True}, exact)


# --- FP4 ---


def nibbles(codes: torch.Tensor) -> list[list[int]]:
    """Low bits first."""
    return [[half for byte in row for half in (byte % 16, byte // 16)] for row in codes.tolist()]


def mxfp4() -> Quantised:
    codes, scale = drawn(20, 48), exponents(20, 3)
    factors = powers(scale)
    exact = [[E2M1[code] * factors[i][j // 32] for j, code in enumerate(row)]
             for i, row in enumerate(nibbles(codes))]  # fmt: skip
    return Quantised({f"{X}.weight_packed": codes, f"{X}.weight_scale": scale}, group(num_bits=4), exact)


def nvfp4(*, divides: bool) -> Quantised:
    codes, scale, whole = drawn(20, 32), e4m3(20, 4), scales(1) * 1000
    (one,), factors = fractions(whole), table(scale)
    exact = [[E2M1[code] * factors[i][j // 16] * (1 / one if divides else one) for j, code in enumerate(row)]
             for i, row in enumerate(nibbles(codes))]  # fmt: skip
    if divides:
        tensors = {f"{X}.weight_packed": codes, f"{X}.weight_scale": scale, f"{X}.weight_global_scale": whole,
                   f"{X}.input_global_scale": scales(1)}  # fmt: skip
        return Quantised(tensors, group(num_bits=4), exact)
    tensors = {f"{X}.weight": codes, f"{X}.weight_scale": scale, f"{X}.weight_scale_2": whole[0],
               "model.layers.0.self_attn.k_proj.k_scale": scales(1)[0]}  # fmt: skip
    return Quantised(tensors, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, exact)


# --- bitsandbytes, 4 bits ---


def bnb4(kind: str, *, nested: bool = False, columns: int = 72, storage: torch.dtype = U8) -> Quantised:
    count = 20 * columns
    codes, values = drawn(-(-count // 2), 1), torch.randn(16)
    blocks = -(-count // 64)
    absmax, state = scales(blocks), {"quant_type": kind, "blocksize": 64, "dtype": "bfloat16", "shape": [20, columns]}
    tensors: dict[str, torch.Tensor] = {f"{X}.weight": codes.view(-1).view(storage)[:, None].contiguous(),
                                        f"{X}.weight.quant_map": values}  # fmt: skip
    if nested:
        own, few, table = drawn(blocks), scales(-(-blocks // 4)), torch.randn(256)
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.1234567}
        absmax = table[own.long()] * few.repeat_interleave(4)[:blocks] + torch.tensor(0.1234567)
        tensors |= {f"{X}.weight.absmax": own, f"{X}.weight.nested_absmax": few, f"{X}.weight.nested_quant_map": table}
    else:
        tensors[f"{X}.weight.absmax"] = absmax
    said = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=U8)
    tensors[f"{X}.weight.quant_state.bitsandbytes__{kind}"] = said
    flat = [half for byte in codes[:, 0].tolist() for half in (byte // 16, byte % 16)][:count]  # high bits first
    meant, sizes = fractions(values), fractions(absmax)
    exact = [meant[code] * sizes[place // 64] for place, code in enumerate(flat)]
    rows = [exact[first : first + columns] for first in range(0, count, columns)]
    return Quantised(tensors, {"quant_method": "bitsandbytes", "load_in_4bit": True}, rows)


# --- GPTQ and AWQ, which store (in, out) ---


def exact_of(codes: torch.Tensor, zero: torch.Tensor, scale: torch.Tensor, which: list[int]) -> Matrix:
    """which: the group of each row of codes"""
    zeros, factors = zero.tolist(), table(scale)
    rows = codes.tolist()
    return [[(row[o] - zeros[group][o]) * factors[group][o] for row, group in zip(rows, which, strict=True)]
            for o in range(codes.shape[1])]  # fmt: skip


def gptq(version: str = "gptq", bits: int = 4, *, order: bool = True) -> Quantised:
    out, inner, size = 16 if bits > 2 else 32, 64, 32
    codes, zero = drawn(inner, out, high=1 << bits), drawn(2, out, high=1 << bits)
    scale, index = scales(2, out, dtype=F16), torch.randint(0, 2, (inner,)).to(I32)
    ones = 0 if version == "gptq_v2" else sum(1 << (bits * place) for place in range(32 // bits))
    stored = ((words(zero, bits).long() - ones + (1 << 31)) % (1 << 32) - (1 << 31)).to(I32)
    tensors: dict[str, torch.Tensor] = {
        f"{X}.qweight": words(codes.T, bits).T.contiguous(), f"{X}.qzeros": stored, f"{X}.scales": scale,
    }  # fmt: skip
    if order:
        tensors[f"{X}.g_idx"] = index
    which = index.tolist() if order else [place // size for place in range(inner)]
    exact = exact_of(codes, zero, scale, which)
    config = {"quant_method": "gptq", "bits": bits, "group_size": size, "checkpoint_format": version}
    return Quantised(tensors, config, exact)


def awq() -> Quantised:
    out, inner, size = 16, 64, 32
    codes, zero, scale = drawn(inner, out, high=16), drawn(2, out, high=16), scales(2, out, dtype=F16)

    def in_turn(numbers: torch.Tensor) -> torch.Tensor:
        order = [8 * word + place for word in range(out // 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
        return words(numbers[:, order], 4)

    tensors = {f"{X}.qweight": in_turn(codes), f"{X}.qzeros": in_turn(zero), f"{X}.scales": scale}
    exact = exact_of(codes, zero, scale, [place // size for place in range(inner)])
    return Quantised(tensors, {"quant_method": "awq", "bits": 4, "group_size": size, "version": "gemm"}, exact)


FORMATS: dict[str, Callable[[], Quantised]] = {
    "FP8, blocks": fp8_block, "FP8, exponents": fp8_ue8m0, "FP8, .scale": fp8_of_module, "FP8, tensor": fp8_tensor,
    "FP8, rows": fp8_row, "MXFP8": mxfp8,
    "INT8": int8, "INT8, groups": lambda: int8(group_size=24), "INT8, zeros": lambda: int8(symmetric=False),
    "INT4": lambda: packed(4), "INT4, zeros": lambda: packed(4, symmetric=False),
    "INT4, ordered": lambda: packed(4, symmetric=False, order=True), "INT8, packed": lambda: packed(8, symmetric=False),
    "INT3": lambda: packed(3, symmetric=False), "INT5": lambda: packed(5), "INT2": lambda: packed(2, columns=96),
    "MXFP4": mxfp4, "NVFP4": lambda: nvfp4(divides=True), "NVFP4 of ModelOpt": lambda: nvfp4(divides=False),
    "NF4": lambda: bnb4("nf4"), "FP4": lambda: bnb4("fp4", columns=37), "NF4, nested": lambda: bnb4("nf4", nested=True),
    "NF4 as BF16": lambda: bnb4("nf4", storage=BF16, columns=36), "INT8 of bitsandbytes": bnb_int8,
    "GPTQ": gptq, "GPTQ v2": lambda: gptq("gptq_v2", order=False), "GPTQ, 8 bits": lambda: gptq(bits=8),
    "GPTQ, 2 bits": lambda: gptq(bits=2), "AWQ": awq,
}  # fmt: skip
