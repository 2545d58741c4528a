"""The weights of a sum of adapters, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from adaptertool.errors import UsageError, argument, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.planning.schedules import Weigher
from adaptertool.spec.layers import Layer, Layered
from adaptertool.spec.schedule import Schedule


class LayerWeights:
    """The weight of each adapter in each layer, by the name that the adapter has for its weight."""

    def __init__(self, adapters: Sequence[Layered], schedules: Sequence[Schedule], base: Checkpoint | None) -> None:
        """base: tells how many layers there are. Raises UsageError for a rule that fits no layer, and for a gradient
        over layers that are not known to be all."""
        self.schedules = schedules
        changed = [{*map(_name, one.layers.values()), *(module.target for module in one.saved)} for one in adapters]
        names = dict.fromkeys(sorted(name for own in changed for name in own))
        if any(len(rule.numbers) > 1 for one in schedules for rule in one.rules):
            known = {} if base is None else base.tensors
            if other := [name for name in names if name not in known]:
                hint = argument("base") if base is None else f"{base.path} has no {shown(other[0])}"
                raise UsageError(
                    f"{argument('weight')}: a gradient goes over all layers of a model, which adapters alone do not "
                    f"tell: {'give ' if base is None else ''}{hint}"
                )
            names |= dict.fromkeys(known)
        self.of_tensor = Weigher(schedules, names)
        self.notes = [*self.of_tensor.notes(changed)]

    def of_layer(self, number: int, layer: Layer) -> Fraction:
        """The weight as float64 has it."""
        return Fraction(self.of_tensor(number, _name(layer)))


def _name(layer: Layer) -> str:
    """The name of the weight of a layer."""
    return layer.path if layer.is_parameter else f"{layer.path}.weight"
