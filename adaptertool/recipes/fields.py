"""What a step of a recipe may hold: of each command its arguments and options, as data. They are derived from the
command line (cli.fields), so an option of a command is a field of its steps, and stands in one place."""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.records import dataclass

FLAG, WHOLE, NUMBER, TEXT, PATH = "flag", "whole", "number", "text", "path"  # what a value is


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """An argument or an option."""

    name: str
    kind: str  # of FLAG, WHOLE, NUMBER, TEXT and PATH; of each value, where there are many
    help: str = ""
    option: str = ""  # as it is typed; empty for an argument
    negative: str = ""  # what says no, of a flag that has such an option
    choices: tuple[str, ...] = ()
    least: int | None = None
    most: int | None = None
    count: int | None = 1  # of values: None for any number, as a list
    listed: bool = False  # one text, which may be written as a list too: 0,0.3,1
    alone: bool = False  # of many: one may stand without a list
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command that may be a step."""

    name: str
    summary: str
    fields: Mapping[str, Field]

    @property
    def writes(self) -> bool:
        """Whether it makes an OUT, which a later step may take."""
        return "out" in self.fields


Commands = Mapping[str, Command]
