"""Changes of tensors whose numbers are not those that the adapter was trained on: of a model in GGUF, or from there."""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.architectures.change import Change
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.kinds import kind_of
from adaptertool.kinds.made import made
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.adapter import Module
from adaptertool.spec.tensors import ReadRows, Ref, TensorSpec

_BEFORE = "before"  # the attribute of what makes reordered rows that has the factor as it was


def changed(module: Module, change: Change, spec: TensorSpec) -> Module:
    """The same change of the tensor as it is here. Raises UnsupportedError for kinds of which that is not known, and
    MismatchError where rows do not make so many heads."""
    kind = kind_of(module)
    if change.shifted and not kind.linear:
        raise UnsupportedError(
            f"{shown(module.name)} is {shown(spec.name)} here, and 1 was added to it, or subtracted; {module.kind} on "
            "such a tensor is not supported yet"
        )
    if not change.heads:
        return module
    rows = spec.shape[0] if spec.shape else 0
    if rows % (2 * change.heads):
        raise MismatchError(f"{shown(spec.name)} is {spec}, which makes no {change.heads} heads of halves")
    if change.size is not None and rows != change.heads * change.size:
        raise MismatchError(
            f"{shown(spec.name)} is {spec}, and the base says {change.heads} heads of {change.size} rows: in "
            "which order its rows are in GGUF is not known so"
        )
    # Of what comes down to other kinds a factor may have more rows than the weight, or its blocks be those of rows
    by_row = kind.by_row and not kind.undivided and kind.becomes is None
    if not by_row or kind.replaces or module.transposed:
        raise UnsupportedError(
            f"{shown(module.name)} is {shown(spec.name)} here, with its rows in another order; {module.kind} on such a "
            "tensor is not supported yet: merge it into the checkpoint, and convert that"
        )
    factors = {
        role: _reordered(ref, change) if role in kind.by_row and ref.shape[:1] == (rows,) else ref
        for role, ref in module.factors.items()
    }
    return module._replace(factors=factors)


def as_trained(factors: Mapping[str, Ref]) -> dict[str, Ref]:
    """Factors as they were before `changed`: what a tool merges that knows names alone."""
    return {role: ref if ref.made is None else getattr(ref.made.rows, _BEFORE, ref) for role, ref in factors.items()}


def _reordered(ref: Ref, change: Change) -> Ref:
    """The rows of a factor in the order that they have here."""
    order, making = change.order(ref.shape[0]), ref.made

    def rows(read: ReadRows, first: int, last: int) -> Array:
        wanted = order[first:last]
        begin, end = min(wanted), max(wanted) + 1
        some = read(ref, begin, end) if making is None else making.rows(read, making.first + begin, making.first + end)
        found: Array = some[[row - begin for row in wanted]]
        return found

    vars(rows)[_BEFORE] = ref
    rows.__qualname__ += f"({change.heads}, {change.into_gguf})"  # another order makes another run of it
    return made(ref.stored, ref.shape, rows)
