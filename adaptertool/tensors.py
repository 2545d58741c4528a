"""Stored tensors, as torch has them."""

from __future__ import annotations

import torch
from torch import Tensor

from adaptertool.files.reader import Inputs, read_into
from adaptertool.spec import Ref

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
    chosen = torch.empty(last - first, len(ref.columns), dtype=torch.float64)
    step = max(1, _PART // width)  # what is read beside the columns is let go of soon
    for begin in range(first, last, step):
        end = min(last, begin + step)
        stored = _read_stored(inputs, ref, begin * width, end * width).view(end - begin, width)
        columns = stored[:, ref.columns.start : ref.columns.stop : ref.columns.step]
        chosen[begin - first : end - first] = columns
    return chosen


def as_bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).numpy().data
