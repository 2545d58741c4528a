"""Every error that adaptertool raises on purpose, and the exit code that the command line gives it.

    AdapterToolError
    ├── UnchangedError      1   a check that was asked for: no element would change
    ├── UsageError          2   the call is wrong: an option, the path of OUT, a number of weights
    ├── InputError          3   an input file is not what it must be
    │   ├── MismatchError   3   inputs that are good alone but do not fit together
    │   ├── UnsupportedError 3  understood, and refused by name
    │   └── NonFiniteError  3   NaN or Inf in a factor, or a result that overflows its dtype
    ├── StorageError        4   space, permission, I/O
    ├── OutputError         5   OUT exists, or is not ours to replace
    ├── InternalError      70   a fault of our own
    └── Interrupted       130   SIGINT or SIGTERM

A message says what is wrong, in which file and tensor, and what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar

_OPTION = re.compile("\ue000([a-z_]+)\ue001")  # an argument in a message, between characters that nobody uses
_USER = re.compile(r"://[^/?#@\s'\"]+@")
_SIGNED = re.compile(
    r"([?&][^=&\s]*(?:sig|signature|token|credential|secret|key|password)[^=&\s]*=)[^&\s'\"]+", re.IGNORECASE
)
_ON_COMMAND_LINE: Mapping[str, str] = {"weight": "-w", "weights": "-w", "alphas": "--alpha", "renames": "--rename"}


class AdapterToolError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1
    resumable: ClassVar[bool] = False  # whether the same command may get further the next time

    def __init__(self, message: str) -> None:
        # Paths and the like are escaped here. Names from files are `shown` where the message is made, because
        # here a newline inside a name could not be told from one between lines.
        super().__init__(_escaped(_OPTION.sub(r"\1", message)))
        self.on_command_line = _escaped(_OPTION.sub(lambda found: _option(found[1]), message))


class UnchangedError(AdapterToolError):
    """No element of the output differs from the base's, and that was to be an error."""

    exit_code = 1


class UsageError(AdapterToolError):
    """The call itself is wrong."""

    exit_code = 2


class InputError(AdapterToolError):
    """An input file is malformed, unreadable as what it claims to be, or incomplete."""

    exit_code = 3


class MismatchError(InputError):
    """Two inputs do not belong together: names, shapes or dtypes differ."""


class UnsupportedError(InputError):
    """Recognised and refused: handling it wrongly in silence would be worse."""


class NonFiniteError(InputError):
    """NaN or Inf in a factor, or a result beyond the range of the output dtype."""


class StorageError(AdapterToolError):
    """Reading or writing failed: space, permission, I/O."""

    exit_code = 4
    resumable = True


class OutputError(AdapterToolError):
    """The output path is taken, or is not ours to replace."""

    exit_code = 5


class InternalError(AdapterToolError):
    """Something that no input should bring about."""

    exit_code = 70


class Interrupted(AdapterToolError):
    """The run was stopped from outside; nothing was published."""

    exit_code = 130
    resumable = True


def argument(name: str) -> str:
    """An argument of a public function, for a message: the command line calls it by its option."""
    return f"\ue000{name}\ue001"


def _option(name: str) -> str:
    return _ON_COMMAND_LINE.get(name, f"--{name.replace('_', '-')}")


def _escaped(message: str) -> str:
    return "\n".join(map(shown, without_secrets(message).split("\n")))


def without_secrets(text: str) -> str:
    """A text as it may be told: of addresses in it, what is before an @, and what a query has been signed by, is left
    out. They come from files, or from arguments that are no paths."""
    if "://" not in text:
        return text
    return _SIGNED.sub(r"\1...", _USER.sub("://...@", text))


def by(shape: Iterable[int]) -> str:
    """A shape as it is printed: 4×3."""
    return "×".join(map(str, shape)) or "scalar"


def shown(name: object) -> str:
    """`name` as it may be printed: control characters and lone surrogates escaped.

    Names come from files that anyone may have written; a terminal escape in one must not act on a terminal.
    """
    text = str(name)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
