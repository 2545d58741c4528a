"""Module -> base tensor. Every module finds exactly one tensor that it fits, or the run is refused."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import NoReturn

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats.adapter import Adapter, Module
from adaptertool.kinds import BY_NAME, FULL
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.kind import Shape
from adaptertool.names import Names
from adaptertool.spec import Ref
from adaptertool.traits import Traits

_SHOWN = 8  # unmatched modules that an error lists in full


def resolve(
    base: Checkpoint, names: Names, traits: Traits, adapter: Adapter
) -> tuple[Mapping[str, list[Module]], list[str]]:
    """Base tensor name -> the modules of `adapter` that change it, replacements before deltas; and notes.

    `names` and `traits` are those of the base, made once for all adapters.
    Raises MismatchError for modules without a tensor (with the nearest names) and for shapes that do not fit,
    UnsupportedError for a base whose weights cannot be edited as they are stored.
    """
    wanted = [(module.target, module.kind == FULL.name and module.rows is None) for module in adapter.modules]
    targets, note = names.find_all(wanted)
    found = list(zip(targets, adapter.modules, strict=True))
    if unmatched := [module for target, module in found if target is None]:
        if traits.quantisation:
            raise UnsupportedError(
                f"{base.path} is quantised ({traits.quantisation}).\n{_unmatched(base, adapter, unmatched)}"
            )
        raise MismatchError(_unmatched(base, adapter, unmatched))
    resolved: dict[str, list[Module]] = {}
    for target, module in found:
        assert target is not None
        ref = base.tensors[target]
        traits.refuse_quantised(ref)
        if module.rows is None:
            traits.refuse_tied(ref)
        else:
            _check_rows(base, traits, ref, module)
        if _orientation(traits, ref, module, claimed=adapter.claims_transposed):
            module = dataclasses.replace(module, transposed=True)
        others = resolved.setdefault(target, [])
        rows = any(other.rows is not None for other in (*others, module))
        if others and (rows or any((other.kind == FULL.name) == (module.kind == FULL.name) for other in others)):
            raise MismatchError(
                f"{adapter.path}: {shown(others[0].name)} and {shown(module.name)} both change {shown(target)}"
            )
        others.append(module)
    for modules in resolved.values():
        modules.sort(key=lambda module: module.kind != FULL.name)  # a saved weight, then the delta on it
    return resolved, [f"{adapter.path}: {note}"] if note else []


def _orientation(traits: Traits, ref: Ref, module: Module, *, claimed: bool) -> bool:
    """Whether the weight is stored (in, out), by its shape, and by the model's family where it is square.

    Raises unless the factors fit the weight that way.
    """
    shape, transposed = ref.spec.shape, bool(module.transposed)
    fits = _misfits(ref, module, transposed=transposed) == {}
    if module.transposed is None and len(shape) == 2 and not BY_NAME[module.kind].elementwise:
        if fits and shape[0] == shape[1]:
            return traits.square_is_transposed(ref, claimed=claimed)
        if not fits and traits.may_transpose(ref) and _misfits(ref, module, transposed=True) == {}:
            return True
    if not fits:
        _fail(ref, module, transposed=transposed)
    return transposed


def _check_rows(base: Checkpoint, traits: Traits, ref: Ref, module: Module) -> None:
    """Rows of an embedding: they must be there. In a tied model that stores one end, they are right for both."""
    same = [other for other in base.tensors.values() if other.spec.shape == ref.spec.shape]
    if not (traits.surely_tied and len(same) == 1):
        traits.refuse_tied(ref)
    size = ref.spec.shape[0] if ref.spec.shape else 0
    if module.rows and max(module.rows) >= size:
        raise MismatchError(
            f"{ref.path}: {shown(ref.spec.name)} has {size} rows, but {module.factors[TUNED].path} trains row "
            f"{max(module.rows)}; vocabularies that were resized are not supported yet"
        )


def _misfits(ref: Ref, module: Module, *, transposed: bool) -> dict[str, Shape] | None:
    """Roles whose shape is wrong, with the right one; None where the kind cannot change such a weight at all."""
    shapes = {role: factor.spec.shape for role, factor in module.factors.items()}
    weight = ref.spec.shape[::-1] if transposed else ref.spec.shape
    if module.rows is not None:
        weight = (len(module.rows), *weight[1:])
    expected = BY_NAME[module.kind].expected(weight, shapes)
    if expected is None:
        return None
    return {role: expected[role] for role, shape in shapes.items() if shape != expected[role]}


def _fail(ref: Ref, module: Module, *, transposed: bool) -> NoReturn:
    misfits = _misfits(ref, module, transposed=transposed)
    where = f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}" + (" (stored transposed)" if transposed else "")
    if not misfits:
        raise UnsupportedError(f"{where}; {module.kind} on a weight of that shape is not supported yet")
    role, shape = next(iter(misfits.items()))
    factor, wanted = module.factors[role], "×".join(map(str, shape)) or "scalar"
    raise MismatchError(
        f"{where}, so {shown(factor.spec.name)} must be {wanted}, but it is {factor.spec} in {factor.path}; "
        "is this adapter for another model?"
    )


def _unmatched(base: Checkpoint, adapter: Adapter, modules: Sequence[Module]) -> str:
    lines = [f"{len(modules)} of {len(adapter.modules)} modules of {adapter.path} have no tensor in {base.path}:"]
    for module in modules[:_SHOWN]:
        near = nearest(module.target, base.tensors)
        lines.append(f"  {shown(module.target)}" + (f"  nearest: {', '.join(map(shown, near))}" if near else ""))
    if len(modules) > _SHOWN:
        lines.append(f"  and {len(modules) - _SHOWN} more")
    lines.append("Is this adapter for another model? If only names differ: --rename 'regex=>replacement'.")
    return "\n".join(lines)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that are most like `name`; those that end alike are looked at first."""
    pool = list(names)
    for parts in (3, 2, 1):
        ending = "." + ".".join(name.split(".")[-parts:])
        alike = [candidate for candidate in pool if candidate.endswith(ending)]
        if alike:
            pool = alike
            break
    return difflib.get_close_matches(name, pool[:2000], n=3, cutoff=0.5)
