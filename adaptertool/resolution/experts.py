"""Changes of fused experts: a stack of weights in one tensor, (E, out, in) or (E, in, out).

PEFT keeps the factors of all experts in one pair: A (E·r, in), expert after expert, and B (out, E·r), in which the
expert counts fastest (lora.ParamWrapper of PEFT 0.21.2, checked against it in the tests), unless the module is
`grouped`: then one expert's columns follow another's (formats.peft.packing). Adapters from before
transformers 5 change one expert at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.architectures.conversion import ExpertLayout, Part
from adaptertool.errors import MismatchError, UnsupportedError, by, shown
from adaptertool.kinds import kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.lora import A, B
from adaptertool.spec.adapter import Module
from adaptertool.spec.tensors import Ref, TensorSpec, View

Stack = tuple[int, int, int]  # experts, rows, columns of a fused tensor as it lies, or would lie, in memory


def is_on_first(module: Module, stack: Stack) -> bool | None:
    """Whether lora_A belongs to the first of the two dimensions of an expert, by shapes; None where both sides fit.
    Raises MismatchError where none does."""
    _, rows, columns = stack
    if any(len(module.factors[role].shape) != 2 for role in (A, B)):
        raise MismatchError(
            f"{shown(module.target)} is a stack of experts, but "
            f"its factors in {module.factors[A].path} are no matrices: "
            f"{module.factors[A].spec} and {module.factors[B].spec}"
        )
    own = (module.factors[B].shape[0], module.factors[A].shape[1])
    if own not in ((rows, columns), (columns, rows)):
        raise MismatchError(
            f"{shown(module.target)} has experts of {by((rows, columns))}, but its factors in {module.factors[A].path} "
            f"are for {by(own)}; is this adapter for another model?"
        )
    return None if rows == columns else own != (rows, columns)


def require_stack(module: Module, stack: Stack) -> None:
    """Refuse factors that are not those of all experts of a stack, A (E·r, ...) and B (..., E·r). Raises
    MismatchError."""
    a, b, wide = module.factors[A], module.factors[B], stack[0] * module.rank
    if a.shape[0] != wide or b.shape[1:] != (wide,):
        raise MismatchError(
            f"{shown(module.target)} has {stack[0]} experts, so for rank {module.rank} {shown(a.spec.name)} must have "
            f"{wide} rows and {shown(b.spec.name)} as many columns, but they are {a.spec} and {b.spec} in {a.path}; is "
            "this adapter for another model?"
        )


def of_expert(module: Module, stack: Stack, expert: int, rows: range, *, on_first: bool) -> dict[str, Ref]:
    """The factors of one expert, cut to some of its rows as the tensor has them in memory."""
    a, b, rank, wide = module.factors[A], module.factors[B], module.rank, stack[0] * module.rank
    own_columns = range(expert * rank, (expert + 1) * rank) if module.grouped else range(expert, wide, stack[0])
    own = {
        A: a.rows(expert * rank, (expert + 1) * rank),
        B: Ref(b.path, b.offset, b.spec, own_columns),
    }
    if not on_first:
        own[B] = own[B].rows(rows.start, rows.stop)
    elif len(rows) < stack[1]:
        own[A] = Ref(own[A].path, own[A].offset, own[A].spec, rows)
    return own


def in_expert(module: Module, cut: Part, spec: TensorSpec, layout: ExpertLayout | None) -> Module:
    """A change of one expert, or of a part of it, in a fused tensor. Raises MismatchError where the tensor has no such
    expert, and UnsupportedError."""
    where = f"{shown(spec.name)} is {spec}"
    if cut.expert is None or len(spec.shape) != 3 or cut.expert >= spec.shape[0]:
        raise MismatchError(f"{where}; it holds no expert {cut.expert} for {shown(module.target)}")
    rows, columns = spec.shape[1:]
    transposed = _fits_transposed(module, cut, (rows, columns), where, layout)
    if transposed and kind_of(module).elementwise:
        raise UnsupportedError(f"{where}: saved weights on experts that are stored transposed are not supported yet")
    part = cut.of(columns if transposed else rows)
    first = cut.expert * rows
    if transposed:
        view = View(columns, range(first, first + rows), part, (rows, len(part)))
    else:
        inside = range(first + part.start, first + part.stop, part.step)
        view = View(columns, inside, range(columns), (len(part), columns))
    return module._replace(view=view, transposed=transposed)


def _fits_transposed(
    module: Module, cut: Part, shape: tuple[int, int], where: str, layout: ExpertLayout | None
) -> bool:
    """Whether experts are stored (in, out): as shapes tell, and where they do not, the architecture."""
    own = _weight_shape(module.factors)
    fits = [
        transposed
        for transposed, (out, inner) in ((False, shape), (True, shape[::-1]))
        if out % cut.count == 0 and own == (out // cut.count, inner)
    ]
    if not fits:
        raise MismatchError(
            f"{where}, and {shown(module.target)} with a weight of {by(own)} does not fit into it as part "
            f"{cut.index + 1} of {cut.count} of an expert; is this adapter for another model?"
        )
    if len(fits) == 1:
        return fits[0]
    if layout is None or layout.transposed is None:
        raise UnsupportedError(f"{where}: square experts, and nothing tells whether they are stored transposed")
    return layout.transposed


def _weight_shape(factors: Mapping[str, Ref]) -> tuple[int, ...]:
    """The shape of the weight that they are for; of factors that are no matrices one that fits nothing."""
    if TUNED in factors:
        return factors[TUNED].shape
    return factors[B].shape[:1] + factors[A].shape[1:] if A in factors and B in factors else ()
