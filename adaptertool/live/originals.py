"""What weights in memory had before they were changed: copies, or the checkpoint that they were loaded from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import torch

from adaptertool.architectures.conversion import Pieces
from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.files.reader import Inputs
from adaptertool.formats.checkpoints import open_checkpoint
from adaptertool.live.memory import DTYPES
from adaptertool.resolution.names import Names
from adaptertool.spec.tensors import Ref

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_TORCH = {name: dtype for dtype, name in DTYPES.items()}


class Originals(Protocol):
    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Make sure that `get` will have the bits that the tensor has now."""

    def get(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The original of a tensor, of its dtype and shape."""


class Copies:
    """A copy of every tensor that is changed, on its device."""

    def __init__(self) -> None:
        self._copies: dict[str, torch.Tensor] = {}

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        if name not in self._copies:
            self._copies[name] = tensor.detach().clone()

    def get(self, name: str, tensor: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        return self._copies[name]


class FromBase:
    """Originals that are read from a checkpoint when they are needed. That it holds them is checked once, before the
    first change."""

    def __init__(self, base: Path, wanted: Iterable[str]) -> None:
        checkpoint = open_checkpoint(base)
        names = list(wanted)
        found, _ = Names(tuple(checkpoint.tensors), checkpoint.config).find_all([(name, False) for name in names])
        self._path, self._tensors = base, checkpoint.tensors
        self._inputs = Inputs({header.path: header.stamp for header in checkpoint.headers})
        self._pieces: Mapping[str, Pieces | None] = dict(zip(names, found, strict=True))
        self._checked: set[str] = set()

    def keep(self, name: str, tensor: torch.Tensor) -> None:
        """Make sure that the base holds the bits of a tensor in memory. Raises MismatchError where it does not."""
        if name in self._checked:
            return
        if not same_bits(self.get(name, tensor), tensor.detach()):
            raise MismatchError(
                f"{self._path} does not hold what {shown(name)} has in memory, so it cannot be restored from there; "
                'restore="copy" keeps a copy'
            )
        self._checked.add(name)

    def get(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The original of a tensor, read from the base and cast to its dtype. Raises MismatchError where the base holds
        none of its shape, and UnsupportedError where it is a part of another."""
        pieces = self._pieces[name]
        if pieces is None:
            raise MismatchError(f'{self._path} holds no tensor for {shown(name)}; restore="copy" keeps a copy')
        if any(piece.cut is not None for piece in pieces):
            raise UnsupportedError(
                f'{shown(name)} is a part of {shown(pieces[0].disk)} in {self._path}; restore="copy" keeps a copy'
            )
        parts = [self._read(self._tensors[piece.disk]) for piece in pieces]
        if pieces[0].expert is not None:
            count = pieces[0].parts
            own = {(piece.expert, piece.part): part for piece, part in zip(pieces, parts, strict=True)}
            whole = torch.stack(
                [torch.cat([own[expert, part] for part in range(count)]) for expert in range(len(own) // count)]
            )
        else:
            whole = parts[0] if len(parts) == 1 else torch.cat(parts)
        if whole.shape != tensor.shape:
            raise MismatchError(
                f"{shown(name)} is {tuple(whole.shape)} in {self._path}, but {tuple(tensor.shape)} in memory"
            )
        return whole.to(tensor.dtype)  # as on loading

    def check_unchanged(self) -> None:
        """Raises InputError where the checkpoint is no longer what was read before the change."""
        try:
            self._inputs.check_unchanged()
        except InputError as error:
            raise InputError(f"{self._path} changed while its weights were needed; load the model again") from error

    def close(self) -> None:
        self._inputs.__exit__()

    def _read(self, ref: Ref) -> torch.Tensor:
        if ref.spec.dtype not in _TORCH:
            raise UnsupportedError(f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}; it is not read for models")
        data = bytearray(ref.spec.nbytes)
        self._inputs.read_into(ref.path, ref.offset, memoryview(data))
        if not data:
            return torch.empty(ref.spec.shape, dtype=_TORCH[ref.spec.dtype])
        return torch.frombuffer(data, dtype=_TORCH[ref.spec.dtype]).view(ref.spec.shape)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    word = _WORDS[one.element_size()]
    return one.dtype == other.dtype and torch.equal(one.view(word), other.cpu().view(word))
