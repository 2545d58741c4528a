"""DoRA by the inputs of a convolution: V = W + s·B·A, and W' = (m / ‖V‖)·V with a norm for each input channel, over all
outputs and places of the kernel. What it acts on is the transpose: in·k rows, k of which have one norm and one m.

Source: LyCORIS before 3.2, and with wd_on_output = False since. Checked against LyCORIS 4.1.3 in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.kinds import dora, lora
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.kind import Kind, Misreading, Norms, Shape
from adaptertool.kinds.lora import A, B
from adaptertool.numerics.error_bound import Bound, Factor
from adaptertool.numerics.ops import DIVIDE, TIMES

PLACES = "places"  # of the kernel: as many numbers, which play no part themselves


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """Those of DoRA for a matrix (in·k, out), and k numbers (k, 1)."""
    own = dora.shapes(weight, factors)
    return None if own is None or not factors[PLACES] else {**own, PLACES: (factors[PLACES][0], 1)}


def bound(size: Bound, factors: Mapping[str, Factor], scale: float, weight: float, unit: float, length: int) -> Bound:
    """As for rows that are k times as long."""
    return dora.bound(size, factors, scale, weight, unit, length * len(factors[PLACES].array))


DORA_CHANNELS = Kind(
    name="dora-channels",
    roles=frozenset({A, B, MAGNITUDE, PLACES}),
    by_row=frozenset({B, MAGNITUDE}),
    by_column=frozenset({A}),
    shapes=shapes,
    apply=dora.apply,
    bound=bound,
    operations=frozenset({TIMES, DIVIDE}),
    norms=Norms(squares=dora.squares, bound=lora.bound, length=MAGNITUDE, together=PLACES),
    of_weight=True,
    misreadings=(Misreading("magnitude-ignored", "", dora.without_magnitude),),
)
