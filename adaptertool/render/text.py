"""Reports as text for a person."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adaptertool.errors import shown


def size(count: int) -> str:
    """Bytes in decimal units, as disks and hubs count them."""
    if count < 1000:
        return f"{count} B"
    number = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        number /= 1000
        if number < 999.5 or unit == "TB":
            break
    return f"{number:.3g} {unit}"


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """The lines of a table: the first column to the left, the others to the right."""
    cells = [[shown(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first = row[0].ljust(widths[0])
        yield "  " + "  ".join([first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])


def starred(name: str) -> str:
    """A name in which numbers are *, so that the layers fall together."""
    return ".".join(["*" if part.isdecimal() else part for part in name.split(".")])
