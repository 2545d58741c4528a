"""Stored tensors, as torch has them."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptertool.files.reader import Inputs, read_into
from adaptertool.spec import KEPT, WINDOW, Ref

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}

_PART = 1 << 18  # elements


def read_tensor(inputs: Inputs, ref: Ref, first: int, last: int) -> Tensor:
    """Elements first..last of a tensor on disk, flat, as float64 (exact for every dtype computed on)."""
    return _read_stored(inputs, ref, first, last).to(torch.float64)


def _read_stored(inputs: Inputs, ref: Ref, first: int, last: int) -> Tensor:
    stored = torch.empty(last - first, dtype=DTYPES[ref.spec.dtype])
    size = stored.element_size()
    read_into(inputs.get(ref.path), ref.offset + first * size, as_bytes(stored))
    return stored


def read_rows(inputs: Inputs, ref: Ref, first: int, last: int, width: int) -> Tensor:
    """Rows first..last of a tensor on disk, of `width` elements each, as a float64 matrix; of its columns if chosen."""
    if ref.columns is None:
        return read_tensor(inputs, ref, first * width, last * width).view(last - first, width)
    if ref.columns.step > 1:
        return _read_in_turn(inputs, ref, width)[first:last].to(torch.float64)
    chosen = torch.empty(last - first, len(ref.columns), dtype=torch.float64)
    step = max(1, _PART // width)  # what is read beside the columns is let go of soon
    for begin in range(first, last, step):
        end = min(last, begin + step)
        stored = _read_stored(inputs, ref, begin * width, end * width).view(end - begin, width)
        columns = stored[:, ref.columns.start : ref.columns.stop : ref.columns.step]
        chosen[begin - first : end - first] = columns
    return chosen


def _read_in_turn(inputs: Inputs, ref: Ref, width: int) -> Tensor:
    """Columns that take turns with those of others (experts), as stored. The next will be asked for as well, and all
    rows are read to find them: so those of several are kept at once, in KEPT windows of WINDOW bytes at most."""
    assert ref.columns is not None
    turn, turns, rows = ref.columns.start, ref.columns.step, ref.spec.shape[0]
    several = max(1, WINDOW * turns // max(ref.spec.nbytes, 1))
    begin = turn - turn % several
    key = (ref.path, ref.offset, ref.spec, begin)
    with inputs.kept_lock:  # also while it is read, or others would read the same
        if (window := inputs.kept.pop(key, None)) is None:
            while len(inputs.kept) >= KEPT:
                del inputs.kept[next(iter(inputs.kept))]  # what was not asked for the longest
            window = torch.empty(min(several, turns - begin), rows, len(ref.columns), dtype=DTYPES[ref.spec.dtype])
            step = max(1, _PART // width)
            for start in range(0, rows, step):
                end = min(rows, start + step)
                stored = _read_stored(inputs, ref, start * width, end * width).view(end - start, -1, turns)
                window[:, start:end] = stored[:, :, begin : begin + len(window)].permute(2, 0, 1)
        inputs.kept[key] = window
    chosen: Tensor = window[turn - begin]
    return chosen


def as_bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data
