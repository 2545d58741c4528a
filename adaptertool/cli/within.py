"""A command that is run as a step of a recipe: what is around it, and what it hands back there."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import Any, cast

import click

from adaptertool.cli.boundary import say, show
from adaptertool.records import dataclass, field
from adaptertool.render.machine import Report, to_json
from adaptertool.spec.plan import Plan

_KEY = "adaptertool.cli.within"


@dataclass(slots=True)
class Within:
    """What a step has around it while it is run."""

    title: str  # which of how many: "2/3 "
    prints: bool  # its report is shown as text; the recipe's own has it in any case
    names: Mapping[str, str] = field(default_factory=dict)  # paths of temporary outputs -> what the recipe calls them
    reports: list[Report] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)

    def told(self, text: str) -> str:
        """The text, with temporary outputs called as the recipe calls them."""
        for path, name in self.names.items():
            text = text.replace(path, name)
        return text

    def renamed(self, report: Report) -> Report:
        """The same of the texts in a report."""
        record: Any = report
        changed: dict[str, Any] = {}
        for one in dataclasses.fields(record) if self.names else ():
            value = getattr(record, one.name)
            if isinstance(value, str):
                changed[one.name] = self.told(value)
            elif isinstance(value, tuple) and value and all(isinstance(text, str) for text in value):
                changed[one.name] = tuple(map(self.told, value))
        return cast(Report, dataclasses.replace(record, **changed)) if changed else report

    def around(self, context: click.Context) -> None:
        """Let all that is run within a context know of it."""
        context.meta[_KEY] = self


def within() -> Within | None:
    """What is around the command that is run now; None where it is none of a recipe."""
    context = click.get_current_context(silent=True)
    found: Within | None = None if context is None else context.meta.get(_KEY)
    return found


def put(report: Report, text: Callable[[], str], *, as_json: bool, quiet: bool) -> None:
    """Print a report on stdout, as text or as JSON. Within a recipe its own report has it too. Raises StorageError."""
    around = within()
    if around is not None:
        around.reports.append(around.renamed(report))
        quiet = quiet or not around.prints
    if as_json:
        say(to_json(report), sys.stdout)
    elif not quiet:
        show(text() if around is None else around.told(text()))
