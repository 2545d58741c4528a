"""A manifest as the recipe that it was written for: `apply OUT/adaptertool.manifest.json` makes the same again.

A manifest has no absolute paths. Its inputs are looked for by the names that it has, here and beside OUT, or where they
are said to be, and compared with the hashes that it has before a byte is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from adaptertool.arguments import as_input
from adaptertool.errors import InputError, MismatchError, UnsupportedError, UsageError, shown
from adaptertool.files.hashing import BLAKE3
from adaptertool.files.hub import find
from adaptertool.files.reader import digests_in, exists, is_folder, stamp_of
from adaptertool.recipes.fields import PATH, Commands
from adaptertool.recipes.given import node_of
from adaptertool.recipes.read import OUT, TAKEN, Recipe, Step, read_recipe
from adaptertool.recipes.recorded import step_of
from adaptertool.reports.scores import SCORES
from adaptertool.tasks.mergekit import COPY as CONFIG
from adaptertool.tasks.mergekit import prepare_mergekit
from adaptertool.version import __version__

SCHEMA = "manifest/1"
_NAMED = 5  # inputs that differ and are named

Facts = Mapping[str, Mapping[str, Any]]  # of files, by name
Content = Mapping[str, Any]


class Recorded(NamedTuple):
    """What a manifest says of one input: for which value of a step, and the files that it had."""

    step: int
    field: str
    position: int  # among several
    files: Facts
    models: Sequence[Facts] = ()  # of those that a configuration of mergekit names, the base first


class Replay(NamedTuple):
    """A manifest, as a recipe whose inputs are found."""

    recipe: Recipe
    recorded: tuple[Recorded, ...]
    files: Facts  # of OUT
    read: Facts  # files of the inputs, as `read_from` tells them
    notes: tuple[str, ...]


def is_manifest(content: object) -> bool:
    """Whether a JSON file is a manifest of ours."""
    return isinstance(content, Mapping) and str(content.get("schema")).startswith("manifest/")


def replay_of(content: Content, path: Path, commands: Commands, inputs: Mapping[str, str]) -> Replay:
    """The recipe of a manifest. inputs: where inputs are, by `base`, `adapters.0`; of several steps by `NAME.base` or
    the number of the step, `1.base`. Raises InputError and UsageError."""
    if content.get("schema") != SCHEMA:
        raise UnsupportedError(f"{path} is of schema {shown(content.get('schema'))[:80]}; this version reads {SCHEMA}")
    files = content.get("files")
    if not isinstance(files, dict) or not isinstance(content.get("recipe"), dict):
        raise InputError(f"{path} has no recipe, or names no files")
    if SCORES in files:
        raise UnsupportedError(f"{path} is of a curve that a program has scored, which no manifest can promise again")
    try:
        data, manifests = _steps(content, path.resolve().parent.name)
        recipe = read_recipe(node_of({"steps": data}, str(path)), str(path), Path(), commands)
        recorded = [one for n, manifest in manifests.items() for one in _recorded(n, recipe.steps[n], manifest)]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{path} is no manifest that adaptertool wrote: {shown(error)}") from error
    recipe = _located(recipe, path.resolve().parent.parent, inputs)
    notes = []
    if content.get("adaptertool") != __version__:
        notes.append(f"the manifest is by adaptertool {shown(content.get('adaptertool'))}, and this is {__version__}")
    return Replay(recipe, tuple(recorded), files, read_from(content), tuple(notes))


def read_from(content: Content) -> dict[str, Mapping[str, Any]]:
    """The files that a manifest says were read, as `base/NAME` and `sources.0/NAME`."""
    inputs = content.get("inputs", {})
    roots = {"base": inputs.get("base", {}), **{f"sources.{n}": one for n, one in enumerate(inputs.get("sources", ()))}}
    return {f"{root}/{name}": facts for root, files in roots.items() for name, facts in files.items()}


def _steps(content: Content, folder: str) -> tuple[list[dict[str, Any]], dict[int, Content]]:
    """The steps as a recipe says them, and the manifests of those that have one."""
    told = content.get("steps")
    if told is None:
        return [step_of(content, folder)], {0: content}
    steps = [{name: one for name, one in step.items() if name != "manifest"} for step in told]
    manifests = {number: step["manifest"] for number, step in enumerate(told) if "manifest" in step}
    # The last that writes is this one's; what has a file of its own, such as a page, is not asked for again
    last = max(n for n, step in enumerate(steps) if _command(content) in step and n not in manifests)
    return steps, {**manifests, last: content}


def _command(content: Content) -> str:
    return str(content["recipe"]["command"]).partition(" ")[0]


def _recorded(number: int, step: Step, manifest: Content) -> Iterator[Recorded]:
    inputs = manifest["inputs"]
    if step.command.name == "mergekit":  # OUT has a copy of its configuration, which names the models
        named = PurePath(str(step.values["config"])).name
        models = (inputs.get("base", {}), *inputs["sources"])
        yield Recorded(number, "config", 0, {named: manifest["files"][CONFIG]}, models)
        return
    if "base" in inputs:
        yield Recorded(number, "base", 0, inputs["base"])
    names = [name for name in ("adapters", "adapter", "tuned", "fisher") if name in step.values]
    if step.command.name == "extract":
        names = ["base", "tuned"]
    places = [(name, n) for name in names for n in range(_count(step, name))]
    if step.command.name == "sum" and "base" in step.values:
        places.append(("base", 0))
    for (name, position), files in zip(places, inputs["sources"], strict=False):
        yield Recorded(number, name, position, files)


def _count(step: Step, name: str) -> int:
    value = step.values[name]
    return len(value) if isinstance(value, tuple) else 1


def _located(recipe: Recipe, beside: Path, inputs: Mapping[str, str]) -> Recipe:
    """The recipe, with its inputs where they are. Raises InputError for those that are nowhere, and UsageError for
    places of what is none of them."""
    left, missing, steps = dict(inputs), list[str](), list[Step]()
    outs = {str(step.values[OUT]) for step in recipe.steps if OUT in step.values}
    for number, step in enumerate(recipe.steps):

        def place(name: str, text: str, position: int | None, step: Step = step, number: int = number) -> str:
            if TAKEN.fullmatch(text) or text in outs:
                return text
            own = name if position is None else f"{name}.{position}"
            keys = [own] if len(recipe.steps) == 1 else [f"{step.name}.{own}", f"{number + 1}.{own}"]
            if given := next((key for key in keys if key in left), None):
                return left.pop(given)
            found = next((one for one in (Path(text), beside / text) if exists(one)), None)
            if found is None and find(text) is None:
                missing.append(f"{shown(text)} is neither here nor in {beside}: --input {keys[-1]}=PATH says where")
            return text if found is None else str(found)

        values = dict(step.values)
        for name, value in step.values.items():
            if step.command.fields[name].kind != PATH or name == OUT or isinstance(value, bool):
                continue
            if isinstance(value, str):
                values[name] = place(name, value, None)
            else:
                values[name] = tuple(place(name, text, n) for n, text in enumerate(value))
        steps.append(Step(step.command, step.name, values, step.places, step.at))
    if left:
        raise UsageError(f"--input {next(iter(left))}: the manifest has no such input")
    if missing:
        raise InputError(f"inputs of {recipe.file} are not found: {'; '.join(missing)}")
    return Recipe(recipe.file, recipe.folder, tuple(steps))


def check_inputs(replay: Replay, progress: Callable[[int], None]) -> None:
    """Compare all inputs with what the manifest has of them. Raises MismatchError, which names those that differ, and
    StorageError."""
    wrong = []
    for one in replay.recorded:
        step = replay.recipe.steps[one.step]
        value = step.values[one.field]
        text = value[one.position] if isinstance(value, tuple) else str(value)
        if TAKEN.fullmatch(text) or any(text == other.values.get(OUT) for other in replay.recipe.steps[: one.step]):
            continue
        changed = list(_changed(as_input(text, one.field), one.files, progress))
        if one.models and not changed:
            changed += _models_changed(text, one.models, progress)
        wrong += changed
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise MismatchError(f"inputs are not those of {replay.recipe.file}: {'; '.join(wrong[:_NAMED])}{more}")


def _models_changed(config: str, models: Sequence[Facts], progress: Callable[[int], None]) -> Iterator[str]:
    """Raises what planning raises: a model that is nowhere, or no longer fits."""
    for paths, facts in zip(prepare_mergekit(config).files, models, strict=True):
        for name, path in paths.items():
            if name in facts:
                yield from _file_changed(path, facts[name], progress)
            else:
                yield f"{path} is read now, and was not"


def _changed(root: Path, files: Facts, progress: Callable[[int], None]) -> Iterator[str]:
    for name, facts in files.items():
        yield from _file_changed((root if is_folder(root) else root.parent) / name, facts, progress)


def _file_changed(path: Path, facts: Mapping[str, Any], progress: Callable[[int], None]) -> Iterator[str]:
    if not exists(path):
        yield f"{path} is missing"
    elif (size := stamp_of(path)[2]) != facts["size"]:
        yield f"{path} has {size:,} bytes, and had {facts['size']:,}"
    elif BLAKE3 in facts and (found := digests_in(path, (BLAKE3,), progress)[BLAKE3]) != facts[BLAKE3]:
        yield f"{path} has the BLAKE3 hash {found}, and had {facts[BLAKE3]}"


def differing(replay: Replay, out: Content) -> tuple[str, ...]:
    """The names of files that the manifest of OUT has otherwise, or that one of the two has alone; first of those that
    were read."""
    read, now = read_from(out), out.get("files", {})
    return (
        *(f"input {name}" for name in _unlike(read, replay.read)),
        *_unlike(now, replay.files),
    )


def _unlike(one: Facts, other: Facts) -> list[str]:
    return [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]
