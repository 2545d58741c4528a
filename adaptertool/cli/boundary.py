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

from adaptertool.cli import terminal
from adaptertool.errors import AdapterToolError, InternalError, StorageError, UsageError, shown
from adaptertool.interrupts import interrupt
from adaptertool.render.machine import annotation, error_to_json

# Options that are looked for, and what is there instead
_INSTEAD: Mapping[str, str] = {
    "--alpha": "of an adapter the weight is -w; --alpha is for `wise`",
    "--lora-alpha": "its config has the alpha, and -w is a weight beside it",
    "--scale": "the weight of an adapter is -w",
    "--scaling": "the weight of an adapter is -w",
    "--lora": "adapters are arguments, after BASE",
    "--adapter": "adapters are arguments, after BASE",
    "--overwrite": "an OUT that adaptertool made is replaced with --force",
    "--device": "this is computed by the processor",
    "--quantize": "it is spelled --quantise",
    "--density": "--density belongs to the methods of `merge` and `sum`",
}
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
        code = _misused(error)
    except Exception as error:  # the one boundary: nothing passes it but with --debug
        if "--debug" in sys.argv:
            raise
        code = _fail(_known(error))
    gc.freeze()  # nor as the process ends
    sys.exit(code)


def _explained(error: click.ClickException) -> str:
    """What click says is wrong, with a reason where an option is not there that one may well look for."""
    if isinstance(error, click.NoSuchOption):
        if reason := _INSTEAD.get(error.option_name):
            return f"No such option '{error.option_name}': {reason}."
        if error.ctx is not None and error.ctx.parent is None:
            return f"No such option '{error.option_name}' before a command: its options come after its name."
    said = error.format_message().replace("\t", "  ")
    if said.startswith("No such command 'help'"):
        return "No such command 'help': it is an option, as in `adaptertool merge --help`."
    return said


def _misused(error: click.ClickException) -> int:
    """Say what is wrong, and then how the command is used; returns the exit code."""
    code = _fail(UsageError(_explained(error)))
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is not None:
        say(f"{context.get_usage()}\nTry '{context.command_path} --help' for help.", sys.stderr)
    return code


def _known(error: Exception) -> AdapterToolError:
    if isinstance(error, AdapterToolError):
        return error
    if isinstance(error, OSError):
        return StorageError(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    if isinstance(error, MemoryError):
        return StorageError("out of memory; try fewer --threads")
    kind = type(error).__name__
    return InternalError(f"this should not happen ({kind}: {error}); run again with --debug, and please report it")


def _fail(error: AdapterToolError) -> int:
    """Say what is wrong, on stderr and with --json on stdout too; the exit code."""
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
        text = "\n".join(map(shown, text.split("\n")))
        text = terminal.fitted(text, stream) if stream is sys.stderr else text
        print(terminal.painted(text) if terminal.colours(stream) else text, file=stream, flush=True)
    except OSError as error:
        # Nothing more can be written there; without this Python would try again when it exits, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        if error.errno != errno.EPIPE and stream is not sys.stderr:
            raise StorageError(f"writing to {stream.name} failed: {error.strerror}") from error


def show(text: str) -> None:
    """Print what a person reads on stdout. Raises StorageError."""
    say(terminal.fitted(text), sys.stdout)


def _interrupted(_signal: int, _frame: FrameType | None) -> None:
    ignore_signals()  # a second Ctrl-C must not stop the cleaning
    interrupt()


def ignore_signals() -> None:
    """From here on the run is finished, one way or the other."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
