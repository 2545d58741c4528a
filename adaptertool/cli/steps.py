"""Runs the steps of a recipe, each as the command that it is."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from adaptertool.cli.fields import click_command
from adaptertool.cli.within import Within
from adaptertool.errors import AdapterToolError, InputError, UsageError
from adaptertool.recipes.paths import Outputs, words
from adaptertool.recipes.read import OUT, Recipe, Step, Value
from adaptertool.records import dataclass, field
from adaptertool.reports.apply import StepReport


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How the steps are run: what is asked of a whole recipe."""

    force: bool = False
    clean: bool = False
    threads: int | None = None
    scratch: str | None = None
    quiet: bool = False
    verbose: bool = False
    prints: bool = True  # each step's report as text

    def options(self, command: click.Command) -> list[str]:
        """The options of a step that come from here, where its command has them."""
        known = {name for one in command.params for name in one.opts}
        given = {"--force": self.force, "--clean": self.clean, "--quiet": self.quiet, "--verbose": self.verbose}
        texts = {"--threads": self.threads, "--scratch": self.scratch}
        return [name for name, on in given.items() if on and name in known] + [
            f"{name}={value}" for name, value in texts.items() if value is not None and name in known
        ]


@dataclass(slots=True)
class Run:
    """The steps of a recipe, and what is known of them so far."""

    recipe: Recipe
    out: str | None  # in the place of that of the last step that writes
    how: How
    apart: bool = False  # what steps before the last one make is temporary, whatever the recipe says
    made: dict[int, str] = field(default_factory=dict)  # where the output of a step is
    names: dict[str, str] = field(default_factory=dict)  # temporary paths -> what the recipe calls them
    keys: dict[int, str] = field(default_factory=dict)
    done: list[StepReport] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)  # of the manifest: steps as data

    @property
    def outputs(self) -> Outputs:
        return Outputs(self.recipe)

    @property
    def steps(self) -> Sequence[Step]:
        return self.recipe.steps

    @property
    def last(self) -> int | None:
        """The number of the last step that writes."""
        return next((n for n in reversed(range(len(self.steps))) if self.steps[n].command.writes), None)

    @property
    def target(self) -> str | None:
        """Where the last step that writes does so."""
        if self.last is None:
            return None
        return self.out or self.kept(self.last)

    def kept(self, number: int) -> str | None:
        """The OUT of a step, from here; None for a temporary one."""
        step = self.steps[number]
        if number == self.last and self.out is not None:
            return self.out
        text = step.values.get(OUT)
        return None if text is None or self.apart else self.outputs.path(str(text), 0, {})

    def called(self, number: int) -> str:
        """The name of a step that writes; in manifests each has one."""
        return self.steps[number].name or f"step{number + 1}"

    def where(self, number: int) -> str:
        """A step, in messages."""
        step = self.steps[number]
        return f"{step.at}: {step.command.name}" + (f" ({step.name})" if step.name else "")

    def require_sound(self) -> None:
        """Raise UsageError and InputError for what can be told of all steps before one is run."""
        if self.last is None and self.out is not None:
            raise UsageError("-o is for a recipe that writes something, and this one has checks alone")
        if self.last is not None and self.target is None and "score" not in self.steps[self.last].values:
            step = self.steps[self.last]
            raise InputError(f"{step.at}: the last step that writes needs an `out`, or give -o")
        for number, step in enumerate(self.steps):
            self._context(number, self.outputs.located(step, number, dict.fromkeys(range(number), "-")), "-")

    def _context(self, number: int, values: Mapping[str, Value], out: str | None, *more: str) -> click.Context:
        """The command of a step, its words parsed. Raises InputError for what it has no use for."""
        step = self.steps[number]
        command = click_command(step.command.name)
        given = dict(values) if out is None or not step.command.writes else {**values, OUT: out}
        arguments = [*more, *self.how.options(command), *words(step, given)]
        try:
            return command.make_context(step.command.name, arguments)
        except click.UsageError as error:
            param = getattr(error, "param", None)
            named = next((f.name for f in step.command.fields.values() if param and f.option in param.opts), "")
            raise InputError(f"{step.places.get(named, step.at)}: {error.format_message()}") from error
        except UsageError as error:
            raise type(error)(f"{step.at}: {error.on_command_line}") from error

    def run(self, number: int, out: str | None, *more: str, quiet: bool = False) -> tuple[Within, int]:
        """Run a step; what is around it, and its exit code. Raises AdapterToolError, which says which step."""
        step = self.steps[number]
        title = f"{number + 1}/{len(self.steps)} " if len(self.steps) > 1 else ""
        around = Within(title, self.how.prints and not quiet, dict(self.names))
        try:
            context = self._context(
                number, self.outputs.located(step, number, self.made), out, *(["--quiet"] if quiet else []), *more
            )
            around.around(context)
            with context, _signals():
                code = context.command.invoke(context)
        except AdapterToolError as error:
            what = around.told(error.on_command_line)
            raise type(error)(f"{'step ' * bool(title)}{title}{self.where(number)}: {what}") from error
        return around, int(code or 0)

    def report(
        self,
        number: int,
        state: str,
        seconds: float,
        report: dict[str, Any] | None,
        code: int = 0,
        why: str | None = None,
    ) -> None:
        step = self.steps[number]
        out = self.kept(number) if step.command.writes else None
        self.done.append(
            StepReport(
                name=step.name,
                command=step.command.name,
                out=out,
                state=state,
                ok=code == 0,
                seconds=seconds,
                report=report,
                why=why,
            )
        )


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """What becomes of signals is afterwards as it was: a command ignores them once it publishes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
