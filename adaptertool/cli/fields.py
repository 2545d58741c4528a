"""The fields of recipes, derived from the commands: an option of a command is a field of its steps."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import MappingProxyType

import click

from adaptertool.cli.options import Listed
from adaptertool.cli.settings import Listable
from adaptertool.cli.table import COMMANDS, load
from adaptertool.recipes.fields import FLAG, NUMBER, PATH, TEXT, WHOLE, Command, Commands, Field

# What is said of a whole recipe, and not of a step: how to run, what to print
APART = frozenset(
    {"threads", "as_json", "quiet", "verbose", "dry_run", "rate", "nodes", "force", "clean", "scratch", "dask", "help"}
)
# No steps: parts of a plan belong to machines, and the rest makes nothing
_NO_STEPS = frozenset({"apply", "plan", "run", "finish", "clean", "schema", "completion"})


@functools.cache
def commands() -> Commands:
    """Every command that may be a step, by name."""
    return MappingProxyType({entry.name: _command(entry.name) for entry in COMMANDS if entry.name not in _NO_STEPS})


@functools.cache
def click_command(name: str) -> click.Command:
    """The command itself."""
    entry = next(one for one in COMMANDS if one.name == name)
    command: click.Command = load(entry.module, entry.attribute)
    return command


def _command(name: str) -> Command:
    summary = next(entry.summary for entry in COMMANDS if entry.name == name)
    return Command(name=name, summary=summary, fields={field.name: field for field in _fields(click_command(name))})


def _fields(command: click.Command) -> Iterator[Field]:
    for one in command.params:
        if one.name is None or one.name in APART or not one.expose_value:
            continue
        kind, own = one.type, one if isinstance(one, click.Option) else None
        option = max(own.opts, key=len) if own else ""
        many = one.nargs == -1 or one.multiple
        ranged = kind if isinstance(kind, click.IntRange) else None
        yield Field(
            # As the option is called; but of what may be given several times, the name of all: weights, renames
            name=one.name if many or not own else option.lstrip("-").replace("-", "_"),
            kind=FLAG if own and own.is_flag else _kind(kind),
            help=(own and own.help) or "",
            option=option,
            negative=max(own.secondary_opts, key=len) if own and own.secondary_opts else "",
            choices=tuple(map(str, kind.choices)) if isinstance(kind, click.Choice) else (),
            least=None if ranged is None or ranged.min is None else int(ranged.min),
            most=None if ranged is None or ranged.max is None else int(ranged.max),
            count=None if many else one.nargs,
            listed=isinstance(kind, Listed),
            alone=isinstance(kind, Listable),
            required=one.required,
        )


def _kind(kind: object) -> str:
    if isinstance(kind, click.Path):
        return PATH
    if isinstance(kind, click.types.IntParamType):
        return WHOLE
    return NUMBER if isinstance(kind, click.types.FloatParamType) else TEXT
