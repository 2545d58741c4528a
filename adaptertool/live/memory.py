"""A model in memory as the rest of the program sees a checkpoint: names, dtypes, shapes, and what is tied to what."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adaptertool.architectures.conversion import Memory, Part, Piece, Pieces, into_memory, rules_for
from adaptertool.architectures.traits import Traits, read_traits
from adaptertool.errors import UnsupportedError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.live import wrapped
from adaptertool.records import dataclass, field
from adaptertool.resolution.names import Names
from adaptertool.resolution.resolve import Base
from adaptertool.resolution.ties import FLAG
from adaptertool.spec.tensors import Ref, TensorSpec

DTYPES = {
    torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64", torch.bool: "BOOL",
    torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32", torch.int64: "I64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
_PLAIN = (torch.Tensor, nn.Parameter)


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a module holds a tensor."""

    module: nn.Module
    key: str

    @property
    def tensor(self) -> torch.Tensor:
        parameter = self.module._parameters.get(self.key)
        held = self.module._buffers[self.key] if parameter is None else parameter
        assert held is not None
        return held

    def put(self, parameter: nn.Parameter) -> None:
        self.module._parameters[self.key] = parameter


@dataclass(frozen=True, slots=True)
class Model:
    """What adapters are resolved against, and where each of its tensors is held."""

    subject: Base
    slots: Mapping[str, Slot]


@dataclass(frozen=True, slots=True)
class LiveTraits(Traits):
    """The traits of a model in memory, whose layers tell which weights are stored transposed."""

    turned: Mapping[str, bool] = field(default_factory=dict)

    def may_transpose(self, ref: Ref) -> bool:
        known = self.turned.get(ref.spec.name)
        return Traits.may_transpose(self, ref) if known is None else known

    def is_transposed(self, ref: Ref, *, claimed: bool) -> bool:
        known = self.turned.get(ref.spec.name)
        return Traits.is_transposed(self, ref, claimed=claimed) if known is None else known


class LiveNames(Names):
    """Finds the tensors in memory that names mean. Adapters from before transformers 5 name some as on the disk."""

    def __init__(self, held: Mapping[str, Slot], aliases: Mapping[str, str], config: Mapping[str, Any]) -> None:
        super().__init__(tuple(held), config)
        self._memory = Memory((), ())  # nothing is renamed any more
        self._aliases = aliases

    def find(self, name: str) -> Pieces | None:
        name = self._aliases.get(name, name)
        return self._as_named(name) or self._loaded(name) or super().find(name)

    def _loaded(self, name: str) -> Pieces | None:
        """What became, on loading, of a tensor that is called so on the disk. Single experts are found elsewhere."""
        loaded = into_memory(self._rules, name)
        if not all(memory in self._disk and piece.expert is None for memory, piece in loaded):
            return None
        if len(loaded) > 1:  # cut into several
            return tuple(Piece(memory, part, len(loaded)) for part, (memory, _) in enumerate(loaded))
        ((memory, piece),) = loaded
        return (Piece(memory) if piece.part is None else Piece(memory, cut=Part(piece.part, piece.parts)),)


def open_model(model: nn.Module) -> Model:
    """Reads names, dtypes and shapes; changes nothing. Raises UnsupportedError where PEFT's own adapters act."""
    wrapped.refuse_active(model)
    root = wrapped.base_of(model)
    slots, aliases = _slots(root)
    config = _config(root)
    path = Path(f"the model ({type(root).__name__})")
    refs = {name: _ref(path, name, slot.tensor) for name, slot in slots.items()}
    ends = _ends(slots)
    stored = {name: ref for name, ref in refs.items() if name not in ends}
    base = Checkpoint(path, (), stored, config, (), ())
    traits = read_traits(base, ties_known=True)
    fields = {field.name: getattr(traits, field.name) for field in dataclasses.fields(traits)}
    live = LiveTraits(**fields, turned={name: turned for name, slot in slots.items() for turned in _turned(slot)})
    return Model(Base(base, LiveNames(slots, aliases, config), live, ends, refs), slots)


def _slots(root: nn.Module) -> tuple[dict[str, Slot], dict[str, str]]:
    """The tensors of the model below PEFT's wrappers by name; and other names of them, where modules are shared."""
    slots: dict[str, Slot] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[int, str], str] = {}
    for path, module in _modules(root, "", frozenset()):
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or nn.parameter.is_lazy(tensor):
                continue
            name = f"{path}.{key}" if path else key
            known = first.setdefault((id(module), key), name)
            if known == name:
                slots[name] = Slot(module, key)
            else:
                aliases[name] = known
    return slots, aliases


def _modules(module: nn.Module, path: str, above: frozenset[int]) -> Iterator[tuple[str, nn.Module]]:
    """The modules of the model itself, by the names that they had before PEFT and torch.compile wrapped them."""
    wraps = wrapped.is_layer(module) or wrapped.is_saved(module)
    if not wraps:
        yield path, module
    for name, child in module._modules.items():
        if child is None or id(child) in above or (wraps and name not in wrapped.INNER):
            continue
        inner = path if wraps or name == "_orig_mod" else f"{path}.{name}" if path else name
        yield from _modules(child, inner, above | {id(module)})


def _ref(path: Path, name: str, tensor: torch.Tensor) -> Ref:
    dtype = DTYPES.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
    return Ref(path, 0, TensorSpec(name, dtype, tuple(tensor.shape), tensor.numel() * tensor.element_size()))


def _config(root: nn.Module) -> dict[str, Any]:
    """What the model says of itself. What is tied is seen in memory, whatever a flag says."""
    config = getattr(root, "config", None)
    read = getattr(config, "to_dict", None)
    fields = read() if callable(read) else config
    fields = _without_flag(fields) if isinstance(fields, dict) else {}
    fields |= {FLAG: False, "_name_or_path": getattr(config, "_name_or_path", None)}
    try:
        rules_for(type(root).__name__)
    except UnsupportedError:  # its names on the disk are not known; those in memory are
        return fields | {"architectures": None}
    return fields | {"architectures": [type(root).__name__]}


def _without_flag(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_flag(part) for key, part in value.items() if isinstance(key, str) and key != FLAG}
    return [_without_flag(part) for part in value] if isinstance(value, list) else value


def _ends(slots: Mapping[str, Slot]) -> dict[str, str]:
    """Tensors that are the same memory as one before them -> that one."""
    first: dict[object, str] = {}
    ends = {}
    for name, slot in slots.items():
        known = first.setdefault(place_of(slot.tensor), name)
        if known != name:
            ends[name] = known
    return ends


def place_of(tensor: torch.Tensor) -> object:
    """What two tensors have in common that are the same memory; of those without an address the object."""
    if why_not_plain(tensor) or not tensor.numel():
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def why_not_plain(tensor: torch.Tensor) -> str | None:
    """Why the numbers of a tensor cannot be changed in place; None where they can."""
    kinds = {kind.__name__ for kind in type(tensor).__mro__}
    if "DTensor" in kinds:
        return "it is sharded (DTensor): gather the model first, or merge the checkpoint"
    if tensor.is_meta:
        return "it holds no numbers (device meta): it is offloaded, or was never loaded"
    if tensor.layout != torch.strided:
        return f"its layout is {tensor.layout}"
    if not (type(tensor) in _PLAIN or (isinstance(tensor, nn.Parameter) and type(tensor.data) is torch.Tensor)):
        return f"it is a {type(tensor).__name__}, quantised or with a meaning of its own"
    return None


def _turned(slot: Slot) -> Iterator[bool]:
    """Whether the weight of a layer is stored transposed, for layers that tell."""
    if slot.key == "weight" and any(kind.__name__ == "Conv1D" for kind in type(slot.module).__mro__):
        yield True  # of transformers; not torch's Conv1d
    elif slot.key == "weight" and isinstance(slot.module, nn.Linear):
        yield False
