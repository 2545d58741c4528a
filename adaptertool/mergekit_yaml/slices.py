"""The slices of a configuration with their models, and the names of the tensors that each has."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.mergekit_yaml.forms import PLAIN
from adaptertool.mergekit_yaml.layers import counts, in_layer, stack_of
from adaptertool.mergekit_yaml.opened import FIRST, Models, Opened
from adaptertool.mergekit_yaml.parameters import Reader, Tensor, check_inputs, form_of
from adaptertool.mergekit_yaml.records import Config, Slice, Source
from adaptertool.resolution.nearest import nearest

_BUFFER = "rotary_emb.inv_freq"  # older files have it: what every loader computes from the config


class Part(NamedTuple):
    """A slice, with its models."""

    slice: Slice
    inputs: Sequence[Source]
    opened: Sequence[Opened]
    base: int | None  # the number among these; None: there is none, or it is an input like the others
    reader: Reader

    @property
    def anchor(self) -> int:
        """The number of the model that the changes of the others are of."""
        first = (number for number, one in enumerate(self.opened) if one.number == FIRST)
        return self.base if self.base is not None else next(first, 0)


class Layer(NamedTuple):
    """A layer of the output: of which slice, and where in it."""

    part: Part
    offset: int  # from the first layer of each source
    place: Fraction  # t


def parts_of(config: Config, models: Models) -> list[Part]:
    """The slices with their inputs; with `models` the base is one of them, as in mergekit. Raises InputError, with the
    line, for numbers of inputs that the method does not take."""
    form, found = form_of(config), []
    for one in config.slices:
        base = one.base or config.base
        if config.whole and base is not None and base not in [source.model for source in one.sources]:
            one = one._replace(sources=(*one.sources, Source(base, None, {}, one.at)))
        check_inputs(config, one, form)
        opened = [models.opened[source.model] for source in one.sources]
        names = [source.model for source in one.sources]
        number = names.index(base) if base in names and form.base != PLAIN else None
        if number is not None and opened[number].number != FIRST:
            why = "a model with an adapter: merge that first, and name what it makes"
            if opened[number].model.adapter is None:
                why = "another than the first base: a base for each slice is not supported"
            raise UnsupportedError(f"{one.at}: the base is {shown(base)}, {why}")
        found.append(Part(one, one.sources, opened, number, Reader(config, one, form, one.sources, number)))
    return found


def require_same_depths(part: Part) -> None:
    """Raises MismatchError for whole models that have not as many layers."""
    first, *others = [counts(one.tensors) for one in part.opened]
    for other, opened in zip(others, part.opened[1:], strict=True):
        if other != first:
            raise MismatchError(
                f"{opened.model} has {_depths(other)}, and {part.opened[0].model} {_depths(first)}: name the layers "
                "with slices"
            )


def _depths(stacks: Mapping[str, int]) -> str:
    return ", ".join(f"{count} layers" for count in stacks.values()) or "no layers"


def layers_of(parts: Sequence[Part]) -> Iterator[Layer]:
    """The layers of the output. Raises InputError where a model has not as many."""
    for part in parts:
        for source, opened in zip(part.inputs, part.opened, strict=True):
            assert source.layers is not None
            _, count = stack_of(opened.checkpoint)
            if source.layers.stop > count:
                raise InputError(
                    f"{source.at}: {shown(source.model)} has layers 0 to {count - 1}, and no layer "
                    f"{source.layers.stop - 1}"
                )
        length = len(part.inputs[0].layers or ())
        for offset in range(length):
            yield Layer(part, offset, Fraction(offset, length - 1) if length > 1 else Fraction(1))


def of_layer(layer: Layer, number: int) -> Iterator[Tensor]:
    """The tensors of a layer, as its first source has them. Raises MismatchError where another has others."""
    rests = []
    for source, opened in zip(layer.part.inputs, layer.part.opened, strict=True):
        assert source.layers is not None
        at = source.layers.start + layer.offset
        own = {}
        for name in opened.tensors:
            place = in_layer(name)
            if place is not None and place.number == at:
                own[place.front + "*" + place.rest] = (place, name)
        rests.append(own)
    for key in _in_all(layer.part, rests):
        place, _ = rests[0][key]
        yield Tensor(place.at(number), [own[key][1] for own in rests], layer.place)


def outside(part: Part) -> list[str]:
    """The names of tensors that are in no layer."""
    return [name for name in names_in(part) if in_layer(name) is None]


def names_in(part: Part) -> list[str]:
    """The names that all have. A tied end counts where at least one stores it."""
    stored = frozenset[str]().union(*(one.stored for one in part.opened))
    wanted = [{name: None for name in one.tensors if name in stored} for one in part.opened]
    return _in_all(part, wanted)


def _in_all(part: Part, wanted: Sequence[Mapping[str, object]]) -> list[str]:
    """The names that each has. Raises MismatchError for those that just some have, unless loaders compute them."""
    every = dict.fromkeys(itertools.chain.from_iterable(wanted))
    for one, opened in zip(wanted, part.opened, strict=True):
        for name in [name for name in every if name not in one]:
            if name.endswith(_BUFFER):
                del every[name]
                continue
            near = nearest(name, one)
            hint = f"; nearest: {', '.join(map(shown, near))}" if near else ""
            raise MismatchError(
                f"{part.slice.at}: {shown(opened.model)} has no tensor {shown(name)}, which another model has{hint}"
            )
    return list(every)
