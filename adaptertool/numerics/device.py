"""Who makes the products and orthogonal factors of large matrices, as a record: numpy, or torch on a device (live)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from adaptertool.numerics.held import Held, Matrix, Products, Room
from adaptertool.numerics.lowrank import Qr, orthogonal
from adaptertool.records import dataclass


@dataclass(frozen=True, slots=True)
class Device:
    """A device. Arrays are numpy's on both sides of each call.

    hold: a matrix for products, as a context
    qr:   as numerics.lowrank.orthogonal
    """

    name: str
    hold: Callable[[Matrix, Room], AbstractContextManager[Products]]
    qr: Qr

    @property
    def recipe(self) -> dict[str, str]:
        """What a manifest says of it: bytes depend on a device, as on what BLAS makes of a processor, by rounding."""
        return {} if self.name == "cpu" else {"device": self.name}


CPU = Device("cpu", Held, orthogonal)
