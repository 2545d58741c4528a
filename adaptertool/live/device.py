"""Products of large matrices and their orthogonal factors by torch, on a device, in float64."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from adaptertool.errors import StorageError, UsageError, shown
from adaptertool.numerics.device import Device
from adaptertool.numerics.held import Matrix, Room
from adaptertool.numerics.lowrank import Factors, Orthogonal
from adaptertool.numerics.rounding import Array

OUT_OF_MEMORY = torch.cuda.OutOfMemoryError  # what torch calls it of every device, and did before 2.5


def device_of(name: str) -> torch.device:
    """Raises UsageError where this machine has no such device."""
    try:
        device = torch.device(name)
    except RuntimeError as error:  # which lists all that torch has ever known
        raise UsageError(f"device {name!r} is none of torch's, such as cpu, cuda, cuda:1, mps or xpu") from error
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {name!r} cannot be used: {reason(error)}") from error
    if device.type == "meta":
        raise UsageError("device 'meta' computes nothing")
    return device


def reason(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(lines[0])[:300] if lines else type(error).__name__


def open_device(name: str) -> Device:
    """Raises UsageError where this machine has no such device, or it computes nothing in float64."""
    device = device_of(name)
    try:
        torch.empty(1, device=device, dtype=torch.float64)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {name!r} has no float64, which this is computed in: {reason(error)}") from error
    return Device(name, functools.partial(_hold, device), functools.partial(_qr, device))


class _Resident:
    """A matrix that lies on a device (numerics.held.Products)."""

    def __init__(self, matrix: Matrix, device: torch.device) -> None:
        self.matrix = matrix
        self._all = torch.empty(matrix.shape, dtype=torch.float64, device=device)
        for first, rows in matrix.blocks():
            self._all[first : first + len(rows)] = torch.from_numpy(rows)
        self._square = float(torch.linalg.vector_norm(self._all)) ** 2

    def narrow(self) -> bool:
        return False

    def square(self) -> float:
        return self._square

    def times(self, right: Array, *, back: bool) -> tuple[Array, Array | None]:
        left = self._all @ self._there(right).T
        return _here(left), _here(left.T @ self._all) if back else None

    def left_over(self, factors: Factors) -> tuple[float, float]:
        rest = torch.addmm(self._all, *map(self._there, factors), alpha=-1)
        return float(torch.linalg.vector_norm(rest)), math.sqrt(self._square)

    def _there(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._all.device)


def _here(array: torch.Tensor) -> Array:
    found: Array = array.cpu().numpy()
    return found


@contextmanager
def _with_room(device: torch.device) -> Iterator[None]:
    try:
        yield
    except OUT_OF_MEMORY as error:
        raise StorageError(
            f"out of memory on {device}, which holds a layer in float64 for each thread: give --threads 1, or --device "
            "cpu"
        ) from error


@contextmanager
def _hold(device: torch.device, matrix: Matrix, room: Room) -> Iterator[_Resident]:  # noqa: ARG001
    with _with_room(device):
        yield _Resident(matrix, device)


def _qr(device: torch.device, matrix: Array) -> Orthogonal:
    with _with_room(device):
        q, r = torch.linalg.qr(torch.from_numpy(np.ascontiguousarray(matrix)).to(device))
        return Orthogonal(_here(q), None, _here(r))
