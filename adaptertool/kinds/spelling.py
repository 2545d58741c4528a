"""How a kind of adapter is written in a format, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adaptertool.records import dataclass, field

COUNT = "modules"  # the setting that says how many modules an adapter changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelling:
    """A kind in a format whose config has fields, and whose tensors have keys: MODULE + what stands in `keys`.

    tag:      what announces the kind: peft_type
              Its rank is the first dimension of the factors that go by column (kinds.kind.Kind.by_column).
    keys:     what follows a module's name in a key -> role
    embedding: the same, of layers that look rows up
    shared:   whole keys of factors that all modules have in common -> role
    numbered: the beginning of such a key, before a number from 0 on -> role: of several, the factor has a row for each
              number, and the kind has the setting COUNT
    of_sorts: the beginning of such a key, before the sort of a module -> role: of factors that all modules of a sort
              have in common
    sort:     (the name of a module) -> its sort
    rank:     the field with the rank; None where there is none, or factors need not agree with it
    alpha:    the field with alpha; None where there is none
    rank_of:  (the shapes of factors) -> the rank, where no config says it; None where alpha plays no part
    scaling:  (alpha, rank) -> the scale, by the float64 expression of the library that wrote it
    scale:    instead of it, where more counts: the scale from all fields of the config; patterns then play no part
    unbounded: the `alpha` beside the factors is a bound of theirs, and 0 where they have none
    bias:     the kind of the change that the same factors make to the layer's bias, where it has one
    only_bias: they change nothing else
    instead:  (field, kind): modules that the field names, by a pattern or the ends of their paths, are of that kind
    variant:  what follows a module's name in the keys of further factors -> role; and the kind of modules with such
    ranked:   roles whose first dimension is the rank, beside those that go by column
    wraps:    the part of a key, below a module, that tensors which take the place of the module's own have before them
    tokens:   the field with the numbers of the rows that tensors which stand for some rows of one
    integers: the roles that may be stored as integers
    settings: fields that count, beside those: the kind has them (Module.settings)
    check:    (fields) -> why these settings are not handled, or None
    fits:     (settings, shapes of a module's factors by role) -> why they do not belong together, or None
    harmless: fields that do not change what the stored factors mean
    note:     what to say of each adapter of the kind
    refused:  fields, what follows a module's name in a key, or begins the key of a shared tensor, that are understood
              and not handled -> why
    """

    tag: str
    keys: Mapping[str, str]
    embedding: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    numbered: Mapping[str, str] = field(default_factory=dict)
    of_sorts: Mapping[str, str] = field(default_factory=dict)
    sort: Callable[[str], str] = str
    rank: str | None = "r"
    alpha: str | None = "alpha"
    rank_of: Callable[[Mapping[str, tuple[int, ...]]], int | None] = lambda _: None
    scaling: Callable[[float, int], float] = lambda alpha, rank: alpha / rank
    scale: Callable[[Mapping[str, Any]], float] | None = None
    unbounded: bool = False
    bias: str | None = None
    only_bias: bool = False
    instead: tuple[str, str] | None = None
    variant: tuple[Mapping[str, str], str] | None = None
    ranked: frozenset[str] = frozenset()
    wraps: str | None = None
    tokens: str = "trainable_token_indices"
    integers: frozenset[str] = frozenset()
    settings: frozenset[str] = frozenset()
    check: Callable[[Mapping[str, Any]], str | None] = lambda _: None
    fits: Callable[[Mapping[str, Any], Mapping[str, tuple[int, ...]]], str | None] = lambda _settings, _shapes: None
    harmless: frozenset[str] = frozenset()
    note: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    def may_be_integer(self, key: str) -> bool:
        """Whether the tensor of this key may be of integers."""
        ends = tuple(ending for ending, role in self.keys.items() if role in self.integers)
        begins = tuple(begin for begin, role in self.of_sorts.items() if role in self.integers)
        return key.endswith(ends) or key.startswith(begins)

    @property
    def fields(self) -> frozenset[str]:
        """The fields that are acted on, or known to change nothing."""
        own = {self.tokens, self.rank, self.alpha, None if self.instead is None else self.instead[0]}
        return self.harmless | self.settings | {name for name in own if name is not None}
