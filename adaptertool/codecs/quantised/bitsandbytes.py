"""4 bits of bitsandbytes (NF4, FP4): codes of a table, and the largest magnitude of each block of the flat tensor.

    X.weight          U8 (n / 2, 1), or other dtypes of as many bytes: two codes a byte, the first in its high bits
    X.weight.absmax   F32 (⌈n / blocksize⌉,), of elements that follow one another: blocks may cross rows
    X.weight.quant_map  F32 (16,), the table
    X.weight.quant_state.bitsandbytes__nf4, or fp4   U8: JSON with blocksize, shape, dtype, and whether it is nested

W = quant_map[code]·absmax, exact in float64 (24 and 24 bits). Nested (double quantisation): absmax is U8, and

    absmax = nested_quant_map[code]·nested_absmax[of its block] + nested_offset

in float32, with both roundings, as bitsandbytes computes it before it decodes a weight: these float32 numbers are what
a model is run, and an adapter trained, with.

Source: bitsandbytes 0.50.2 (functional.py: QuantState, dequantize_4bit, dequantize_blockwise).
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.record import Format, Stored, Weight
from adaptertool.codecs.quantised.tables import paired
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.numerics.decoding import Coded, decoded
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

_STATE = ".quant_state.bitsandbytes__"
_KINDS = ("nf4", "fp4")
_MOST = 1 << 48  # beyond all sizes that there are


def _find(stored: Stored, codes: Ref, name: str) -> Weight | None:
    states = [f"{name}{_STATE}{kind}" for kind in _KINDS]
    states = [one for one in states if one in stored.tensors]
    if not states:
        return None
    state = _state(stored, stored.need(codes, states[0], ("U8",)))
    shape = state["shape"]
    count, block = math.prod(shape), state["blocksize"]
    if codes.spec.nbytes != -(-count // 2):
        misfit(codes, f"but by {shown(states[0])} it has {count:,} numbers of 4 bits")
    table = stored.need(codes, f"{name}.quant_map", ("F32",))
    absmax = stored.need(codes, f"{name}.absmax", ("U8",) if "nested_blocksize" in state else ("F32",))
    blocks = -(-count // block)
    if table.spec.numel != 16 or absmax.spec.numel != blocks:
        misfit(absmax, f"and {shown(table.spec.name)} {table.spec}, for {blocks:,} blocks of {block}")
    parts = [codes, absmax, table]
    if nested := "nested_blocksize" in state:
        parts += [stored.need(codes, f"{name}.nested_{one}", ("F32",)) for one in ("absmax", "quant_map")]
        if parts[3].spec.numel != -(-blocks // state["nested_blocksize"]) or parts[4].spec.numel != 256:
            misfit(parts[3], f"for {blocks:,} blocks, and {shown(parts[4].spec.name)} is {parts[4].spec}")

    def rows(read: ReadStored, first: int, last: int, dtype: str = "F64", out: Array | None = None) -> Array:
        begin, end = first * shape[-1], last * shape[-1]
        low, high = begin // block, -(-end // block)  # whole blocks, which are rows here
        bytes_of = np.zeros((high - low) * block // 2, np.uint8)
        own = _bytes(read, codes, low * block // 2, min(high * block // 2, -(-count // 2)))
        bytes_of[: len(own)] = own
        pairs = paired(read(table, 16, 0, 1)[0].astype(np.float64), low_first=False)
        sizes = _nested(read, parts, state, low, high) if nested else read(absmax, 1, low, high)[:, 0]
        which, scales = np.arange(high - low, dtype=np.int32), sizes.astype(np.float64)[:, None]
        room = out if begin % block == end % block == 0 else None
        values = decoded(Coded(bytes_of.reshape(high - low, -1), pairs, which, scales, block, block), dtype, room)
        return values.reshape(-1)[begin - low * block :][: end - begin].reshape(last - first, -1)

    called = f"{state['quant_type'].upper()} of bitsandbytes"
    return Weight(name, tuple(shape), called, tuple(parts), rows, shape[-1], (states[0],), casts=True)


def _bytes(read: ReadStored, codes: Ref, first: int, last: int) -> Array:
    """Bytes of the codes, whatever dtype they are stored as."""
    item = max(codes.spec.nbytes // max(codes.spec.numel, 1), 1)
    begin, end = first // item, min(-(-last // item), codes.spec.numel)
    flat = np.ascontiguousarray(read(codes, 1, begin, end)).view(np.uint8).reshape(-1)
    return flat[first - begin * item : last - begin * item]


def _nested(read: ReadStored, parts: list[Ref], state: dict[str, Any], low: int, high: int) -> Array:
    """absmax of the blocks low..high, float32."""
    size = state["nested_blocksize"]
    codes, table = read(parts[1], 1, low, high)[:, 0], read(parts[4], 256, 0, 1)[0]
    own = read(parts[3], 1, low // size, -(-high // size))[:, 0]
    found: Array = table[codes] * np.repeat(own, size)[low % size :][: high - low]
    found += np.float32(state["nested_offset"])
    return found


def _state(stored: Stored, ref: Ref) -> dict[str, Any]:
    """What the JSON beside a weight says. Raises MismatchError where it is none, or lacks what is needed."""
    try:
        state = json.loads(stored.content(ref))
        shape, block = state["shape"], state["blocksize"]
        sizes = [*shape, block, *([state["nested_blocksize"]] if "nested_blocksize" in state else [])]
        valid = len(shape) > 1 and block % 2 == 0 and all(type(size) is int and 0 < size < _MOST for size in sizes)
        valid = valid and (len(sizes) == len(shape) + 1 or math.isfinite(float(state["nested_offset"])))
        kind = state["quant_type"]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise MismatchError(f"{ref.path}: {shown(ref.spec.name)} is not the JSON that bitsandbytes writes") from error
    if not valid or kind not in _KINDS:
        raise UnsupportedError(f"{ref.path}: {shown(ref.spec.name)} says {shown(state)[:200]}, which is not known here")
    found: dict[str, Any] = state
    return found


BNB_4 = Format(
    name="4 bits of bitsandbytes",
    methods=frozenset({"bitsandbytes"}),
    ends=("",),
    dtypes=frozenset({"U8", "BF16", "F16", "F32"}),
    find=_find,
)
