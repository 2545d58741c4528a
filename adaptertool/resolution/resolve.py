"""Module -> base tensor. Every module finds exactly one tensor that it fits, or the run is refused."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

from adaptertool.architectures.flat import DOTTED
from adaptertool.architectures.mlx import LAYOUT, MLX, require_alike
from adaptertool.architectures.traits import Traits, read_traits
from adaptertool.errors import MismatchError, UnsupportedError, by, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.kinds import BY_NAME, kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.kind import Shape
from adaptertool.resolution.components import ComponentNames, names_of
from adaptertool.resolution.names import Names
from adaptertool.resolution.pad import take_padded
from adaptertool.resolution.place import Placer
from adaptertool.resolution.resize import take_resized
from adaptertool.resolution.ties import FLAG, ends_of
from adaptertool.resolution.unmatched import unmatched_modules
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref, View


@dataclass(frozen=True, slots=True)
class Base:
    """What adapters are resolved against, made once for all of them."""

    base: Checkpoint
    names: Names
    traits: Traits
    ends: Mapping[str, str]  # tied and not stored -> the tensor that they are tied to
    tensors: dict[str, Ref]  # those of the base, and the ends; as resized by the adapters so far
    resized: dict[str, Ref] = field(default_factory=dict)
    padded: dict[str, Ref] = field(default_factory=dict)


def open_base(base: Checkpoint) -> Base:
    names = names_of(base)
    ends = {} if isinstance(names, ComponentNames) and names.ties_nothing else ends_of(base, names)
    tensors = dict(base.tensors)
    for end, source in (ends or {}).items():
        ref = base.tensors[source]
        tensors[end] = ref._replace(spec=ref.spec._replace(name=end))
    if ends:
        names = Names(tuple(tensors), base.config, base.gguf)
    return Base(base, names, read_traits(base, ties_known=ends is not None), ends or {}, tensors)


def resolve(subject: Base, adapter: Adapter) -> tuple[Mapping[str, list[Module]], list[str]]:
    """Base tensor name -> the modules of `adapter` that change it, replacements before deltas; and notes.

    What it resizes is put into `subject`.
    Raises MismatchError for modules without a tensor (with the nearest names) and for shapes that do not fit,
    UnsupportedError for a base whose weights cannot be edited as they are stored.
    """
    base, names, traits = subject.base, subject.names, subject.traits
    wanted = [(module.target, kind_of(module).replaces and module.rows is None) for module in adapter.modules]
    targets, change = names.find_all(wanted)
    if unmatched := [module for found, module in zip(targets, adapter.modules, strict=True) if found is None]:
        if why := traits.quantised:
            raise UnsupportedError(
                f"{base.path} is quantised ({why}), and codes are not edited as they are stored. {traits.way_out}.\n"
                f"{unmatched_modules(base, adapter, unmatched)}"
            )
        raise MismatchError(unmatched_modules(base, adapter, unmatched))
    found = [(module, pieces) for module, pieces in zip(adapter.modules, targets, strict=True) if pieces is not None]
    if change and change.stripped and change.whole not in DOTTED and read_traits(base).why_tied:
        why = (
            f"{base.path} was saved without the head that it may be tied to, and config.json does not say {FLAG}: false"
        )
        traits = replace(traits, why_tied=why)
    resized, found = take_resized(base, subject.tensors, subject.ends, traits, adapter, found)
    subject.tensors.update(resized)
    subject.resized.update(resized)
    padded = take_padded(subject.tensors, adapter, found)
    subject.tensors.update(padded)
    subject.padded.update(padded)
    placer = Placer(subject.tensors, LAYOUT if traits.by_mlx else names.layout, traits.kv_rows, adapter, found)
    resolved: dict[str, list[Module]] = {}
    # Where no family tells: by shapes -> such a tensor; not, of a square one -> such a tensor
    turned: dict[bool, str] = {}
    for wanted_module, pieces in found:
        for target, placed in placer.place(wanted_module, pieces):
            fitted = _fitted(subject, traits, adapter, target, placed)
            if (own := resolved.get(target)) is None:
                resolved[target] = [fitted]
            else:
                own.append(fitted)
            if traits.families:
                continue
            shape = _stored_shape(subject.tensors[target], placed)
            square = len(shape) > 1 and len(set(shape)) == 1
            if bool(fitted.transposed) != square and placed.transposed is None and not kind_of(placed).elementwise:
                turned.setdefault(not square, target)
    if len(turned) > 1:
        raise UnsupportedError(
            f"{base.path}: {shown(turned[True])} is stored transposed, as shapes tell, and {shown(turned[False])} is "
            "square; config.json has no model_type that tells whether that is too"
        )
    for target, modules in resolved.items():
        if len(modules) > 1:
            _require_apart(adapter, target, modules)
            # A saved weight, then the rows or the delta on it
            modules.sort(key=lambda module: (not kind_of(module).replaces, module.rows is not None))
    fits = [f"{adapter.path}: names fit with {change}"] if change else []
    if isinstance(names, ComponentNames):
        fits += names.notes
    return resolved, [*adapter.notes, *fits]


def _fitted(subject: Base, traits: Traits, adapter: Adapter, target: str, module: Module) -> Module:
    """The module as it acts on that tensor. Raises where it does not fit, or must not be edited."""
    ref = subject.tensors[target]
    traits.refuse_quantised(ref)
    ours, own = adapter.format == MLX, module.view is not None
    if traits.by_mlx != ours:
        require_alike(ref, traits.families, base=traits.by_mlx, adapter=ours, in_stack=own)
    if module.rows is not None:
        module = module._replace(view=_row_view(subject, ref, module))
    elif traits.why_tied:
        traits.refuse_tied(ref)
    if isinstance(subject.names, ComponentNames) and module.transposed is None and "gpt2" not in traits.families:
        module = module._replace(transposed=False)
    if _orientation(traits, ref, module, claimed=adapter.claims_transposed):
        module = module._replace(transposed=True)
    return module


def _require_apart(adapter: Adapter, target: str, modules: Sequence[Module]) -> None:
    """Refuse two changes of the same numbers, but for a saved weight and a delta, or token rows, on it."""
    begun: list[tuple[float, Module]] = []
    for module in sorted(modules, key=lambda module: _span(module.view)[0]):
        first, last = _span(module.view)
        begun = [(end, other) for end, other in begun if end > first]
        for _, other in begun:
            alike = _is_whole(other) == _is_whole(module) or not _comes_below(other, module)
            if alike and _overlap(module.view, other.view):
                raise MismatchError(
                    f"{adapter.path}: {shown(other.name)} and {shown(module.name)} both change {shown(target)}"
                )
        begun.append((last, module))


def _comes_below(one: Module, other: Module) -> bool:
    """Whether one of both is a saved weight that the other comes on top of: PEFT has them in one file, and for factors
    the key of the weight has base_layer in it. Else PEFT leaves one of both out."""
    saved, more = (one, other) if _is_whole(one) else (other, one)
    (weight,) = saved.factors.values()
    together = all(ref.path == weight.path for ref in more.factors.values())
    return together and (kind_of(more).replaces or ".base_layer." in weight.spec.name)


def _is_whole(module: Module) -> bool:
    return kind_of(module).replaces and module.rows is None


def _span(view: View | None) -> tuple[float, float]:
    if view is None or isinstance(view.rows, tuple):
        return 0, math.inf
    return view.rows.start, view.rows.stop


def _overlap(a: View | None, b: View | None) -> bool:
    """Whether the rows of two views begin and end within each other."""
    if a is None or b is None or isinstance(a.rows, tuple) or isinstance(b.rows, tuple):
        return True
    pairs = ((a.rows, b.rows), (a.columns, b.columns))
    in_turn = any(x.step == y.step and (x.start - y.start) % x.step for x, y in pairs)
    return not in_turn and a.columns.start < b.columns.stop and b.columns.start < a.columns.stop


def _orientation(traits: Traits, ref: Ref, module: Module, *, claimed: bool) -> bool:
    """Whether the weight is stored (in, out), by its shape, and by the model's family where it is square,
    or the factors would fit either way.

    Raises unless the factors fit the weight that way.
    """
    shape, transposed = _stored_shape(ref, module), bool(module.transposed)
    # Without the property where it has nothing to do: there may be hundreds of thousands
    shapes = tuple([one.spec.shape if one.columns is None else one.shape for one in module.factors.values()])
    fits, turned = _fits(module.kind, shape[::-1] if transposed else shape, tuple(module.factors), shapes)
    if turned and module.transposed is None and len(shape) == 2 and not kind_of(module).elementwise:
        if fits:
            return traits.is_transposed(ref, claimed=claimed)
        if traits.may_transpose(ref):
            return True
    if not fits:
        _fail(ref, module, transposed=transposed)
    return transposed


@functools.lru_cache(1024)  # most modules have the shapes of another
def _fits(kind: str, weight: Shape, roles: tuple[str, ...], shapes: tuple[Shape, ...]) -> tuple[bool, bool]:
    """Whether factors of these shapes fit a weight (out, in, ...); and whether its transpose, where it is a matrix."""
    factors = dict(zip(roles, shapes, strict=True))

    def fit(weight: Shape) -> bool:
        expected = BY_NAME[kind].shapes(weight, factors)
        return expected is not None and all(expected[role] == shape for role, shape in factors.items())

    return fit(weight), len(weight) == 2 and fit(weight[::-1])


def _stored_shape(ref: Ref, module: Module) -> Shape:
    return ref.spec.shape if module.view is None else module.view.shape


def _row_view(subject: Base, ref: Ref, module: Module) -> View:
    """Rows of an embedding: they must be there. In a tied model that stores one end, they are right for both."""
    assert module.rows is not None
    same = [other for other in subject.base.tensors.values() if other.spec.shape == ref.spec.shape]
    stored_once = subject.traits.surely_tied and len(same) == 1
    if module.shared and not (stored_once or ref.spec.name in subject.ends.values()):
        raise MismatchError(
            f"{module.factors[TUNED].path} holds token rows for {shown(module.name)} alone, but its config for both "
            f"ends of a tied model; {ref.path} is not known to be one"
        )
    if not stored_once:
        subject.traits.refuse_tied(ref)
    size = ref.spec.shape[0] if ref.spec.shape else 0
    if module.rows and max(module.rows) >= size:
        raise MismatchError(
            f"{ref.path}: {shown(ref.spec.name)} has {size} rows, but {module.factors[TUNED].path} trains row "
            f"{max(module.rows)}; was the vocabulary resized? Then the adapter must hold the whole embedding as well"
        )
    width = ref.spec.numel // max(size, 1)
    return View(width, module.rows, range(width), (len(module.rows), *ref.spec.shape[1:]))


def _misfits(ref: Ref, module: Module, *, transposed: bool) -> dict[str, Shape] | None:
    """Roles whose shape is wrong, with the right one; None where the kind cannot change such a weight at all."""
    shapes = {role: factor.shape for role, factor in module.factors.items()}
    weight = _stored_shape(ref, module)
    expected = kind_of(module).shapes(weight[::-1] if transposed else weight, shapes)
    if expected is None:
        return None
    return {role: expected[role] for role, shape in shapes.items() if shape != expected[role]}


def _fail(ref: Ref, module: Module, *, transposed: bool) -> NoReturn:
    misfits = _misfits(ref, module, transposed=transposed)
    where = f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}" + (" (stored transposed)" if transposed else "")
    if ref.spec.shape == (0,):
        raise MismatchError(f"{where}; it has no elements, as where ZeRO-3 saved without gathering the parts")
    if not misfits:
        raise UnsupportedError(
            f"{where}; {module.kind} on a weight of that shape is not supported{kind_of(module).unfit}"
        )
    role, shape = next(iter(misfits.items()))
    factor = module.factors[role]
    raise MismatchError(
        f"{where}, so {shown(factor.spec.name)} must be {by(shape)}, but it is {factor.spec} in {factor.path}; "
        "is this adapter for another model?"
    )
