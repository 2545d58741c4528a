"""Factors of all experts of a parameter, as a change of each expert's own layers: what formats have that know layers
alone, and checkpoints from before transformers 5."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adaptertool.architectures.gguf_experts import experts_of
from adaptertool.errors import UnsupportedError, shown
from adaptertool.kinds import kind_of
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made, turned, whole
from adaptertool.numerics.error_bound import Array
from adaptertool.resolution.fused import FUSED, IN_FUSED
from adaptertool.resolution.resolve import Base
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import ReadRows, Ref

Places = Sequence[tuple[str, Module]]  # a tensor of the base, the change as it acts on that
_PARAMETERS = frozenset({*FUSED, *IN_FUSED})


def is_of_experts(module: Module, places: Places) -> bool:
    """Whether it changes several experts by one pair of factors. places: all that it changes"""
    parameter = module.target.rpartition(".")[2]
    return module.stacked or (len(places) > 1 and parameter in _PARAMETERS and kind_of(module).is_product)


def experts_apart(subject: Base, adapter: Adapter, module: Module, places: Places) -> Iterator[tuple[str, Module]]:
    """(the tensor of the base where that is just what is changed, else ""; the change) of each expert. Raises
    UnsupportedError where it is not known how they lie in the tensor that holds them."""
    apart = dict(enumerate(experts_of(subject.base.config, module.target)))  # by their names in a checkpoint
    for number, (disk, placed) in enumerate(places):
        factors = {role: _cut_out(placed.factors[role]) for role in (A, B)}
        plain = module._replace(factors=factors, view=None, grouped=False, stacked=False, transposed=None)
        change = _turned(plain) if placed.transposed else plain
        if placed.view is None:
            yield disk, _named(change, subject.names.in_memory(disk))
            continue
        if module.stacked and (known := apart.get(number)) is not None:
            yield "", _named(plain, known)
            continue
        layout, parameter = subject.names.layout, module.target.rpartition(".")[2]
        if layout is None or layout.transposed is None or module.stacked:
            raise UnsupportedError(
                f"{adapter.path}: {shown(module.target)} has factors for a stack of experts, and how these lie in "
                f"{shown(disk)} is not known for this architecture: merge it into its base"
            )
        if layout.transposed:
            change = _turned(change)
        parts, rows = FUSED.get(parameter, (parameter,)), subject.tensors[disk].shape[1]
        for part, projection in enumerate(parts):
            b = _rows(change.factors[B], part, len(parts), in_turn=not layout.concatenated)
            own = change._replace(factors={A: change.factors[A], B: b})
            yield "", _named(own, f"{module.name}.{placed.view.rows[0] // rows}.{projection}.weight")


def _cut_out(ref: Ref) -> Ref:
    """The factor as a tensor of its own."""
    if (columns := ref.columns) is None:
        return ref
    stored, step = Ref(ref.path, ref.offset, ref.spec), slice(columns.start, columns.stop, columns.step)
    return made([stored], ref.shape, lambda read, first, last: read(stored, first, last)[:, step])


def _turned(change: Module) -> Module:
    """The change of the transpose."""
    return change._replace(factors={A: turned(change.factors[B]), B: turned(change.factors[A])})


def _rows(ref: Ref, part: int, parts: int, *, in_turn: bool) -> Ref:
    """The rows of one of several projections, that lie one after the other, or row by row in turn."""
    size = ref.shape[0] // parts
    if not in_turn or parts == 1:
        return ref.rows(part * size, (part + 1) * size)

    def rows(read: ReadRows, first: int, last: int) -> Array:
        return whole(read, ref)[part::parts][first:last]

    return made(ref.stored, (size, *ref.shape[1:]), rows)


def _named(change: Module, target: str) -> Module:
    name = target.rpartition(".")[0]
    return change._replace(name=name, target=target, layer=name)
