"""What a terminal is shown of what is said: colours where they mean something, and lines that end where it does."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

import click

from adaptertool.patterns import regex
from adaptertool.render.text import closed, spread

MODES = ("auto", "always", "never")
# What has a colour: the first group of each, at an end of a line and beside what only we say there
_MEANT = tuple(
    (regex(pattern, re.MULTILINE), colour)
    for colour, patterns in {
        "red": (
            r"\A(?:verify|diff) .*: (WRONG|DIFFERENT)$",
            r"^  verdict   (suspect|above the limit):",
            r"^  (problem|refused|wrong|missing|extra|untouched_changed) ",
            r"^  (size|content|missing|not in the manifest|no plain file): ",
            r"  (suspect)$",
            r"^KL per token is (ABOVE) ",
            r"\A(adaptertool:) (?!note: )",
        ),
        "yellow": (r"^  (finding|stray|lost|slow) ", r"\Aadaptertool: (note:) "),
        "green": (
            r"\A(?:verify|diff) .*: (right|equal)$",
            r"^  verdict   (expected):",
            r"^  (fits) ",
            r"^KL per token is (within) ",
        ),
    }.items()
    for pattern in patterns
)
_HELD, _IN_COMMAND = "\0", "\2"  # blanks where no line ends; what is printed has no such characters
_COMMAND = regex(r"`[^`]*`\S*")
_LABEL = regex(r"  [a-z][a-z ]{7,8} (?=\S)")  # before what a report says


def colours(stream: TextIO) -> bool:
    """Whether what is written there has colours: as --color says, else on a terminal, unless NO_COLOR is set."""
    asked = _asked(sys.argv)
    if asked in ("always", "never"):
        return asked == "always"
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _asked(arguments: Sequence[str]) -> str:
    """Asked here and not of click, since what is said may be an error in parsing."""
    asked = "auto"
    for text, following in itertools.pairwise([*arguments, ""]):
        name, _, value = text.partition("=")
        if name == "--color":
            asked = value or following
    return asked


def painted(text: str) -> str:
    """The text, in which control characters are escaped already, with colours."""
    for pattern, colour in _MEANT:
        text = pattern.sub(lambda found, colour=colour: _with_colour(found, colour), text)  # type: ignore[misc]
    return text


def _with_colour(found: re.Match[str], colour: str) -> str:
    begin, end = found.start(1) - found.start(), found.end(1) - found.start()
    return found[0][:begin] + click.style(found[1], fg=colour, bold=True) + found[0][end:]


def room(stream: TextIO | None = None) -> int | None:
    """The columns of the terminal that a stream is, stdout unless given; None where it is none: nothing is cut to fit
    there."""
    stream = stream or sys.stdout
    return shutil.get_terminal_size().columns if stream is not None and stream.isatty() else None


def fitted(text: str, stream: TextIO | None = None) -> str:
    """The text with lines that are too long for the terminal broken between words, and indented below their first; but
    commands, which are copied, stay whole."""
    width = room(stream)
    return text if width is None else "\n".join(closed(_broken(spread(line), width)) for line in text.split("\n"))


def _broken(line: str, width: int) -> str:
    if len(line) <= width or line.startswith("  python"):
        return line
    line = _COMMAND.sub(lambda found: found[0].replace(" ", _IN_COMMAND), line)
    label = _LABEL.match(line)
    indent = " " * (label.end() if label and width > 2 * label.end() else 4)
    how: Any = {"subsequent_indent": indent, "break_long_words": False, "break_on_hyphens": False}
    # Facts that stand two blanks apart stay whole, where they can
    whole = line if label else re.sub(r"(?<=\S) (?=\S)", _HELD, line)
    parts = [part.replace(_HELD, " ") for part in textwrap.wrap(whole, width, **how)]
    broken = "\n".join(one for part in parts for one in textwrap.wrap(part, width, **how))
    return broken.replace(_IN_COMMAND, " ")
