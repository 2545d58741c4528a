"""Colours of pictures, readable on white and on black: a family of modules has the same one on every page."""

from __future__ import annotations

from collections.abc import Sequence

from adaptertool.architectures.families import ATTENTION, EMBEDDINGS, EXPERTS, HEADS, MLP, NORMS

NEUTRAL, ALARMING = "#3b7dd8", "#e5484d"
INK = "#0a0b0c"  # stands for the colour of the page's text, which depends on its mode
OTHER = "#8b949e"  # of what has no colour of its own, and of what is beside the matter
SERIES = (NEUTRAL, "#d9822b", "#2e9e6b", "#9a5fd0", "#0fa3b1", "#c2528b")
_FAMILIES = dict(zip((ATTENTION, MLP, EXPERTS, EMBEDDINGS, NORMS, HEADS), SERIES, strict=True))


def of_family(name: str) -> str:
    """The colour of a family of modules."""
    return _FAMILIES.get(name, OTHER)


def of_series(names: Sequence[str], first: Sequence[str] = ()) -> dict[str, str]:
    """Colours of curves by the order of their names; where there are more names than colours, those in `first` have one
    for certain."""
    chosen = names if len(names) <= len(SERIES) else [*first, *(name for name in names if name not in first)]
    return dict(zip(chosen, SERIES, strict=False))
