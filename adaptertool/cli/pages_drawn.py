"""The pages that `--html` writes, by the command whose report they show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping

from adaptertool.files.identity import identity
from adaptertool.render import page
from adaptertool.render.diff_page import diff_page
from adaptertool.render.drift_page import drift_page
from adaptertool.render.inspect_page import inspect_page
from adaptertool.render.made import made, moment
from adaptertool.render.run_page import run_page
from adaptertool.render.truncate_page import truncate_page
from adaptertool.render.verify_page import verify_page

PAGES: Mapping[str, Callable[..., str]] = {
    "diff": diff_page,
    "drift": drift_page,
    "inspect": inspect_page,
    "run": run_page,
    "truncate": truncate_page,
    "verify": verify_page,
}


def require(target: str) -> None:
    """Refuse a page that cannot be made. Raises UsageError."""
    page.require(target)
    moment()


def save(target: str, name: str, report: object, inputs: Iterable[str | None], *more: object) -> None:
    """Write the page of this name. more: what else it shows"""
    named = dict.fromkeys(path for path in inputs if path)
    page.write(target, PAGES[name](report, made(sys.argv[1:], [(path, identity(path)) for path in named]), *more))
