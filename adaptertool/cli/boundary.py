"""Where errors end: every one becomes a message and an exit code. Signals, and what is printed."""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import sys
from collections.abc import Mapping
from types import FrameType
from typing import NoReturn, TextIO

import click

from adaptertool.errors import AdapterToolError, InternalError, StorageError, UsageError, shown
from adaptertool.interrupts import interrupt
from adaptertool.render.machine import annotation, error_to_json

_KEPT = "the output keeps the dtype of each tensor of BASE. For another, convert BASE before it, or OUT after it."
# Options that are looked for, by command, and why it does not have them
_UNKNOWN: Mapping[tuple[str | None, str], str] = {("merge", "--dtype"): _KEPT, ("wise", "--dtype"): _KEPT}
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(cli: click.Group) -> NoReturn:
    """Run the command line: every error becomes a message and an exit code, never a traceback. Raises what a command
    raised only with --debug."""
    for number in _SIGNALS:
        signal.signal(number, _interrupted)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a bare container may have no UTF-8
    gc.disable()  # a large plan is a million live objects that the collector would walk again and again, for nothing
    try:
        code = cli.main(prog_name="adaptertool", standalone_mode=False) or 0  # what a command exits with, if not 0
    except SystemExit:
        code = 0  # click's answer where the reader of our stdout has gone away, as in `--help | head`
    except click.ClickException as error:
        code = _misused(_explained(error))
    except Exception as error:  # the one boundary: nothing passes it but with --debug
        if "--debug" in sys.argv:
            raise
        code = _fail(_known(error))
    sys.exit(code)


def _explained(error: click.ClickException) -> click.ClickException:
    """The error, with a reason where an option is not there that one may well look for."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        reason = _UNKNOWN.get((error.ctx.command.name, error.option_name))
        if reason is not None:
            return click.UsageError(f"There is no {error.option_name}: {reason}", error.ctx)
    return error


def _misused(error: click.ClickException) -> int:
    """Say the error as click tells it, with the usage; returns the exit code."""
    text = io.StringIO()
    error.show(text)
    say(text.getvalue().rstrip("\n"), sys.stderr)
    return _fail(UsageError(error.format_message()), said=True)


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
        say(f"adaptertool: {error.on_command_line}", sys.stderr)
    if "--json" in sys.argv:  # asked here and not of click, since the error may be in parsing
        with contextlib.suppress(AdapterToolError):  # the error that is being told counts more than a full stdout
            say(error_to_json(error), sys.stdout)
    annotate(error.on_command_line)
    return error.exit_code


def annotate(text: str) -> None:
    """In GitHub's Actions, tell the page of the run too. On stderr, which its runner reads as well."""
    if os.environ.get("GITHUB_ACTIONS") == "true":
        say(annotation(text), sys.stderr)


def say(text: str, stream: TextIO | None) -> None:
    """Print, with control characters escaped. A reader that has gone away is no error; a full disk is, for what is
    asked for: what is said on stderr beside it must not end a run. Raises StorageError."""
    if stream is None:  # closed by the caller
        return
    try:
        print("\n".join(map(shown, text.split("\n"))), file=stream, flush=True)
    except OSError as error:
        # Nothing more can be written there; without this Python would try again when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if error.errno != errno.EPIPE and stream is not sys.stderr:
            raise StorageError(f"writing to {stream.name} failed: {error.strerror}") from error


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    ignore_signals()  # a second Ctrl-C must not stop the cleaning
    interrupt()


def ignore_signals() -> None:
    """From here on the run is finished, one way or the other."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
