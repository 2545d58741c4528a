"""The command line: parses, calls a task, renders what it returns. The one place where errors end."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, TextIO

import click

from adaptertool import __version__
from adaptertool.budget import bytes_to_write
from adaptertool.errors import AdapterToolError, InternalError, StorageError, UsageError, shown
from adaptertool.interrupts import interrupt
from adaptertool.render.machine import error_to_json, to_json
from adaptertool.render.text import plan_text, run_text
from adaptertool.spec import EXACT, PRECISIONS, Plan
from adaptertool.tasks.arguments import as_path
from adaptertool.tasks.common import MAX_THREADS, check_output
from adaptertool.tasks.merge import COMPOSITIONS, prepare_merge
from adaptertool.tasks.preview import preview
from adaptertool.tasks.wise import prepare_wise

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_CODES = """\b
Exit codes:
  0    done
  2    wrong usage
  3    bad input: a file is malformed, inputs do not fit together, or
       something is refused by name
  4    storage: space, permission, I/O
  5    OUT exists, or is not ours to replace
  70   a fault of adaptertool itself
  130  interrupted (also by SIGTERM); nothing was published
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="adaptertool")
@click.pass_context
def cli(context: click.Context) -> None:
    """Adapter arithmetic on checkpoints, by streaming. Nothing silent.

    Checkpoints are directories with safetensors (single or sharded), or one .safetensors file. Adapters are
    PEFT directories. Inputs are never changed; OUT appears only when it is complete.
    """
    if os.environ.get("NO_COLOR"):
        context.color = False


def _common(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every command that writes a checkpoint."""
    for option in reversed(
        (
            click.option("-o", "--out", required=True, type=click.Path(), help="Where to write."),
            click.option("--rename", "renames", multiple=True, metavar="REGEX=>NEW", help="Change names in adapters."),
            click.option(
                "--precision",
                type=click.Choice(PRECISIONS),
                default=EXACT,
                help="Correctly rounded, or in float32 and rounded once.",
            ),
            click.option("--force", is_flag=True, help="Replace an OUT that adaptertool made."),
            click.option("--dry-run", is_flag=True, help="Print the plan and write nothing."),
            click.option(
                "--threads",
                type=click.IntRange(min=1, max=MAX_THREADS),
                help="Default: cores, up to 8.",
            ),
            click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout."),
            click.option("-q", "--quiet", is_flag=True, help="No progress, no report."),
            click.option("-v", "--verbose", is_flag=True, help="With --dry-run: every tensor on a line of its own."),
            click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        )
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("base", type=click.Path())
@click.argument("adapters", nargs=-1, required=True, type=click.Path(), metavar="ADAPTER...")
@click.option("-w", "--weight", "weights", multiple=True, help="Weight of an adapter; by order, one for each.")
@click.option(
    "--compose",
    type=click.Choice(COMPOSITIONS),
    default="sequential",
    help="Several adapters one after the other, or together as at inference (differs for DoRA).",
)
@_common
def merge(
    base: str,
    adapters: tuple[str, ...],
    weights: tuple[str, ...],
    compose: str,
    renames: tuple[str, ...],
    precision: str,
    **options: Any,
) -> None:
    """Merge ADAPTERs into BASE: W + w·(alpha/r)·B·A, in order, rounded once.

    Saved modules and biases replace the base's (with a weight w: W + w·(T - W)).
    """
    plan = prepare_merge(base, adapters, weights or None, compose=compose, renames=renames, precision=precision)
    _execute(plan, **options)


@cli.command()
@click.argument("base", type=click.Path())
@click.argument("tuned", type=click.Path())
@click.option("--alpha", required=True, help="A number, a list 0,0.3,1 or a sweep START:STOP:STEP.")
@click.option("--as-adapter", is_flag=True, help="Write an adapter that, merged into BASE, gives the same.")
@_common
def wise(
    base: str, tuned: str, alpha: str, as_adapter: bool, renames: tuple[str, ...], precision: str, **options: Any
) -> None:
    """Interpolate BASE towards TUNED: W + alpha·(T - W), for one alpha or many (Wise-FT).

    TUNED is an adapter or a fine-tuned checkpoint. Several alphas are written to OUT/alpha-0.300 and so on,
    with one read of the base.
    """
    plan = prepare_wise(base, tuned, alpha, renames=renames, precision=precision, as_adapter=as_adapter)
    _execute(plan, **options)


@cli.command("clean")
@click.argument("out")
def clean_command(out: str) -> None:
    """Remove what killed or failed runs have left beside OUT. OUT itself is not touched."""
    from adaptertool.tasks.clean import clean  # noqa: PLC0415  # not for a plan, or --help

    removed = clean(out)
    _say("\n".join(f"removed {folder}" for folder in removed) or f"nothing was left beside {out}", sys.stdout)


def _execute(
    plan: Plan,
    *,
    out: str,
    force: bool,
    dry_run: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    if not quiet:
        for note in plan.notes:
            _say(f"adaptertool: note: {note}", sys.stderr)
    if dry_run:
        report = preview(plan, out, force=force, threads=threads)
        _say(to_json(report) if as_json else plan_text(report, every_tensor=verbose), sys.stdout)
        return
    target = as_path(out, "OUT")
    check_output(plan, target, force=force)  # before numpy is loaded
    from tqdm import tqdm  # noqa: PLC0415  # as below: not for a plan, or --help

    from adaptertool.tasks.run import run  # noqa: PLC0415  # loads numpy

    lock = threading.Lock()
    # disable=None: no bar where stderr is not a terminal
    with tqdm(
        total=bytes_to_write(plan), unit="B", unit_scale=True, desc=plan.command, disable=True if quiet else None
    ) as bar:

        def progress(count: int) -> None:
            with lock:
                bar.update(count)

        done = run(plan, target, force=force, threads=threads, progress=progress, before_publish=_ignore_signals)
    if not quiet or as_json:
        _say(to_json(done) if as_json else run_text(done), sys.stdout)


def main() -> NoReturn:
    """Entry point: every error becomes a message and an exit code, never a traceback (but with --debug)."""
    for number in _SIGNALS:
        signal.signal(number, _interrupted)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a bare container may have no UTF-8
    gc.disable()  # a large plan is a million live objects that the collector would walk again and again, for nothing
    try:
        cli.main(prog_name="adaptertool", standalone_mode=False)
        code = 0
    except click.exceptions.Exit as stop:
        code = stop.exit_code
    except SystemExit:
        code = 0  # click's answer where the reader of our stdout has gone away, as in `--help | head`
    except click.ClickException as error:
        error.show()
        code = _fail(UsageError(error.format_message()), said=True)
    except Exception as error:  # the one boundary: nothing passes it but with --debug
        if "--debug" in sys.argv:
            raise
        code = _fail(_known(error))
    sys.exit(code)


def _known(error: Exception) -> AdapterToolError:
    if isinstance(error, AdapterToolError):
        return error
    if isinstance(error, OSError):
        return StorageError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    if isinstance(error, MemoryError):
        return StorageError("out of memory; try fewer --threads")
    kind = type(error).__name__
    return InternalError(f"this should not happen ({kind}: {error}); run again with --debug, and please report it")


def _fail(error: AdapterToolError, *, said: bool = False) -> int:
    """Say what is wrong, on stderr and with --json on stdout too; the exit code."""
    if not said:
        _say(f"adaptertool: {error}", sys.stderr)
    if "--json" in sys.argv:  # asked here and not of click, since the error may be in parsing
        with contextlib.suppress(AdapterToolError):  # the error that is being told counts more than a full stdout
            _say(error_to_json(error), sys.stdout)
    return error.exit_code


def _say(text: str, stream: TextIO | None) -> None:
    """Print, with control characters escaped. A reader that has gone away is no error; a full disk is."""
    if stream is None:  # closed by the caller
        return
    try:
        print("\n".join(map(shown, text.split("\n"))), file=stream, flush=True)
    except OSError as error:
        # Nothing more can be written there; without this Python would try again when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if error.errno != errno.EPIPE:
            raise StorageError(f"writing to {stream.name} failed: {error.strerror}") from error


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    _ignore_signals()  # a second Ctrl-C must not stop the cleaning
    interrupt()


def _ignore_signals() -> None:
    """From here on the run is finished, one way or the other."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
