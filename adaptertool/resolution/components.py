"""Names in adapters for image and video models -> tensors of a base that is made of several models, or is one of them.

An adapter says by a prefix which model it means, and may call the modules as the model's original repository does, as
diffusers does, or flat (architectures/flat.py). So names are found from the side of the base: among all that its
tensors are called (architectures/diffusion.py).
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence

from adaptertool.architectures.conversion import Piece, Pieces
from adaptertool.architectures.diffusion import Component, components_of, relations_of
from adaptertool.architectures.flat import DOTTED, PREFIXES, by_flat_name
from adaptertool.architectures.relation import aliases
from adaptertool.errors import MismatchError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.resolution.names import Names
from adaptertool.resolution.prefix import Prefix


def names_of(base: Checkpoint) -> Names:
    """What finds the tensors of a base that adapters name."""
    if components := components_of(base.tensors, base.config, base.components, is_file=base.is_file):
        return ComponentNames(tuple(base.tensors), components)
    return Names(tuple(base.tensors), base.config, base.gguf)


class ComponentNames(Names):
    """Finds the tensors of a base that is made of such models. Each has names of its own."""

    def __init__(self, on_disk: Sequence[str], components: Sequence[Component]) -> None:
        super().__init__(on_disk, None)
        self._models = [_Model(on_disk, component) for component in components]

    @property
    def ties_nothing(self) -> bool:
        """Whether no two tensors are one in memory. Of these models T5 has its embedding twice, in older checkpoints on
        the disk too."""
        return not any(name.endswith("encoder.embed_tokens.weight") for name in self._disk)

    def find_all(self, wanted: Sequence[tuple[str, bool]]) -> tuple[list[Pieces | None], Prefix | None]:
        """What is on the disk of an adapter's (name, saved whole?) pairs, None where there is nothing. No prefix is
        tried but those that say which model is meant. Raises MismatchError as `find` does."""
        return [self.find(name) for name, _ in wanted], None

    def find(self, name: str) -> Pieces | None:
        """The pieces that a name means. Raises MismatchError where it could be several, or is of a model that the base
        is without."""
        if name in self._disk:
            return (Piece(name),)
        meant, lacking = set[Pieces](), None
        for component, rest, flat in _readings(name):
            models = [model for model in self._models if component is None or component in model.means]
            lacking = component if not models else lacking
            meant |= {pieces for model in models for pieces in model.find(rest, flat=flat)}
        if len(meant) > 1:
            disks = sorted({" + ".join(shown(piece.disk) for piece in pieces) for pieces in meant})
            raise MismatchError(f"{shown(name)} can mean {', '.join(disks)}; say which with --rename")
        if not meant and lacking is not None:
            held = dict.fromkeys(means for model in self._models for means in model.means[:1])
            raise MismatchError(
                f"{shown(name)} is for {_said(lacking)}, which the base is without; it has "
                f"{', '.join(map(_said, held))}"
            )
        return next(iter(meant), None)


class _Model:
    """One of them: what its tensors are called, without the prefix that they have in the base."""

    def __init__(self, on_disk: Sequence[str], component: Component) -> None:
        self.means, self._component = component.means, component
        self._on_disk = on_disk

    @functools.cached_property
    def _disk(self) -> Collection[str]:
        prefix = self._component.prefix
        return {name.removeprefix(prefix): None for name in self._on_disk if name.startswith(prefix)}.keys()

    @functools.cached_property
    def _names(self) -> Names:
        return Names(tuple(self._disk), self._component.config)

    @functools.cached_property
    def _aliases(self) -> Mapping[str, set[Pieces]]:
        return aliases(self._disk, relations_of(self._disk, self._component.config))

    @functools.cached_property
    def _flat(self) -> Mapping[str, list[str]]:
        return by_flat_name(sorted(self._names.known.union(self._aliases)))

    def find(self, name: str, *, flat: bool) -> Iterator[Pieces]:
        """What a name may mean here."""
        for path in self._flat.get(name, ()) if flat else (name,):
            own = self._names.find(path)
            for pieces in self._aliases.get(path, set()).union([own] if own else []):
                yield tuple(piece._replace(disk=self._component.prefix + piece.disk) for piece in pieces)


def _readings(name: str) -> Iterator[tuple[str | None, str, bool]]:
    """What a name may say: (which model, None for any; what it calls the tensor; whether that is flat)."""
    is_flat = "." not in name.rpartition(".")[0]
    prefix = next((one for one in PREFIXES if is_flat and name.startswith(one)), None)
    if prefix is not None:
        yield PREFIXES[prefix], name.removeprefix(prefix), True
        return
    prefix = next((one for one in DOTTED if name.startswith(one)), None)
    if prefix is not None:
        yield DOTTED[prefix], name.removeprefix(prefix), False
    yield None, name, False


def _said(component: str) -> str:
    return "the denoiser (unet, transformer)" if component == "unet" else component
