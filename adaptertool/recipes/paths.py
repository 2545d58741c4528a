"""Where the paths of a recipe lead: to files beside the recipe, to what other steps make, to stores and the hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptertool.files.address import address
from adaptertool.files.hub import find
from adaptertool.recipes.fields import PATH, Field
from adaptertool.recipes.read import OUT, TAKEN, Recipe, Step, Value


def beside(folder: Path, text: str) -> str:
    """A path of a recipe, from here; addresses in stores, and names that the hub's cache has, stay as they are. Raises
    what `address` and `find` raise."""
    if Path(text).is_absolute() or address(text, "a path of the recipe"):
        return text
    joined = os.path.normpath(folder / text)
    if not os.path.lexists(joined) and find(text) is not None:
        return text
    return joined


class Outputs:
    """What steps make: by the name of the step, and by the path that its `out` is typed as."""

    def __init__(self, recipe: Recipe) -> None:
        self._folder = recipe.folder
        self._typed = {str(step.values[OUT]): number for number, step in enumerate(recipe.steps) if OUT in step.values}
        self._named = {step.name: number for number, step in enumerate(recipe.steps) if step.name}

    def maker(self, text: str, before: int) -> tuple[int, str] | None:
        """The number of the step that makes what a path leads to, among the first `before`, and the rest of the path;
        None where none does."""
        if found := TAKEN.fullmatch(text):
            return self._named[found[1]], found[2]
        for typed, number in self._typed.items():
            if number < before and (text == typed or text.startswith(f"{typed}/")):
                return number, text[len(typed) :]
        return None

    def path(self, text: str, before: int, made: Mapping[int, str]) -> str:
        """Where a path of a recipe leads. made: by the numbers of steps, where their outputs are"""
        found = self.maker(text, before)
        return beside(self._folder, text) if found is None else made[found[0]] + found[1]

    def needs(self, step: Step, number: int) -> set[int]:
        """The numbers of the steps whose outputs a step takes."""
        found = (self.maker(text, number) for _, text in step.paths())
        return {one[0] for one in found if one is not None}

    def located(self, step: Step, number: int, made: Mapping[int, str]) -> dict[str, Value]:
        """The values of a step, with paths as they are from here; without its OUT."""

        def lead(field: Field, text: str) -> str:
            if field.kind == PATH:
                return self.path(text, number, made)
            if field.name == "leave_out" and os.path.lexists(self._folder / text):  # a file, and no regex
                return beside(self._folder, text)
            return text

        located: dict[str, Value] = {}
        for name, value in step.values.items():
            field = step.command.fields[name]
            if name != OUT:
                located[name] = value if isinstance(value, bool) else _each(value, lambda text, f=field: lead(f, text))
        return located


def _each(value: str | tuple[str, ...], change: object) -> Value:
    assert callable(change)
    return change(value) if isinstance(value, str) else tuple(map(change, value))


def words(step: Step, values: Mapping[str, Value]) -> list[str]:
    """The command line of a step: its options, and then its arguments."""
    options, arguments = list[str](), list[str]()
    for name, field in step.command.fields.items():
        if name not in values:
            continue
        value = values[name]
        if isinstance(value, bool):
            options += [field.option] if value else [field.negative] if field.negative else []
            continue
        texts: Sequence[str] = (value,) if isinstance(value, str) else value
        if not field.option:
            arguments += texts
        elif field.count not in (1, None):
            options += [field.option, *texts]
        else:
            options += [f"{field.option}={text}" for text in texts]
    return [*options, "--", *arguments]
