"""What changes come down to: those of kinds that are applied."""

from __future__ import annotations

from collections.abc import Sequence

from adaptertool.kinds import BY_NAME, kind_of
from adaptertool.kinds.kind import Part, Shape
from adaptertool.kinds.made import turned
from adaptertool.spec.adapter import Module


def parts_of(module: Module, weight: Shape | None = None) -> Sequence[Module] | None:
    """The modules of kinds that are applied which are the same, one after another; the module itself where its kind is
    applied. None where the shape of the weight must be known.

    weight: the shape (out, in, ...) of what it changes; None: that which the factors tell
    """
    kind = kind_of(module)
    if kind.becomes is None:
        return [module]
    weight = weight or kind.weight_of({role: ref.shape for role, ref in module.factors.items()})
    if weight is None:
        return None
    parts = kind.becomes(module.factors, weight, module.scale, module.settings)
    place = f".{module.layer}."
    own = min(name for ref in module.factors.values() if place in (name := f".{ref.spec.name}"))
    stem = own[1 : own.rindex(place) + len(place) - 1]
    return [
        module._replace(
            kind=part.kind,
            factors={role: ref.renamed(f"{stem}.{role}.weight") for role, ref in part.factors.items()},
            scale=part.scale,
            rank=part.factors[pair[1]].shape[0] if (pair := BY_NAME[part.kind].pair) else module.rank,
            transposed=bool(module.transposed) != part.turned if not BY_NAME[part.kind].elementwise else False,
            settings={},
        )
        for part in (_as_stored(part) if module.transposed else part for part in parts)
    ]


def _as_stored(part: Part) -> Part:
    """A change element by element, of a weight that is stored transposed."""
    if not BY_NAME[part.kind].elementwise:
        return part
    return part._replace(factors={role: turned(ref) for role, ref in part.factors.items()})
