"""`--html`: a page beside what a command says. What draws it is loaded where one is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from adaptertool.cli.table import load


def require(target: str | None) -> None:
    """Refuse a page that cannot be made, before anything is computed. Raises UsageError."""
    if target is not None:
        load("pages_drawn", "require")(target)


def save(
    target: str | None, page: str, report: object, inputs: Iterable[str | None], *more: Callable[[], object]
) -> None:
    """Write the page of a report, where one is asked for.

    page:   which it is (cli.pages_drawn)
    inputs: paths, of which the footer has sizes and hashes
    more:   what else the page shows, made only then
    """
    if target is not None:
        load("pages_drawn", "save")(target, page, report, inputs, *(make() for make in more))
