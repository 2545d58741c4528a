"""A call of `merge` or `wise` as data, so that it can be made again elsewhere: in a file that a plan is written to, or
sent to a worker. Paths that are there are made absolute, so it means the same in any directory, and on each machine
that has the same file system at the same place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.arguments import Number, PathLike, as_path
from adaptertool.errors import InputError, UsageError, shown
from adaptertool.files import LOCAL, store_of
from adaptertool.files.hub import called, find
from adaptertool.output.options import Options
from adaptertool.planning.schedules import Given, as_typed
from adaptertool.planning.settings import setting_as_typed
from adaptertool.planning.sources import Prepared, Reading
from adaptertool.tasks import merge as merge_task
from adaptertool.tasks import wise as wise_task
from adaptertool.tasks.merge import MergeRecipe
from adaptertool.tasks.wise import WiseRecipe

MERGE, WISE = "merge", "wise"
# What may be asked for of a run that others make in parts; the rest belongs to each machine
OPTIONS = ("force", "sha256", "provenance", "clean", "fail_if_unchanged")
_Recipe = MergeRecipe | WiseRecipe


class Call(NamedTuple):
    """What is to be made, and where."""

    command: str
    base: str
    sources: tuple[str, ...]  # adapters; or what is interpolated towards
    numbers: tuple[str, ...] | str | None  # weights; or alphas, also as text
    recipe: Mapping[str, Any]  # fields of MergeRecipe or WiseRecipe that are not as usual
    reading: Mapping[str, Any]  # fields of Reading, the same
    out: str
    options: Mapping[str, Any]  # of OPTIONS, those that are given

    def prepare(self) -> Prepared:
        """Plan it, from headers and configs. Raises as the preparing of `merge` and `wise` does."""
        try:
            reading = Reading(**self.reading)
            if self.command == MERGE:
                weights = None if self.numbers is None else list(self.numbers)
                return merge_task.prepare(self.base, self.sources, weights, MergeRecipe(**self.recipe), reading)
            alphas = self.numbers if isinstance(self.numbers, str) else list(self.numbers or ())
            return wise_task.prepare(self.base, self.sources[0], alphas, WiseRecipe(**self.recipe), reading)
        except (TypeError, ValueError, AttributeError) as error:  # of arguments that are not of their types
            raise InputError(f"this is no call of {self.command}: {error}") from error

    def how(self, **more: Any) -> Options:
        """The options of the run, with those of this machine."""
        provenance = self.options.get("provenance")
        given = {**self.options, "provenance": None if provenance is None else Path(provenance)}
        return Options(**given, **more)


def call_of(
    command: str,
    base: PathLike,
    sources: Sequence[PathLike],
    numbers: Number | Sequence[Given] | None,
    recipe: _Recipe,
    reading: Reading,
    out: PathLike,
    options: Options,
) -> Call:
    """The call with these arguments. Raises UsageError for paths that are empty."""
    if isinstance(sources, str | os.PathLike):
        raise UsageError("adapters must be a list of paths, also where there is only one")
    if not sources:
        raise UsageError("no adapter given")
    usual, as_usual = type(recipe)(), Reading()
    fields = {name: _plain(value) for name, value in recipe._asdict().items() if value != getattr(usual, name)}
    if "weights" in fields:
        fields["weights"] = list(as_typed(recipe._asdict()["weights"]) or ())
    if "settings" in fields:
        fields["settings"] = {name: _plain(setting_as_typed(one)) for name, one in recipe._asdict()["settings"].items()}
    if "fisher" in fields:
        fields["fisher"] = [fixed(path, "F0 or F1") for path in recipe._asdict()["fisher"]]
    read = {name: _plain(value) for name, value in reading._asdict().items() if value != getattr(as_usual, name)}
    if "leave_out" in read:
        read["leave_out"] = [fixed(one, "what is left out") for one in read["leave_out"]]
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name)}
    if "provenance" in given:
        given["provenance"] = str(Path(given["provenance"]).absolute())
    path = as_path(out, "OUT")
    if options.force and store_of(path) is not LOCAL:
        raise UsageError(
            f"--force with parts would have one part remove what another has sent: remove {path} first, or replace it "
            "by the command without parts"
        )
    where = str(path.absolute()) if store_of(path) is LOCAL else os.fspath(out)
    names = tuple(fixed(source, "ADAPTER") for source in sources)
    return Call(command, fixed(base, "BASE"), names, _texts(numbers), fields, read, where, given)


def fixed(path: PathLike, what: str) -> str:
    """A path, made absolute if it is there, and a name in the hub's cache with its commit; what is no path, or a name
    elsewhere, stays as it is typed."""
    given = as_path(path, what)
    if os.path.lexists(given):
        return str(given.absolute())
    found = find(os.fspath(path))
    return os.fspath(path) if found is None else called(found)


def _texts(numbers: Number | Sequence[Given] | None) -> tuple[str, ...] | str | None:
    if numbers is None or isinstance(numbers, str):
        return numbers
    return as_typed(numbers) if isinstance(numbers, Sequence) else str(numbers)


def _plain(value: Any) -> Any:
    """What JSON can say; numbers that it cannot, as text."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Decimal | Fraction | os.PathLike | float) else value


def call_from(fields: object, where: str) -> Call:
    """The call that JSON tells. Raises InputError for anything else."""

    def require(good: bool, what: str) -> None:
        if not good:
            raise InputError(f"{where}: {what}; write the plan again")

    require(isinstance(fields, dict) and set(fields) == set(Call._fields), "it does not hold one call")
    assert isinstance(fields, dict)
    command, numbers = fields["command"], fields["numbers"]
    require(command in (MERGE, WISE), f"the command is {shown(command)[:80]}, neither {MERGE} nor {WISE}")
    for name in ("base", "out"):
        require(isinstance(fields[name], str) and bool(fields[name]), f"{name} is no path")
    require(_are_texts(fields["sources"]) and bool(fields["sources"]), "sources are no paths")
    require(command == MERGE or len(fields["sources"]) == 1, "wise has one source")
    require(numbers is None or isinstance(numbers, str) or _are_texts(numbers), "weights or alphas are no numbers")
    for name, known in (
        ("recipe", (MergeRecipe if command == MERGE else WiseRecipe)._fields),
        ("reading", Reading._fields),
        ("options", OPTIONS),
    ):
        given = fields[name]
        require(isinstance(given, dict) and set(given) <= set(known), f"{name} has fields that are unknown")
    for name, value in fields["options"].items():
        wanted = str if name == "provenance" else bool
        require(type(value) is wanted, f"{name} is {shown(value)[:80]}")
    frozen = [tuple(one) if isinstance(one, list) else one for one in fields.values()]
    return Call(**dict(zip(fields, frozen, strict=True)))


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
