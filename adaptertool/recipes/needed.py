"""Which steps of a recipe its last output is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def needed(steps: Sequence[Mapping[str, Any]], last: int) -> tuple[list[int], list[str]]:
    """The numbers of the steps that make the last output, and of all checks with what they take, as a manifest has the
    steps; and notes on those that are left out, which made other outputs.

    last: the number of the last step that writes
    """
    found, taken = list[int](), ""
    for number in reversed(range(len(steps))):
        name = steps[number].get("name")  # of steps that write alone
        if name is None or number == last or f"${{{name}}}" in taken:
            found.insert(0, number)
            taken += str(steps[number])
    return found, [
        f"step {number + 1}, {step['name']}, is left out: it made another output, of which this one is not made"
        for number, step in enumerate(steps)
        if number not in found
    ]
