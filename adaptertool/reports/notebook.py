"""Reports in notebooks: as cards, by what the facade of the package puts here, since data does not know how it is
shown."""

from __future__ import annotations

from collections.abc import Callable

_CARDS: list[Callable[[object], str]] = []


def shows(card: Callable[[object], str]) -> None:
    """From now on reports are shown as `card` makes them, in HTML."""
    _CARDS[:] = [card]


class InNotebook:
    """What a notebook asks a report for."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        """The report as HTML; None: it is shown as any other value."""
        return _CARDS[0](self) if _CARDS else None
