"""The options of methods: which there are, and one for each of their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import click

from adaptertool.cli.options import Command
from adaptertool.methods import METHOD_BY_NAME, Setting, settings_of


class Listable(click.types.StringParamType):
    """Text that may be given several times. A recipe may write one as it is, and several as a list."""


class OneOfRun(click.IntRange):
    """A whole number that a run has one of."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Raises click's BadParameter for a rule by tensor, as other settings have it, and for what is no number."""
        if isinstance(value, str) and "=" in value:
            self.fail(f"{value!r}: it is one for the whole run, and has no PATTERN=: give a whole number", param, ctx)
        return super().convert(value, param, ctx)


class OneForAll(click.Command):
    """A command whose settings are one number for all sources. The last of several would count in silence, where
    `merge` takes one for each source."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raises click's UsageError for a setting that is given twice."""
        *_, order = self.make_parser(ctx).parse_args([*args])
        given = [one.name for one in order if one.name in settings_of()]
        if twice := [name for name in given if name and given.count(name) > 1]:
            option = f"--{twice[0].replace('_', '-')}"
            raise click.UsageError(f"{option} is one for all adapters of `{self.name}`, and is given twice", ctx)
        return super().parse_args(ctx, args)


_WORDS = {float: "NUMBER", int: "N"}


def method_option(names: Iterable[str], told: str, default: str | None = None) -> Callable[[Command], Command]:
    """`--method`. The names stand in its help, where lines can break, and not in the column of options."""
    chosen = click.Choice([*names])
    return click.option(
        "--method", type=chosen, default=default, metavar="METHOD", help=f"{told} {', '.join(chosen.choices)}."
    )


def setting_options(
    settings: Mapping[str, Setting], names: Iterable[str] = METHOD_BY_NAME, *, in_sum: bool = False
) -> list[Callable[[Command], Command]]:
    """An option for each setting of the methods `names`. A number that need not be whole stays text as typed, which is
    exact; but in sums it may be given several times: of each source, and of tensors that a pattern names."""
    having = {one: [name for name in names if one in METHOD_BY_NAME[name].settings] for one in settings}
    return [_option(one, setting, having[one], in_sum=in_sum) for one, setting in settings.items()]


def _option(name: str, setting: Setting, methods: Iterable[str], *, in_sum: bool) -> Callable[[Command], Command]:
    kind: click.ParamType[Any] = click.STRING if in_sum else Listable()
    if setting.number is int:
        kind = OneOfRun(min=setting.least, max=setting.most)
    elif setting.number is bool:
        kind = click.Choice(["true", "false"], case_sensitive=False)
    groups: dict[str, list[str]] = {}
    for one in methods:
        groups.setdefault(_default(one, name, setting), []).append(one)
    having = "; ".join(f"{default}: {', '.join(group)}" for default, group in groups.items())
    return click.option(
        f"--{name.replace('_', '-')}",
        type=kind,
        multiple=isinstance(kind, Listable),
        metavar="NUMBER|PATTERN=NUMBERS" if isinstance(kind, Listable) else _WORDS.get(setting.number),
        help=f"{(in_sum and setting.in_sum) or setting.help} {having[0].upper()}{having[1:]}.",
    )


def _default(method: str, name: str, setting: Setting) -> str:
    """What a method takes where the option is not given."""
    default = METHOD_BY_NAME[method].defaults.get(name, setting.default)
    if default is None:
        return "needed by"
    return f"default {str(default).lower() if setting.number is bool else format(default, 'g')}"
