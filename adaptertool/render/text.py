"""Reports as text for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from unicodedata import east_asian_width

from adaptertool.errors import shown

_FILL = "\1"  # names that are shown have no such character


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


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None) -> Iterator[str]:
    """The lines of a table: the first column to the left, the others to the right. Where that is more than `width`
    columns, the others have a line of their own."""
    cells = [[spread(shown(cell)) for cell in row] for row in (head, *rows)]
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
    fits = width is None or not widths or 2 + first + sum(2 + each for each in widths) <= width
    for name, *others in cells:
        line = "".join(f"  {cell:>{each}}" for cell, each in zip(others, widths, strict=True))
        yield closed(f"  {name:<{first}}{line}".rstrip(" ") if fits else f"  {name}\n  {line}")


def spread(text: str) -> str:
    """The text with a mark after each character that takes two columns of a terminal (those of East Asia), so that its
    length is its width. Marks are taken out again before it is printed."""
    return text if text.isascii() else "".join(one + _FILL * (east_asian_width(one) in "WF") for one in text)


def closed(text: str) -> str:
    """A text that was spread, as it is printed."""
    return text.replace(_FILL, "")


def ruled(rules: Sequence[str]) -> list[str]:
    """The line of a report that says weights of single tensors; none where there are none."""
    return [f"  weights  {'; '.join(map(shown, rules))}"] if rules else []


def starred(name: str) -> str:
    """A name in which numbers are *, so that the layers fall together."""
    return ".".join(["*" if part.isdecimal() else part for part in name.split(".")])


def numbered(form: str, names: Iterable[str]) -> str:
    """A starred name with the first of its numbers, as these names have it: layers.0-3,7.mlp."""
    parts = form.split(".")
    if "*" not in parts:
        return form
    first = parts.index("*")
    numbers = sorted({int(name.split(".")[first]) for name in names})
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    parts[first] = ",".join(f"{low}" if low == high else f"{low}-{high}" for low, high in spans)
    return ".".join(parts)
