"""What the commands share: their options, and the way from these to records."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import click

from adaptertool.arguments import as_path, parse_rate
from adaptertool.cli.boundary import annotate, ignore_signals, say
from adaptertool.cli.table import load
from adaptertool.cli.terminal import MODES
from adaptertool.cli.within import put, within
from adaptertool.engine.resources import MAX_THREADS
from adaptertool.errors import UsageError
from adaptertool.output.options import Options
from adaptertool.planning.sources import COMPOSITIONS
from adaptertool.planning.tokenizer import TOKENIZERS
from adaptertool.render.machine import Report
from adaptertool.spec import choices
from adaptertool.spec.choices import DTYPES, EXACT, EXPERT_LAYOUTS, PRECISIONS, QUANTISES

Command = Callable[..., int | None]


def with_options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """The options in this order, as one decorator."""

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


RENAME = click.option(
    "--rename",
    "renames",
    multiple=True,
    metavar="REGEX=>NEW",
    help="Change names of adapters, and of tuned or merged checkpoints.",
)
LEAVE_OUT = click.option(
    "--leave-out",
    multiple=True,
    metavar="REGEX|FILE|MODEL",
    help="Do without such files beside an adapter, or what it changes in a model of a pipeline (text_encoder, unet); "
    "it is said.",
)
TOKENIZER = click.option(
    "--tokenizer",
    type=click.Choice(TOKENIZERS),
    help="Whose tokenizer and chat template OUT has; the base's, unless the vocabulary is the adapter's.",
)
DTYPE = click.option(
    "--dtype",
    type=click.Choice([*DTYPES]),
    help="Store weights so: those of a quantised base are decoded, the others cast, and all rounded once.",
)
QUANTISE = click.option(
    "--quantise",
    type=click.Choice(QUANTISES),
    help="keep: a quantised base stays in its own format; what of the change survives the rounding is told.",
)
SHARD_SIZE = click.option(
    "--max-shard-size",
    metavar="SIZE",
    help="Files of the output are at most so large: 5GB, 4GiB. As the base's, unless given.",
)
AS_TRAINED = click.option(
    "--as-trained",
    type=click.Choice(choices.AS_TRAINED),
    help="The adapter comes from a QLoRA run: take BASE as bitsandbytes had it there, in 4 bits and decoded.",
)
EXPERT_LAYOUT = click.option(
    "--expert-layout",
    type=click.Choice(EXPERT_LAYOUTS),
    help="How lora_B of fused experts is packed, where the adapter's config does not say (unsloth).",
)
# The one option that a variable of the environment may set: it changes the time, and no byte of what is written
THREADS = click.option(
    "--threads",
    type=click.IntRange(min=1, max=MAX_THREADS),
    envvar="ADAPTERTOOL_THREADS",
    metavar="N",
    help="Default: ADAPTERTOOL_THREADS, or the cores, up to 8.",
)
JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress, no report.")


def one_by_one(_context: click.Context, _option: click.Parameter, weights: tuple[str, ...]) -> tuple[str, ...]:
    """Raises UsageError for several weights in one."""
    if listed := next((text for text in weights if "," in text), None):
        raise UsageError(f"-w {listed} is no number: they have points, and each ADAPTER its own, -w 0.5 -w 0.5")
    return weights


WEIGHT = click.option(
    "-w",
    "--weight",
    "weights",
    multiple=True,
    metavar="NUMBER",
    callback=one_by_one,
    help="Weight of an adapter; by order, one for each.",
)
COMPOSE = click.option("--compose", type=click.Choice(COMPOSITIONS), default="sequential", help="As for merge.")
DASK = click.option(
    "--dask", metavar="ADDRESS", help="Have workers of this Dask scheduler make the shards: tcp://..., scheduler.json."
)
FORCE = click.option("--force", is_flag=True, help="Replace an OUT that adaptertool made.")
CLEAN = click.option("--clean", is_flag=True, help="Once OUT is published, remove what killed runs left beside it.")
HTML = click.option("--html", type=click.Path(), metavar="FILE", help="Also write a page with pictures.")
# The last of every command, which no command is told of
DEBUG = with_options(
    click.option(
        "--color",
        type=click.Choice(MODES),
        default=MODES[0],
        expose_value=False,
        help="auto: on a terminal, unless NO_COLOR is set.",
    ),
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)


written = with_options(
    click.option("--sha256", is_flag=True, help="Hash with SHA-256 too, and write OUT/SHA256SUMS."),
    click.option(
        "--scratch", type=click.Path(), metavar="DIR", help="Where files are until they are sent to an OUT in a store."
    ),
    click.option(
        "--provenance", type=click.Path(), metavar="FILE", help="Write in-toto/SLSA provenance; implies --sha256."
    ),
    FORCE,
    CLEAN,
    click.option("--fail-if-unchanged", is_flag=True, help="Exit 1 and write nothing where no element would change."),
    click.option("--verify", is_flag=True, help="Read back what was written, and judge it, before it is published."),
    click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
    click.option(
        "--rate", metavar="RATE", help="With --dry-run: estimate the time where a node has so many, as 2GB/s."
    ),
    click.option(
        "--nodes", type=click.IntRange(min=1), metavar="N", help="With --rate: for so many nodes, of this rate each."
    ),
    THREADS,
    HTML,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="With --dry-run: every tensor on a line of its own."),
    DEBUG,
)
writes = with_options(
    RENAME,
    EXPERT_LAYOUT,
    click.option(
        "--precision",
        type=click.Choice(PRECISIONS),
        default=EXACT,
        help="Correctly rounded, or in float32 and rounded once.",
    ),
    written,
)


class Listed(click.types.StringParamType):
    """Text that is a list, its values between commas. A recipe may write a list of YAML instead."""


class Noted(Report, Protocol):
    @property
    def notes(self) -> tuple[str, ...]: ...


def tell(report: Noted, text: Callable[[], str], *, as_json: bool, quiet: bool) -> None:
    """Say the notes of a report on stderr; and on stdout `text` of it, or JSON, which is said also where the rest is
    quiet."""
    summarise(report)
    say_notes(report.notes, quiet=quiet)
    put(report, text, as_json=as_json, quiet=quiet)


def failed(what: str, *, quiet: bool) -> int:
    """The exit code of a check that failed; what it says, where the rest is quiet."""
    if quiet:
        say(f"adaptertool: {what.splitlines()[0]}", sys.stderr)
    annotate(what)
    return 1


def summarise(report: Report) -> None:
    """In GitHub's Actions, add a check to the summary of the step."""
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        load("summary", "append")(report, path)


def say_notes(notes: Iterable[str], *, quiet: bool) -> None:
    around = within()
    for note in () if quiet else notes:
        say(f"adaptertool: note: {around.told(note) if around else note}", sys.stderr)


class Printing(NamedTuple):
    """What is printed of a run."""

    as_json: bool
    quiet: bool
    verbose: bool
    html: str | None = None


def records(flags: dict[str, Any]) -> tuple[Options, Printing]:
    """What the options of `writes` say, as records. Raises UsageError for a rate without a dry run."""
    printing = Printing(*(flags.pop(name) for name in Printing._fields))
    names = {"provenance": "FILE", "scratch": "DIR"}
    paths = {name: None if (path := flags.pop(name)) is None else as_path(path, what) for name, what in names.items()}
    rate, nodes = parse_rate(flags.pop("rate")), flags.pop("nodes")
    if (rate is not None and not flags["dry_run"]) or (nodes is not None and rate is None):
        raise UsageError("--nodes is for --rate, and --rate for --dry-run: they estimate what a run would take")
    if printing.html is not None and flags["dry_run"]:
        raise UsageError("--html is for what a run has done; a dry run has --json")
    options = Options(**{**flags, **paths}, rate=rate, nodes=nodes or 1, before_publish=ignore_signals)
    return options, printing
