"""Names that are near to one that was not found, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that are most like `name`; those that end alike are looked at first."""
    pool = list(names)
    for parts in (3, 2, 1):
        ending = "." + ".".join(name.split(".")[-parts:])
        alike = [candidate for candidate in pool if candidate.endswith(ending)]
        if alike:
            pool = alike
            break
    return difflib.get_close_matches(name, pool[:2000], n=3, cutoff=0.5)
