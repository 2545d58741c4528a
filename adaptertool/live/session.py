"""Adapters on a model in memory: put onto it, and taken back."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from adaptertool.arguments import Number, PathLike, as_input, decimal
from adaptertool.errors import MismatchError, UnsupportedError, UsageError, by, shown
from adaptertool.files.reader import Inputs
from adaptertool.live.change import change, plain_arithmetic
from adaptertool.live.memory import Model, Slot, open_model, place_of, why_not_plain
from adaptertool.live.originals import Copies, FromBase, Originals
from adaptertool.planning.edits import adapter_edits
from adaptertool.planning.merge import require_mixable
from adaptertool.planning.sources import Reading, open_adapter
from adaptertool.records import dataclass, replace
from adaptertool.resolution.renaming import renaming
from adaptertool.resolution.ties import STORED_APART
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Edit, Step
from adaptertool.spec.tensors import Stamp

_taken: set[tuple[torch.device, int]] = set()  # the storages that hold changed weights, of all sessions


class Session:
    """The edits of adapters to a model, and what it needs to take them back."""

    def __init__(
        self,
        model: Model,
        edits: Mapping[str, Sequence[Edit]],
        apart: Sequence[str],
        originals: Originals,
        inputs: Inputs,
    ) -> None:
        self._slots, self._originals, self._inputs = model.slots, originals, inputs
        self._apart = apart
        self._steps = {
            name: Step(ref.spec, 0, ref, tuple(edits[name]))
            for name, ref in model.subject.tensors.items()
            if any(edit.weight for edit in edits.get(name, ()))
        }
        self._untied: list[tuple[Slot, nn.Parameter]] = []
        self._changed: list[tuple[str, torch.Tensor]] = []
        self._taken: set[tuple[torch.device, int]] = set()

    def put(self, alpha: float) -> None:
        """W + α·(W' − W). Raises; `take_back` is to be called all the same."""
        if alpha == 0:
            return
        self.take({*self._steps, *self._apart})
        for name in self._apart:
            self._untie(name)
        for name, step in self._steps.items():
            tensor = self._slots[name].tensor
            if name not in self._apart:
                with plain_arithmetic(tensor):
                    self._originals.keep(name, tensor)
                self._changed.append((name, tensor))
            change(tensor, step, alpha, self._inputs)

    def take_back(self) -> None:
        """Put back the original bits. An interrupt waits until all are back. Raises at the end what went wrong on the
        way."""
        failed: BaseException | None = None
        while self._changed or self._untied or self._taken:
            try:
                while self._changed:
                    self._restore(*self._changed[-1])
                    self._changed.pop()
                while self._untied:
                    slot, parameter = self._untied[-1]
                    slot.put(parameter)
                    self._untied.pop()
                _taken.difference_update(self._taken)
                self._taken.clear()
            except Exception as error:
                self._changed.pop()
                failed = failed or error
            except BaseException as error:  # an interrupt, wherever it came: the same again
                failed = error
        if failed is not None:
            raise failed

    def take(self, names: Collection[str]) -> None:
        """Raises UsageError where some other session holds a weight."""
        storages = {_storage(self._slots[name].tensor) for name in names if self._slots[name].tensor.numel()}
        if _taken & (storages - self._taken):
            raise UsageError(
                "an adapter is applied to these weights already: give all of them to one call, applied(model, [...]), "
                "or leave the block, or close() the sweep, that is still open"
            )
        self._taken |= storages
        _taken.update(storages)

    def _untie(self, name: str) -> None:
        """Give an end that is tied to another a parameter of its own."""
        slot = self._slots[name]
        tied = slot.tensor
        with plain_arithmetic(tied):
            own = nn.Parameter(tied.detach().clone(), requires_grad=tied.requires_grad)
        assert isinstance(tied, nn.Parameter)
        self._untied.append((slot, tied))
        slot.put(own)

    def _restore(self, name: str, tensor: torch.Tensor) -> None:
        original = self._originals.get(name, tensor)
        if original.dtype != tensor.dtype or original.shape != tensor.shape or self._slots[name].tensor is not tensor:
            raise MismatchError(
                f"{shown(name)} was replaced, or is {tensor.dtype} and no longer {original.dtype}, since the adapter "
                "was applied; it could not be restored: load the model again"
            )
        with plain_arithmetic(tensor):
            tensor.copy_(original)


@contextlib.contextmanager
def open_session(
    model: nn.Module,
    adapter: PathLike | Sequence[PathLike],
    weights: Sequence[Number] | None,
    reading: Reading,
    restore: str,
    base: PathLike | None,
) -> Iterator[Session]:
    """The arguments are those of `applied`. Nothing is changed yet; at the end all is taken back. Raises UsageError."""
    if restore not in ("copy", "recompute") or (base is None) is (restore == "recompute"):
        raise UsageError(f'restore is "copy", or "recompute" with base=PATH, not {restore!r} with base={base!r}')
    found = resolve_live(model, adapter, weights, reading)
    for note in found.notes:
        warnings.warn(note, stacklevel=7)
    with contextlib.ExitStack() as stack:
        inputs = stack.enter_context(Inputs(found.files))
        originals: Originals = Copies()
        if base is not None:
            touched = [name for name in found.edits if name not in found.apart]
            originals = from_base = FromBase(as_input(base, "base"), touched)
            stack.callback(from_base.close)
            stack.callback(from_base.check_unchanged)
        session = Session(found.held, found.edits, found.apart, originals, inputs)
        stack.callback(session.take_back)
        yield session


@dataclass(frozen=True, slots=True)
class Found:
    """What adapters do to a model in memory."""

    held: Model
    edits: Mapping[str, Sequence[Edit]]  # by tensor
    apart: Sequence[str]  # ends that are tied to others now, and must come apart
    files: Mapping[Path, Stamp]  # of the adapters
    notes: Sequence[str]


def resolve_live(
    model: nn.Module,
    adapter: PathLike | Sequence[PathLike],
    weights: Sequence[Number] | None,
    reading: Reading,
    *,
    mixed: bool = False,
) -> Found:
    """The edits of the adapters, as far as they change something. Raises what `applied` does; changes nothing."""
    paths = [adapter] if isinstance(adapter, str | os.PathLike) else list(adapter)
    numbers = _weights(paths, weights)
    held = open_model(model)
    base = held.subject.base
    with renaming(reading.renames) as own:
        adapters = [open_adapter(as_input(path, "adapter"), base, reading, own) for path in paths]
    edits, apart, notes = _edits(held, adapters, numbers, mixed=mixed)
    edits = {name: made for name, made in edits.items() if made}
    _refuse_special(held, {*edits, *apart})
    return Found(held, edits, apart, {path: stamp for one in adapters for path, stamp in one.files.items()}, notes)


def _weights(paths: Sequence[PathLike], weights: Sequence[Number] | None) -> list[float]:
    if not paths:
        raise UsageError("no adapter given")
    if weights is not None and len(weights) != len(paths):
        raise UsageError(f"{len(weights)} weights for {len(paths)} adapters; give one for each, or none at all")
    return [1.0] * len(paths) if weights is None else [float(decimal(weight, "weight")) for weight in weights]


def _edits(
    held: Model, adapters: Sequence[Adapter], weights: Sequence[float], *, mixed: bool
) -> tuple[dict[str, list[Edit]], list[str], list[str]]:
    """The edits by tensor, the ends that must come apart for them, and what a user should know."""
    subject = held.subject
    if not (subject.base.config or {})["_name_or_path"]:  # then there is nothing to compare with
        adapters = [replace(adapter, trained_on="") for adapter in adapters]
    edits, changes, notes = adapter_edits(subject, adapters, weights, mixed=mixed)
    if mixed:
        require_mixable(edits)
    if changes.head:
        raise UnsupportedError(
            f"an adapter brings the head of a {changes.head.architecture} with {changes.head.labels} labels; load the "
            "model as such"
        )
    if subject.padded:
        name, ref = next(iter(subject.padded.items()))
        raise UnsupportedError(
            f"{shown(name)} is to be padded to {by(ref.shape)}: no layer in memory grows; merge it, and load that"
        )
    if subject.resized:
        name, ref = next(iter(subject.resized.items()))
        raise UnsupportedError(
            f"{ref.path} resizes the vocabulary to {ref.shape[0]} rows; call model.resize_token_embeddings("
            f"{ref.shape[0]}) first, so that {shown(name)} has as many"
        )
    apart = [end for end, source in changes.apart.items() if edits.get(end, []) != edits.get(source, [])]
    for end in changes.apart.keys() - set(apart):  # changed like the one that it is tied to, and one tensor with it
        edits.pop(end, None)
    if shared := [end for end in apart if not isinstance(held.slots[end].tensor, nn.Parameter)]:
        raise UnsupportedError(f"{shown(shared[0])} is a buffer that shares its memory; it cannot be changed alone")
    return edits, apart, [note.replace(STORED_APART, "they are apart while the adapter is applied") for note in notes]


def _refuse_special(held: Model, touched: set[str]) -> None:
    """Raises UnsupportedError for weights that cannot be changed in place, or that others see as something else."""
    path = held.subject.base.path
    for name in touched:
        if why := why_not_plain(held.slots[name].tensor):
            raise UnsupportedError(f"{path}: {shown(name)} cannot be changed in memory: {why}")
    seen: dict[tuple[torch.device, int], list[str]] = {}
    for name, slot in held.slots.items():
        if not why_not_plain(slot.tensor) and slot.tensor.numel():
            seen.setdefault(_storage(slot.tensor), []).append(name)
    for names in seen.values():
        for name in touched.intersection(names):
            tensor = held.slots[name].tensor
            others = [held.slots[other].tensor for other in names]
            if any(_overlap(tensor, other) for other in others) or _extent(tensor) < tensor.numel():
                raise UnsupportedError(f"{path}: {shown(name)} shares a part of its memory with another tensor")


def _storage(tensor: torch.Tensor) -> tuple[torch.device, int]:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _extent(tensor: torch.Tensor) -> int:
    """Elements from the first to the last in memory."""
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors share memory without being the same."""
    if place_of(one) == place_of(other):
        return False
    begins = [tensor.data_ptr() for tensor in (one, other)]
    ends = [begin + _extent(t) * t.element_size() for begin, t in zip(begins, (one, other), strict=True)]
    return begins[0] < ends[1] and begins[1] < ends[0]
