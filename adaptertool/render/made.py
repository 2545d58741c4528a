"""How a page came to be: for its footer, so that one that is sent on can be traced."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import time
from collections.abc import Sequence

from adaptertool.errors import UsageError, shown
from adaptertool.records import dataclass
from adaptertool.version import __version__

_EPOCH = "SOURCE_DATE_EPOCH"  # https://reproducible-builds.org/specs/source-date-epoch


@dataclass(frozen=True, slots=True)
class Made:
    date: str
    command: str
    versions: str
    inputs: tuple[tuple[str, str], ...]  # path, and what tells it from all others


def made(arguments: Sequence[str], inputs: Sequence[tuple[str, str]]) -> Made:
    """arguments: of the command line, without the name of the program. Raises UsageError as `moment`."""
    versions = (
        f"adaptertool {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    )
    return Made(moment(), shlex.join(("adaptertool", *arguments)), versions, tuple(inputs))


def moment() -> str:
    """Now, or what SOURCE_DATE_EPOCH says, so that a page can be made again byte for byte. Raises UsageError."""
    text = os.environ.get(_EPOCH) or str(int(time.time()))
    try:
        then = datetime.datetime.fromtimestamp(int(text), datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"{_EPOCH} is {shown(text)}, which is no number of seconds since 1970") from error
    return then.strftime("%Y-%m-%d %H:%M UTC")
