"""What changes come down to: those of kinds that are applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from adaptertool.errors import UnsupportedError
from adaptertool.kinds import BY_NAME, kind_of
from adaptertool.kinds.kind import Change, Misreading, Part, Shape
from adaptertool.kinds.made import turned
from adaptertool.spec.adapter import Module
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref, View


def parts_of(module: Module, weight: Shape | None = None) -> Sequence[Module] | None:
    """The modules of kinds that are applied which are the same, one after another; the module itself where its kind is
    applied. None where the weight, or its shape, must be known. Raises UnsupportedError for changes of single rows of a
    weight that is stored transposed.

    weight: the shape (out, in, ...) of what it changes; None: that which the factors tell
    """
    kind = kind_of(module)
    if kind.becomes is None:
        return [module]
    if kind.reads is not None and kind.reads not in module.factors:
        return None
    weight = weight or kind.weight_of({role: ref.shape for role, ref in module.factors.items()})
    if weight is None:
        return None
    parts = kind.becomes(module.factors, weight, module.scale, module.settings)
    place = f".{module.layer}."
    named = [f".{ref.spec.name}" for role, ref in module.factors.items() if role != kind.reads]
    own = min(name for name in named if place in name)
    stem = own[1 : own.rindex(place) + len(place) - 1]
    if module.transposed and any(part.rows is not None for part in parts):
        raise UnsupportedError(f"{stem[:-1]}: {kind.name} on a weight that is stored transposed is not supported yet")
    return [
        module._replace(
            view=module.view if part.rows is None else _view(module.view, part.rows, weight),
            kind=part.kind,
            factors={role: ref.renamed(f"{stem}.{role}.weight") for role, ref in part.factors.items()},
            scale=part.scale,
            rank=part.factors[pair[1]].shape[0] if (pair := BY_NAME[part.kind].pair) else module.rank,
            transposed=part.turned,
            settings={},
        )
        for part in (_as_stored(part, bool(module.transposed)) for part in parts)
    ]


def _view(view: View | None, rows: range, weight: Shape) -> View:
    """Some rows of a weight, which may itself be a part of a tensor."""
    width, shape = math.prod(weight[1:]), (len(rows), *weight[1:])
    if view is None:
        return View(width, rows, range(width), shape)
    return replace(view, rows=view.rows[rows.start : rows.stop], shape=shape)


def _as_stored(part: Part, transposed: bool) -> Part:
    """A part with factors for the weight as it is stored: turned where a kind turns it itself. What changes element by
    element is turned here."""
    if not BY_NAME[part.kind].elementwise:
        return part._replace(turned=part.turned != transposed)
    factors = {role: turned(ref) for role, ref in part.factors.items()} if transposed else part.factors
    return part._replace(factors=factors, turned=False)


def misread(edit: Edit, misreading: Misreading, stored: Shape, base: Ref | None, *, whole: bool) -> Sequence[Edit]:
    """What an edit would be to a tool with that fault, which its kind, or that of the change which it is a part of, has
    among its misreadings; empty where nobody can take it so.

    stored: the shape of what is changed, as it is stored; base: that itself, where it is a whole tensor
    whole: of the change that the edit is a part of
    """
    own = edit.part_of if whole and edit.part_of is not None else edit
    transposed = bool(own.transposed)
    weight = stored[::-1] if transposed else stored
    base = turned(base) if base is not None and transposed else base
    settings = own.settings if isinstance(own, Module) else {}
    parts = misreading.parts(Change(own.factors, weight, own.scale, settings, base))
    return [
        edit._replace(kind=part.kind, factors=part.factors, scale=part.scale, transposed=part.turned, part_of=None)
        for part in (_as_stored(part, transposed) for part in parts)
    ]
