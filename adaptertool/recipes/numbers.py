"""The numbers of a recipe, by their places, and the same recipe with others: what a sweep goes over.

A place is the step, its field, and for a list the position, all from 0: `steps.1.weights.0`. A step is called by its
name too, `both.weights.0`, and may be left out where only one step has such a number; the command may stand between, as
in the file: `steps.1.merge.weights.0`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal, localcontext

from adaptertool.arguments import Number, decimal, parse_numbers
from adaptertool.errors import UsageError, argument, shown
from adaptertool.recipes.fields import FLAG, PATH, WHOLE, Field
from adaptertool.recipes.read import STEPS, Recipe, Step, Value
from adaptertool.records import dataclass
from adaptertool.resolution.nearest import nearest

MAX_POINTS = 1000  # of a grid
_FEWEST = 10**-12  # below, and from 10¹⁵ on, numbers are written with an exponent
_LISTED = 20  # places that an error names

Sweep = Mapping[str, Number | Sequence[Number]]
Point = tuple[str, ...]  # a number for each place, as its text


@dataclass(frozen=True, slots=True)
class Place:
    """Where a number stands in a recipe."""

    step: int
    field: Field
    position: int | None  # in a list
    own: str  # the number that stands there
    short: bool = False  # a list of one, which may stand without a list: its position may be left out

    @property
    def tails(self) -> list[list[str]]:
        """What it is called behind the step."""
        whole = [self.field.name, *([] if self.position is None else [str(self.position)])]
        return [whole, *([[self.field.name]] if self.short else [])]


@dataclass(frozen=True, slots=True)
class Axis:
    """A number of the recipe, and the values that it is to have. name: how its place is called in all that is told."""

    name: str
    place: Place
    values: Point


def axes_of(recipe: Recipe, sweep: Sweep) -> tuple[Axis, ...]:
    """What a sweep goes over. Raises UsageError for places that the recipe has not, or that hold no number, and for
    values that are none."""
    if not sweep:
        raise UsageError("a sweep goes over one number of the recipe at least")
    places, axes = dict(_places(recipe)), list[Axis]()
    for typed, values in sweep.items():
        name = _found(typed, recipe, places)
        place = places[name]
        if known := next((axis for axis in axes if axis.place == place), None):
            raise UsageError(f"{shown(typed)} is {known.name}, which is swept already; give all its values in one")
        called = f"value of {shown(typed)}"
        exact = parse_numbers(values, shown(typed), called)
        if place.field.kind == WHOLE and (split := next((one for one in exact if one != int(one)), None)) is not None:
            raise UsageError(f"{shown(typed)} is a whole number, not {split}")
        axes.append(Axis(name, place, tuple(map(text_of, exact))))
    return tuple(axes)


def require_few(axes: Sequence[Axis]) -> None:
    """Raise UsageError for a grid of too many points."""
    count = 1
    for axis in axes:
        count *= len(axis.values)
    if count > MAX_POINTS:
        product = " × ".join(f"{len(axis.values)} of {axis.name}" for axis in axes)
        raise UsageError(
            f"this grid has {count:,} points ({product}), and {MAX_POINTS:,} is the limit: give fewer values, or "
            f"{argument('search')} coordinate, which scores one number at a time"
        )


def text_of(number: Decimal) -> str:
    """The one text of a number: 0.5 for 0.50 too."""
    with localcontext() as context:
        context.prec = max(len(number.as_tuple().digits), 1)
        short = number.normalize()
    return f"{short:f}" if not short or _FEWEST <= abs(short) < 10**15 else str(short)


def start_of(axes: Sequence[Axis]) -> Point:
    """The numbers that the recipe itself has."""
    return tuple(text_of(Decimal(axis.place.own)) for axis in axes)


def with_numbers(recipe: Recipe, axes: Sequence[Axis], point: Point) -> Recipe:
    """The recipe with other numbers in the places of a sweep."""
    steps = list(recipe.steps)
    for axis, text in zip(axes, point, strict=True):
        step, name = steps[axis.place.step], axis.place.field.name
        value = step.values[name]
        if axis.place.position is not None:
            assert isinstance(value, tuple)
            value = (*value[: axis.place.position], text, *value[axis.place.position + 1 :])
        else:
            value = text
        steps[axis.place.step] = dataclasses.replace(step, values={**step.values, name: value})
    return dataclasses.replace(recipe, steps=tuple(steps))


def _places(recipe: Recipe) -> Iterator[tuple[str, Place]]:
    """All numbers of a recipe, by the names of their places."""
    for number, step in enumerate(recipe.steps):
        above = "" if len(recipe.steps) == 1 else f"{step.name}." if step.name else f"{STEPS}.{number}."
        for name, value in step.values.items():
            field = step.command.fields[name]
            short = field.alone and len(value) == 1 if isinstance(value, tuple) else False
            for position, text in _numbers(field, value):
                tail = name if position is None or short else f"{name}.{position}"
                yield f"{above}{tail}", Place(number, field, position, text, short)


def _numbers(field: Field, value: Value) -> Iterator[tuple[int | None, str]]:
    if field.kind in (FLAG, PATH) or field.choices or isinstance(value, bool):
        return
    listed = [(None, value)] if isinstance(value, str) else list(enumerate(value))
    yield from ((position, text) for position, text in listed if _is_number(text))


def _is_number(text: str) -> bool:
    try:
        decimal(text, "")
    except UsageError:
        return False
    return True


def _found(typed: str, recipe: Recipe, places: Mapping[str, Place]) -> str:
    """The name of a place, as it may be typed. Raises UsageError."""
    parts = typed.split(".")
    steps = _steps_meant(parts, recipe)
    rest = {number: tail for number, tail in steps.items() if tail}
    found = [name for name, place in places.items() if rest.get(place.step) in place.tails]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{shown(typed)} is a number of several steps: say which, {' or '.join(found)}")
    for number, tail in rest.items():
        step = recipe.steps[number]
        if wrong := _no_number(step, tail):
            raise UsageError(f"{shown(typed)} {wrong}; {_hint(typed, places)}")
        if len(rest) == 1 and tail[0] in step.command.fields and tail[0] not in step.values:
            raise UsageError(
                f"the recipe has no number {shown(typed)}: {step.command.name} at {step.at} has no `{tail[0]}`; write "
                "it there first, then sweep it"
            )
    if not places and any(step.command.name == "mergekit" for step in recipe.steps):
        raise UsageError(
            f"the recipe has no number {shown(typed)}; those in a configuration of mergekit cannot be swept: say the "
            "same as a `merge` step of a recipe, whose numbers can"
        )
    raise UsageError(f"the recipe has no number {shown(typed)}; {_hint(typed, places)}")


def _steps_meant(parts: Sequence[str], recipe: Recipe) -> dict[int, list[str]]:
    """The numbers of the steps that a path may mean, each with the rest of the path."""
    every = range(len(recipe.steps))
    names = {step.name: number for number, step in enumerate(recipe.steps) if step.name}
    meant = {number: list(parts) for number in every}
    if parts[0] == STEPS and len(parts) > 1:
        meant = {number: list(parts[2:]) for number in every if parts[1] == str(number)}
    else:
        # A name may have dots itself
        named = [(name, name.split(".")) for name in names]
        meant = {names[name]: list(parts[len(own) :]) for name, own in named if list(parts[: len(own)]) == own} or meant
    return {
        number: tail[1:] if tail and tail[0] == recipe.steps[number].command.name else tail
        for number, tail in meant.items()
    }


def _no_number(step: Step, tail: Sequence[str]) -> str:
    """Why what stands at a place is no number; empty where nothing stands there."""
    name, *more = tail
    if name not in step.values:
        return ""
    value, at = step.values[name], step.places.get(name, step.at)
    if isinstance(value, tuple):
        if not more:
            return f"is a list, at {at}: say which of its {len(value)} values, {name}.0 is the first"
        if len(more) > 1 or not more[0].isascii() or not more[0].isdecimal() or int(more[0]) >= len(value):
            return f"is none of the {len(value)} values at {at}, which are counted from 0"
        value = value[int(more[0])]
    elif more:
        return f"is no list, at {at}"
    said = {True: "true", False: "false"}[value] if isinstance(value, bool) else value
    return f"is no number: at {at} stands {shown(said)!r}"


def _hint(typed: str, places: Mapping[str, Place]) -> str:
    if not places:
        return "it has no numbers; one that is to be swept is written into it first"
    if near := nearest(typed, places):
        return f"did you mean {' or '.join(near)}?"
    more = f", and {len(places) - _LISTED} more" if len(places) > _LISTED else ""
    return f"its numbers are {', '.join(list(places)[:_LISTED])}{more}"
