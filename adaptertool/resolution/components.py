"""Names in adapters for image and video models -> tensors of a base that is made of several models, or is one of them.

An adapter says by a prefix which model it means, and may call the modules as the model's original repository does, as
diffusers does, or flat (architectures/flat.py). So names are found from the side of the base: among all that its
tensors are called (architectures/diffusion.py).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from adaptertool.architectures.clip import BEFORE, OPEN
from adaptertool.architectures.conversion import Part, Piece, Pieces
from adaptertool.architectures.diffusion import TEXTS, UNET, Component, components_of, relations_of
from adaptertool.architectures.flat import DOTTED, PREFIXES, by_flat_name
from adaptertool.architectures.relation import Relation, aliases
from adaptertool.architectures.unet import is_unet
from adaptertool.errors import MismatchError, UsageError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.resolution.names import Names
from adaptertool.resolution.prefix import Prefix
from adaptertool.spec.adapter import Adapter

_COMPONENTS = frozenset(filter(None, (*PREFIXES.values(), *DOTTED.values())))


class Spelled(NamedTuple):
    """A tensor of one of the models in two spellings, by its names in that.

    part: what diffusers calls the model
    path: the name that was asked for, without what it begins with
    ours: those of diffusers, or transformers, that it is, and which part of it each is; None: all of it, as it is
    original: that of the original repository, where that is just the same
    within: the one of the original repository that it is a part of, or all of with its halves swapped
    fused: the base stores the model as the original repository does, with several of the layers of diffusers' in one
    """

    part: str
    path: str
    ours: tuple[tuple[str, Part | None], ...]
    original: str | None
    within: Relation | None = None
    fused: bool = False


TRANSFORMER = "transformer"


def names_of(base: Checkpoint) -> Names:
    """What finds the tensors of a base that adapters name."""
    components = components_of(base.tensors, base.config, base.components, is_file=base.is_file)
    if components and base.gguf is None:
        return ComponentNames(tuple(base.tensors), components, str(base.path))
    return Names(tuple(base.tensors), base.config, base.gguf)


def without(adapter: Adapter, leave_out: Sequence[str]) -> Adapter:
    """The adapter without what it changes in models of a pipeline that are to be left out (text_encoder, unet, ...).
    What these are is noted. Raises UsageError where nothing would be left."""
    kept, notes, left = list(adapter.modules), list[str](), dict(adapter.left)
    for text in sorted({*_COMPONENTS, TRANSFORMER}.intersection(leave_out)):
        component = UNET if text == TRANSFORMER else text
        others = [module for module in kept if component not in {one for one, *_ in _readings(module.target)}]
        if count := len(kept) - len(others):
            notes.append(f"{adapter.path}: what it changes in {_said(component)} is left out: {count} modules")
            kept, left[text] = others, (text,)
    if adapter.modules and not kept:
        raise UsageError(f"{adapter.path} changes nothing but what is to be left out: {', '.join(left)}")
    return dataclasses.replace(adapter, modules=tuple(kept), notes=(*adapter.notes, *notes), left=left)


class ComponentNames(Names):
    """Finds the tensors of a base that is made of such models. Each has names of its own."""

    def __init__(self, on_disk: Sequence[str], components: Sequence[Component], base: str = "the base") -> None:
        super().__init__(on_disk, None)
        self._base = base
        self._models = [_Model(on_disk, component) for component in components]

    @property
    def notes(self) -> list[str]:
        """What to say of tensors that are no part of these models, and may be taken for one."""
        if not any(name.startswith("model_ema.") for name in self._disk):
            return []
        return [f"{self._base} holds averages of its weights (model_ema) too; adapters do not change these"]

    @property
    def ties_nothing(self) -> bool:
        """Whether no two tensors are one in memory. Of these models T5 has its embedding twice, in older checkpoints on
        the disk too."""
        return not any(name.endswith("encoder.embed_tokens.weight") for name in self._disk)

    def find_all(self, wanted: Sequence[tuple[str, bool]]) -> tuple[list[Pieces | None], Prefix | None]:
        """What is on the disk of an adapter's (name, saved whole?) pairs, None where there is nothing. No prefix is
        tried but those that say which model is meant. Raises MismatchError as `find` does, and where one model would be
        taken for several."""
        self._require_one_each(name for name, _ in wanted)
        return [self.find(name) for name, _ in wanted], None

    def _require_one_each(self, names: Iterable[str]) -> None:
        """Raises MismatchError where an adapter is for two models, and the base has one that may be either."""
        first = {means: name for name in names if name not in self._disk for means, *_ in _readings(name) if means}
        for model in self._models:
            if len(several := [means for means in model.means if means in first]) > 1:
                raise MismatchError(
                    f"{' and '.join(shown(first[means]) for means in several)} are for {' and '.join(several)}, and "
                    f"{self._base} has one of these. --leave-out does without the other"
                )

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
            apart = len({pieces[0].disk.partition(".")[0] for pieces in meant}) > 1
            alone = ", or give the folder of one model as the base" if apart else ""
            raise MismatchError(f"{shown(name)} can mean {', '.join(disks)}; say which with --rename{alone}")
        if not meant and lacking is not None:
            held = dict.fromkeys(means for model in self._models for means in model.means[:1])
            raise MismatchError(
                f"{shown(name)} is for {_said(lacking)}, which {self._base} is without; it has "
                f"{', '.join(map(_said, held))}. --leave-out {lacking} does without"
            )
        return next(iter(meant), None)

    def spelled(self, name: str) -> Spelled | None:
        """What a name means, in both spellings; None where it means nothing, or `find` says more than one thing."""
        for component, rest, flat in _readings(name):
            for model in self._models:
                meant = component is None or component in model.means
                if meant and (found := model.spelled(rest, flat=flat)) is not None:
                    return found
        return None


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
        return aliases(self._disk, self._relations)

    @functools.cached_property
    def _flat(self) -> Mapping[str, list[str]]:
        return by_flat_name(sorted(self._names.known.union(self._aliases)))

    def spelled(self, name: str, *, flat: bool) -> Spelled | None:
        """What a name means here, in both spellings."""
        path = next((one for one in (self._flat.get(name, ()) if flat else (name,)) if self._known(one)), None)
        if path is None:
            return None
        part = self.means[0] if self.means[0] != UNET or is_unet(self._disk) else TRANSFORMER
        named = [one for one in self._relations if one.ours == path]
        if named or (part in TEXTS and path in self._disk and not path.startswith(OPEN)):
            original = next((one.original for one in named if one.part is None), None)
            within = next((one for one in named if one.part is not None and not one.part.turned), None)
            return Spelled(part, path, ((path, None),), original, within, self._fused)
        ours = [one for one in self._relations if one.original == path]
        newest = [one for one in ours if f"{BEFORE}{one.ours}" not in {other.ours for other in ours}]
        whole = next(([one] for one in newest if one.part is None), newest)  # of several names for one, the usual
        return Spelled(
            part, path, tuple((one.ours, one.part) for one in whole) or ((path, None),), path, None, self._fused
        )

    @functools.cached_property
    def _fused(self) -> bool:
        return any(
            one.part is not None and not one.part.whole and one.original in self._disk for one in self._relations
        )

    def _known(self, path: str) -> bool:
        return path in self._aliases or self._names.find(path) is not None

    @functools.cached_property
    def _relations(self) -> Sequence[Relation]:
        return list(relations_of(self._disk, self._component.config))

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
