"""A recipe, read strictly: every field is one of the command's, each value of its type, and each `${name}` an earlier
step's output. What is wrong is told with file, line and column, and with the names that are near.

    steps:
      - name: both                  # a later step takes what this one makes as ${both}
        sum:
          adapters: [style, facts]
          weights: [0.5, 1]
      - merge:
          base: org/model
          adapters: ["${both}"]
          out: merged

A recipe of one step may leave `steps` out. A step without `out` is temporary.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from adaptertool.errors import InputError, shown
from adaptertool.files.yamlfile import At, Items, Node, Scalar, Table, load_yaml
from adaptertool.patterns import regex
from adaptertool.recipes.fields import FLAG, NUMBER, PATH, WHOLE, Command, Commands, Field
from adaptertool.resolution.nearest import nearest

SCHEMA = "recipe/1"
STEPS, NAME, OUT = "steps", "name", "out"
_NAMED = regex(r"[A-Za-z][\w.-]*", re.ASCII)
TAKEN = regex(r"\$\{([^{}]*)\}(.*)", re.DOTALL)  # what a step makes, and a path within
# Only these are read as a recipe of ours; files of other tools have others (mergekit: merge_method, models, slices)
_ABOVE = ("schema", STEPS, NAME)

Value = str | tuple[str, ...] | bool  # texts as typed; bool for a flag


@dataclass(frozen=True, slots=True)
class Step:
    """A step, of which every value is of its type."""

    command: Command
    name: str  # "" where it has none
    values: Mapping[str, Value]  # by the names of fields, in the order of the recipe
    places: Mapping[str, At]  # where each stands
    at: At

    @property
    def takes(self) -> tuple[str, ...]:
        """The names of the steps whose outputs it takes."""
        found = [found[1] for _, text in self.paths() if (found := TAKEN.fullmatch(text))]
        return tuple(dict.fromkeys(found))

    def paths(self) -> Iterator[tuple[str, str]]:
        """The fields that are paths, with each of their values; but for OUT."""
        for name, value in self.values.items():
            if name != OUT and self.command.fields[name].kind == PATH:
                for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
                    yield name, text


@dataclass(frozen=True, slots=True)
class Recipe:
    """Steps in their order. folder: what paths are relative to."""

    file: str
    folder: Path
    steps: tuple[Step, ...]


def load_recipe(path: Path, commands: Commands) -> Recipe:
    """The recipe in a file. Raises InputError."""
    documents = load_yaml(path)
    if len(documents) != 1:
        what = "holds nothing" if not documents else f"holds {len(documents)} documents, and a recipe is one"
        raise InputError(f"{path} {what}")
    return read_recipe(documents[0], str(path), path.parent, commands)


def read_recipe(node: Node, file: str, folder: Path, commands: Commands) -> Recipe:
    """The recipe that a document is. Raises InputError."""
    if not isinstance(node, Table):
        raise InputError(f"{node.at}: a recipe is a map with `{STEPS}`, a list of commands")
    _require_known(node, (*_ABOVE, *commands), "a recipe")
    if STEPS not in node.entries:
        steps: tuple[Step, ...] = (_step(_without(node, "schema"), commands),)
    else:
        if other := next((entry for name, entry in node.entries.items() if name not in ("schema", STEPS)), None):
            raise InputError(f"{other.key.at}: {shown(other.key.text)} stands beside `{STEPS}`; put it into a step")
        listed = node.entries[STEPS].value
        if not isinstance(listed, Items) or not listed.items:
            raise InputError(f"{listed.at}: `{STEPS}` is a list of at least one step")
        steps = tuple(_step(one, commands) for one in listed.items)
    if (schema := node.entries.get("schema")) and _text(schema.value, "schema") != SCHEMA:
        raise InputError(f"{schema.value.at}: the schema of a recipe is {SCHEMA}")
    _check_names(steps)
    return Recipe(file, folder, steps)


def _without(node: Table, name: str) -> Table:
    return Table({key: entry for key, entry in node.entries.items() if key != name}, node.at)


def _require_known(node: Table, known: Collection[str], what: str) -> None:
    for entry in node.entries.values():
        if entry.key.text not in known:
            _unknown(entry.key, known, what)


def _unknown(key: Scalar, known: Collection[str], what: str) -> NoReturn:
    text = key.text.replace("-", "_")
    near = [text] if text in known else [f"{text}s"] if f"{text}s" in known else nearest(text, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(known))}"
    raise InputError(f"{key.at}: {what} has no field {shown(key.text)!r}; {hint}")


def _step(node: Node, commands: Commands) -> Step:
    if not isinstance(node, Table):
        raise InputError(f"{node.at}: a step is a map with the name of a command: `merge:`, and below it its fields")
    _require_known(node, (NAME, *commands), "a step")
    chosen = [entry for name, entry in node.entries.items() if name in commands]
    if len(chosen) != 1:
        what = "names no command" if not chosen else f"is {' and '.join(one.key.text for one in chosen)} at once"
        raise InputError(f"{node.at}: this step {what}; a step is one of {', '.join(sorted(commands))}")
    name, command = "", commands[chosen[0].key.text]
    if entry := node.entries.get(NAME):
        name = _text(entry.value, NAME)
        if not _NAMED.fullmatch(name):
            raise InputError(f"{entry.value.at}: a name of a step begins with a letter, and has letters, digits, _ . -")
    given = chosen[0].value
    if not isinstance(given, Table):
        raise InputError(f"{given.at}: {command.name} is followed by a map of its fields, such as {_some(command)}")
    _require_known(given, command.fields, command.name)
    values = {key: _value(entry.value, command.fields[key]) for key, entry in given.entries.items()}
    for field in command.fields.values():
        if field.required and field.name not in values and field.name != OUT:
            raise InputError(f"{chosen[0].key.at}: {command.name} needs `{field.name}`: {field.help or 'a path'}")
    places = {key: entry.value.at for key, entry in given.entries.items()}
    return Step(command, name, values, places, chosen[0].key.at)


def _some(command: Command) -> str:
    return ", ".join(f"`{field.name}:`" for field in command.fields.values() if field.required) or "`out:`"


def _value(node: Node, field: Field) -> Value:
    """What is given for a field. Raises InputError for what is not of its type."""
    if field.count == 1 and not (field.listed and isinstance(node, Items)):
        return _one(node, field)
    if field.alone and not isinstance(node, Items):
        return (str(_one(node, field)),)
    if not isinstance(node, Items):
        many = "a list" if field.count is None else f"a list of {field.count}"
        raise InputError(f"{node.at}: `{field.name}` is {many}, also where there is one value: [...]")
    if field.count not in (None, 1, len(node.items)):
        raise InputError(f"{node.at}: `{field.name}` has {field.count} values, not {len(node.items)}")
    texts = tuple(str(_one(one, field)) for one in node.items)
    if field.required and not texts:
        raise InputError(f"{node.at}: `{field.name}` has at least one value")
    return ",".join(texts) if field.listed else texts


def _one(node: Node, field: Field) -> str | bool:
    if not isinstance(node, Scalar):
        what = "a list" if isinstance(node, Items) else "a map"
        raise InputError(f"{node.at}: `{field.name}` is one value, not {what}")
    if field.kind == FLAG:
        if node.truth is None:
            raise InputError(f"{node.at}: `{field.name}` is true or false, not {shown(node.text)!r}")
        return node.truth
    text = _text(node, field.name)
    if field.kind != PATH and node.like_a_number:
        raise InputError(
            f"{node.at}: {shown(text)} is a number in some dialects of YAML, and in others none; write it in plain "
            "decimal digits (0.001, 1e-3), or quote it where it is to be text"
        )
    if field.kind in (PATH,) and node.truth is not None:
        raise InputError(f"{node.at}: `{field.name}` is a path, and this is true or false; quote it if it is a name")
    if field.kind in (WHOLE, NUMBER) and (
        node.number is None or (field.kind == WHOLE and not re.fullmatch("[-+]?[0-9]+", text))
    ):
        what = "a whole number" if field.kind == WHOLE else "a number"
        raise InputError(f"{node.at}: `{field.name}` is {what}, not {shown(text)!r}")
    number = node.number
    if number is not None and not (
        (field.least is None or number >= field.least) and (field.most is None or number <= field.most)
    ):
        ends = f"from {field.least} on" if field.most is None else f"from {field.least} to {field.most}"
        raise InputError(f"{node.at}: `{field.name}` is a whole number {ends}, not {shown(text)}")
    if field.choices and text not in field.choices:
        near = nearest(text, field.choices)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{node.at}: `{field.name}` is {', '.join(field.choices)}, not {shown(text)!r}{hint}")
    return text


def _text(node: Node, what: str) -> str:
    if not isinstance(node, Scalar):
        raise InputError(f"{node.at}: `{what}` is text")
    if node.is_null or not node.text:
        raise InputError(f"{node.at}: `{what}` has no value; give one, or leave the field out")
    return node.text


def _check_names(steps: tuple[Step, ...]) -> None:
    """Raises InputError for names that stand twice, and for outputs that no earlier step makes, or nobody takes."""
    known: dict[str, Step] = {}
    every = {step.name: step for step in steps if step.name}
    used = {name for step in steps for name in step.takes}
    for step in steps:
        for field, text in step.paths():
            found = TAKEN.fullmatch(text)
            if found is None:
                if "${" in text:
                    raise InputError(
                        f"{step.places[field]}: ${{NAME}} stands at the beginning of a path: {shown(text)}"
                    )
                continue
            _check_taken(step, field, found, known, every)
        if step.name:
            if step.name in known:
                raise InputError(f"{step.at}: the step at {known[step.name].at} is named {step.name} already")
            known[step.name] = step
    last = next((step for step in reversed(steps) if step.command.writes), None)
    for step in steps:
        if step.command.writes and step is not last and OUT not in step.values and step.name not in used:
            what = f"`{OUT}` (or `{NAME}`, and a later step that takes it)"
            raise InputError(f"{step.at}: nothing takes what this step makes: give {what}")
    outs = [str(step.values[OUT]) for step in steps if OUT in step.values]
    if twice := next((out for out in outs if outs.count(out) > 1), None):
        raise InputError(f"{steps[-1].at}: two steps write to {shown(twice)}")


def _check_taken(
    step: Step, field: str, found: re.Match[str], known: Mapping[str, Step], every: Mapping[str, Step]
) -> None:
    at, name, rest = step.places[field], found[1], found[2]
    if name not in known:
        if name in every:
            raise InputError(f"{at}: ${{{name}}} is made at {every[name].at}, after it is needed; put that first")
        near = nearest(name, known)
        hint = f"did you mean {near[0]}?" if near else f"named before it are {', '.join(known) or 'none'}"
        raise InputError(f"{at}: no earlier step is named {shown(name)!r}; {hint}")
    if not known[name].command.writes:
        raise InputError(f"{at}: {known[name].command.name} makes nothing that ${{{name}}} could be")
    if rest and (not rest.startswith("/") or ".." in rest.split("/")):
        raise InputError(f"{at}: after ${{{name}}} comes nothing, or / and a path within: {shown(rest)}")
