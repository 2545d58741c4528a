"""Changes of a weight that is stored otherwise than it is named: cut by rows, in another order, transposed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from adaptertool.errors import MismatchError, UnsupportedError, by, shown
from adaptertool.kinds import kind_of
from adaptertool.kinds.made import turned
from adaptertool.kinds.parts import parts_of
from adaptertool.spec.adapter import Module
from adaptertool.spec.tensors import TensorSpec, View


def by_rows(module: Module, weight: tuple[int, ...]) -> Module:
    """The module as the change that it comes down to, if that is one of which rows tell what becomes of rows."""
    kind, shapes = kind_of(module), {role: ref.shape for role, ref in module.factors.items()}
    if kind.becomes is None or kind.by_row or kind.shapes(weight, shapes) != shapes:
        return module
    (first, *others) = parts_of(module, weight) or (module,)
    return module if others or first.transposed else first


def as_transposed(module: Module, spec: TensorSpec) -> Module:
    """A change of a matrix that is stored transposed. Raises UnsupportedError for what takes its place."""
    kind = kind_of(module)
    if kind.replaces or len(spec.shape) != 2:
        raise UnsupportedError(
            f"{shown(spec.name)}, which holds {shown(module.target)} transposed, is {spec}; {module.kind} on it is not "
            "supported yet"
        )
    if not kind.elementwise:
        return module._replace(transposed=True)
    return module._replace(factors={role: turned(ref) for role, ref in module.factors.items()}, transposed=False)


def in_halves(module: Module, spec: TensorSpec) -> Iterator[Module]:
    """A change of a tensor that is stored with the second half of its rows before the first: one change for each.

    Raises UnsupportedError for kinds whose factors have no rows that go by those of the weight.
    """
    module = by_rows(module, spec.shape)
    kind, shapes = kind_of(module), {role: ref.shape for role, ref in module.factors.items()}
    expected, where = kind.shapes(spec.shape, shapes), f"{shown(spec.name)}, which holds {shown(module.target)}"
    if expected is None or kind.undivided or not kind.by_row or spec.shape[0] % 2:
        raise UnsupportedError(f"{where} with its halves swapped, is {spec}; {module.kind} on it is not supported yet")
    require_shapes(module, expected, f"{where} with its halves swapped, is {spec}")
    half, width = spec.shape[0] // 2, spec.numel // spec.shape[0]
    for rows, theirs in ((range(half), range(half, 2 * half)), (range(half, 2 * half), range(half))):
        own = {
            role: ref.rows(theirs.start, theirs.stop) if role in kind.by_row else ref
            for role, ref in module.factors.items()
        }
        view = View(width, rows, range(width), (half, *spec.shape[1:]), swapped=True)
        yield module._replace(factors=own, view=view, transposed=False)


def require_shapes(module: Module, expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise MismatchError where a factor has another shape than it must have."""
    for role, ref in module.factors.items():
        if ref.shape != expected[role]:
            raise MismatchError(
                f"{where}, so {shown(ref.spec.name)} must be {by(expected[role])}, but it is {ref.spec} in "
                f"{ref.path}; is this adapter for another model?"
            )
