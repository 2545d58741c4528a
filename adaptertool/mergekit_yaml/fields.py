"""Fields of YAML whose names and types are known: what is unknown, or of another type, is refused with its line."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from adaptertool.errors import InputError, shown
from adaptertool.files.yamlfile import Entry, Items, Node, Scalar, Table
from adaptertool.resolution.nearest import nearest

_LARGEST = 300  # decimal places before or behind the point that a float has; exact arithmetic on more takes for ever


def table(node: Node, what: str) -> Table:
    """A map. Raises InputError for anything else."""
    if not isinstance(node, Table):
        raise InputError(f"{node.at}: {what} is a map of fields")
    return node


def items(node: Node, what: str) -> tuple[Node, ...]:
    """A list that is not empty. Raises InputError for anything else."""
    if not isinstance(node, Items) or not node.items:
        raise InputError(f"{node.at}: {what} is a list, with something in it")
    return node.items


def known(node: Node, what: str, names: Iterable[str]) -> dict[str, Entry]:
    """The fields of a map; those that are null count as not given. Raises InputError for a name that is not known."""
    fields, all_names = table(node, what).entries, tuple(names)
    for name, entry in fields.items():
        if name not in all_names:
            near = nearest(name, all_names)
            hint = f"; nearest: {', '.join(near)}" if near else f"; there are {', '.join(all_names)}"
            raise InputError(f"{entry.key.at}: {what} has no field {shown(name)!r}{hint}")
    return {name: entry for name, entry in fields.items() if not is_null(entry.value)}


def is_null(node: Node) -> bool:
    return isinstance(node, Scalar) and node.is_null


def text(node: Node, what: str) -> str:
    """A text that is not empty. Raises InputError for anything else."""
    if not isinstance(node, Scalar) or node.is_null or not node.text:
        raise InputError(f"{node.at}: {what} is a text")
    return node.text


def number(node: Node, what: str) -> Decimal:
    """A finite number. Raises InputError for anything else."""
    found = node.number if isinstance(node, Scalar) else None
    if found is None:
        raise InputError(f"{node.at}: {what} is a number{_got(node)}")
    if found and abs(found.adjusted()) > _LARGEST:
        raise InputError(
            f"{node.at}: {what} is a number that a float has, from 1e-{_LARGEST} to 1e{_LARGEST}{_got(node)}"
        )
    return found


def whole(node: Node, what: str) -> int:
    """A whole number from 0 on. Raises InputError for anything else."""
    found = number(node, what)
    if found != int(found) or not 0 <= found < 1 << 31:
        raise InputError(f"{node.at}: {what} is a whole number from 0 on{_got(node)}")
    return int(found)


def truth(node: Node, what: str) -> bool:
    """True or false, or 1 or 0, as mergekit takes them. Raises InputError for anything else."""
    found = node.truth if isinstance(node, Scalar) else None
    if found is None and isinstance(node, Scalar) and node.number in (0, 1):
        found = bool(node.number)
    if found is None:
        raise InputError(f"{node.at}: {what} is true or false{_got(node)}")
    return found


def _got(node: Node) -> str:
    return f", not {shown(node.text)!r}" if isinstance(node, Scalar) else ""
