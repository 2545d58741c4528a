"""How a kind of adapter is written in a format, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """A kind in a format whose config has fields, and whose tensors have keys: MODULE + what stands in `keys`.

    tag:      what announces the kind: peft_type
              Its rank is the first dimension of the factors that go by column (kinds.kind.Kind.by_column).
    keys:     what follows a module's name in a key -> role
    rank:     the field with the rank
    alpha:    the field with alpha
    scaling:  (alpha, rank) -> the scale, by the float64 expression of the library that wrote it
    harmless: fields that do not change what the stored factors mean
    refused:  fields, or what follows a module's name in a key, that are understood and not handled -> why
    """

    tag: str
    keys: Mapping[str, str]
    rank: str = "r"
    alpha: str = "alpha"
    scaling: Callable[[float, int], float] = lambda alpha, rank: alpha / rank
    harmless: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
