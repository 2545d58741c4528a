"""What scores a checkpoint: a command that is given its path and prints numbers, or a function."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import numbers
import os
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from adaptertool.errors import InputError, UsageError, shown
from adaptertool.files.jsonfile import parse_json
from adaptertool.interrupts import deferred
from adaptertool.process import environment
from adaptertool.reports.scores import Scores

Score = str | Callable[[str], object]  # a command, or a function

PLACE = "{}"
WANTED = "a number, or a JSON object of named numbers, is to be the last line on stdout, or all of it"
_END_BYTES, _END_LINES = 2000, 20  # of each stream, of what a command that failed has printed
_LAST_LINE = 100_000  # bytes of stdout among which the last line must lie
_GONE = (ProcessLookupError, PermissionError)  # macOS says the latter of a group of which only zombies are left
_PATIENCE = 5.0  # seconds that an interrupted command has to end by itself


class ScoringError(Exception):
    """One checkpoint could not be scored; the others may be. The message says why, over several lines."""


class Scorer(NamedTuple):
    name: str  # as it was given
    identity: str  # what was made for a scorer is taken over for one of the same identity only
    score: Callable[[Path], Scores]  # raises ScoringError
    lasting: bool  # whether what it says now may be taken over later


def scorer_of(score: Score) -> Scorer:
    """Raises UsageError for a command that cannot be one. Paths in it are those of the current directory."""
    if isinstance(score, str):
        arguments = parse_command(score)
        identity = repr((arguments, str(Path.cwd()), _programs(arguments)))
        return Scorer(score, identity, functools.partial(_by_command, arguments), lasting=True)
    name = getattr(score, "__qualname__", type(score).__qualname__)
    return Scorer(
        name, f"function {name}", functools.partial(_by_function, score), lasting=False
    )  # who knows what it is


def parse_command(text: str) -> list[str]:
    """The arguments of a command as a shell would split them; none is run. Raises UsageError."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"the scoring command {text!r} cannot be split: {error}") from error
    if not any(PLACE in argument for argument in arguments):
        raise UsageError(f"the scoring command {text!r} has no {PLACE}, where the path of the checkpoint is to stand")
    if shutil.which(arguments[0]) is None:
        raise UsageError(f"the scoring command begins with {arguments[0]!r}, which is no program that can be run")
    return arguments


def _programs(arguments: Sequence[str]) -> list[tuple[str, int, int]]:
    """The program and its script as they are now: of its arguments, the files before the first option and before {}.
    Those after may be files that it writes."""
    found = []
    script = itertools.takewhile(lambda word: not word.startswith("-") and PLACE not in word, arguments[1:])
    for path in (shutil.which(arguments[0]) or "", *script):
        with contextlib.suppress(OSError, ValueError):  # no path at all, or too long for one
            facts = Path(path).stat()
            if stat.S_ISREG(facts.st_mode):
                found.append((path, facts.st_size, facts.st_mtime_ns))
    return found


def _by_command(arguments: Sequence[str], path: Path) -> Scores:
    """Runs it, without a shell, with the path in the place of each {}."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            code = _run([argument.replace(PLACE, str(path)) for argument in arguments], out, err)
            if code:
                raise ScoringError(f"killed by signal {-code}" if code < 0 else f"exit code {code}")
            return parse_scores(_end(out, _LAST_LINE))
        except OSError as error:
            raise ScoringError(f"could not be run: {error.strerror}") from error
        except ScoringError as error:
            raise ScoringError("\n".join([str(error), *_quoted("stdout", out), *_quoted("stderr", err)])) from error


def _by_function(function: Callable[[str], object], path: Path) -> Scores:
    """Calls it with the path; an exception of its own counts as a failure of that point."""
    try:
        return checked_scores(function(str(path)))
    except ScoringError:
        raise
    except Exception as error:  # whatever it raises: the other points are not to be lost
        raise ScoringError(f"{type(error).__name__}: {error}") from error


def parse_scores(text: str) -> Scores:
    """The scores of a command's output: of all of it, if that is a JSON object; else of its last line. Raises
    ScoringError where there are none."""
    whole = text.strip()
    if not whole:
        raise ScoringError(f"nothing on stdout: {WANTED}")
    if "\n" in whole and whole.startswith("{"):
        with contextlib.suppress(InputError):
            return checked_scores(parse_json(whole.encode(errors="backslashreplace"), "stdout"))
    last = whole.rsplit("\n", 1)[-1].strip()
    if last.startswith("{"):
        try:
            return checked_scores(parse_json(last.encode(errors="backslashreplace"), "its last line"))
        except InputError as error:
            raise ScoringError(f"{error}: {WANTED}") from error
    try:
        return checked_scores(float(last))
    except ValueError as error:
        raise ScoringError(f"its last line is no number: {WANTED}") from error


def checked_scores(value: object) -> dict[str, float]:
    """Finite floats by name; a number alone is called "score". Raises ScoringError."""
    named = value if isinstance(value, Mapping) else {"score": value}
    if not named:
        raise ScoringError(f"no scores: {WANTED}")
    scores = {}
    for name, number in named.items():
        if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise ScoringError(f"the score {shown(name)} is no number but {shown(repr(number)[:100])}: {WANTED}")
        try:
            scores[name] = float(number)
        except OverflowError as error:
            raise ScoringError(f"the score {shown(name)} is too large") from error
        if name == "alpha":
            raise ScoringError("a score cannot be called alpha, which is the first column of the table")
        if not math.isfinite(scores[name]):
            raise ScoringError(f"the score {shown(name)} is {number}, which is not finite")
    return scores


def _run(arguments: Sequence[str], out: IO[bytes], err: IO[bytes]) -> int:
    """Run a command; returns its exit code. In a process group of its own, so that an interruption reaches it once,
    through us."""
    child = None
    try:
        with deferred():  # a signal must not come between its start and our knowing of it
            child = subprocess.Popen(
                arguments, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0, env=environment()
            )
        return child.wait()
    except BaseException:
        if child is not None:
            _stop(child)
        raise


def _stop(child: subprocess.Popen[bytes]) -> None:
    """SIGINT to it and what it has started; what is left after a while is killed."""
    with contextlib.suppress(*_GONE, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGINT)
        child.wait(_PATIENCE)
    with contextlib.suppress(*_GONE):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _end(file: IO[bytes], size: int) -> str:
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    return file.read().decode(errors="backslashreplace")


def _quoted(name: str, file: IO[bytes]) -> list[str]:
    """The last lines of a stream, as they may be printed."""
    lines = _end(file, _END_BYTES).rstrip().split("\n")[-_END_LINES:]
    return [f"  {name}: {shown(line)}" for line in lines if line]
