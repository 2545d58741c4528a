"""Layers whose change is made of no pair of factors, with the names that factors of its leading part get."""

from __future__ import annotations

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.kinds import kind_of
from adaptertool.spec.adapter import Module
from adaptertool.spec.layers import Layer, Pair
from adaptertool.spec.tensors import DTYPE_BITS, Ref, TensorSpec

_WITHOUT_FLOATS = "F32"  # the dtype of factors that are made of no floats


def unpaired_layer(module: Module, names: tuple[str, str]) -> Layer:
    """The layer of a change that is made of no pair. Where its factors do not tell the size of what it changes, it is
    open, until the base has told that.

    names: of A and B. Raises MismatchError for factors that should tell it and do not, and UnsupportedError for a
    convolution.
    """
    kind, refs = kind_of(module), module.factors
    some = next(iter(refs.values()))
    weight = kind.weight_of({role: ref.shape for role, ref in refs.items()})
    told = kind.size is not None or (kind.becomes is None and bool(kind.by_row and kind.by_column))
    if told and weight is None and any(len(ref.shape) > 2 for ref in refs.values()):
        raise UnsupportedError(
            f"{some.path}: {shown(module.name)} is of kind {module.kind} on a convolution, of which no LoRA is made "
            "here: merge it into its base, and extract a LoRA"
        )
    if told and weight is None:
        raise MismatchError(
            f"{some.path}: the factors of {shown(module.name)}, of kind {module.kind}, do not fit together, or "
            "are empty"
        )
    floats = (ref.spec.dtype for role, ref in refs.items() if role not in kind.places and "F" in ref.spec.dtype)
    dtype = max(floats, key=lambda name: DTYPE_BITS[name], default=_WITHOUT_FLOATS)
    a, b = (Ref(some.path, 0, TensorSpec(name, dtype, (0, 0), 0)) for name in names)
    layer = Layer(module.layer, 0, module.scale, (Pair(a, b),), None, None, is_parameter=False, unpaired=module)
    return layer if weight is None else layer.of_size(*weight, module.rank)
