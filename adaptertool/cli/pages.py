"""`--html`: a page beside what a command says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from adaptertool.files.identity import identity
from adaptertool.render import page
from adaptertool.render.made import Made, made, moment

R = TypeVar("R")


def require(target: str | None) -> None:
    """Refuse a page that cannot be made, before anything is computed. Raises UsageError."""
    if target is not None:
        page.require(target)
        moment()


def save(target: str | None, draw: Callable[[R, Made], str], report: R, inputs: Iterable[str | None]) -> None:
    """Write the page of a report, where one is asked for. inputs: paths, of which the footer has sizes and hashes."""
    if target is not None:
        named = dict.fromkeys(path for path in inputs if path)
        page.write(target, draw(report, made(sys.argv[1:], [(path, identity(path)) for path in named])))
