"""Weights that are to grow before they are changed: those of a control LoRA of ComfyUI, whose first layer is given more
channels (`reshape_weight`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from adaptertool.architectures.conversion import Pieces
from adaptertool.errors import MismatchError, UnsupportedError, by, shown
from adaptertool.kinds.made import made
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import ReadRows, Ref


def take_padded(tensors: Mapping[str, Ref], adapter: Adapter, found: list[tuple[Module, Pieces]]) -> Mapping[str, Ref]:
    """What takes the place of tensors that the adapter pads with zeros, by their names; none that have that shape.

    Raises MismatchError for a shape in which the tensor has no place, UnsupportedError where it is stored as a part of
    another, or as codes.
    """
    padded: dict[str, Ref] = {}
    for module, pieces in found:
        if module.padded is None:
            continue
        ref, shape = tensors[pieces[0].disk], module.padded
        where = f"{adapter.path}: {shown(module.name)} is to be padded with zeros to {by(shape)}"
        if len(pieces) > 1 or pieces[0].cut is not None or pieces[0].part is not None:
            raise UnsupportedError(
                f"{where}, but {shown(ref.spec.name)} of the base is not just that weight: take a base that stores it "
                "by itself"
            )
        if len(shape) != len(ref.shape) or any(new < old for new, old in zip(shape, ref.shape, strict=True)):
            raise MismatchError(
                f"{where}, but {shown(ref.spec.name)} is {by(ref.shape)} in {ref.path}, and a weight can only grow; is "
                "this adapter for another model?"
            )
        if shape == ref.shape:
            continue
        if ref.made is not None:
            raise UnsupportedError(
                f"{where}, but {shown(ref.spec.name)} is stored as codes in {ref.path}: take the dense base"
            )
        padded[ref.spec.name] = _padded(ref, shape)
    return padded


def _padded(ref: Ref, shape: tuple[int, ...]) -> Ref:
    """The tensor in the first corner of one of that shape, which is zero elsewhere.

    Source: ComfyUI, comfy/weight_adapter/base.py, pad_tensor_to_shape.
    """

    def rows(read: ReadRows, first: int, last: int) -> Array:
        out: Array = np.zeros((last - first, *shape[1:]))
        if (end := min(last, ref.shape[0])) > first:
            out[: end - first][(slice(None), *map(slice, ref.shape[1:]))] = read(ref, first, end).reshape(
                end - first, *ref.shape[1:]
            )
        return out.reshape(last - first, -1)

    return made([ref], shape, rows)
