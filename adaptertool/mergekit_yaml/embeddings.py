"""Embeddings and heads with the rows of other tokens.

The row of a token that a model does not have is that of the one model that has it, or of the base; where several have
it, but not the base, their mean; where none does, zeros. What the configuration says of a token comes before. Rows
beyond the tokens are the mean of all. Source: mergekit 0.1.5 (`PermutedVocabulary`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.errors import InputError, shown
from adaptertool.kinds.made import made, remembered
from adaptertool.mergekit_yaml.records import Model
from adaptertool.mergekit_yaml.vocabulary import Tokens
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

Places = tuple[tuple[int, int], ...]  # of a row: (number of the tensor, row there); the mean of several, none: zeros
_AT_ONCE = 4096  # rows


class _Rows(NamedTuple):
    """Where each row of an embedding comes from."""

    refs: Sequence[Ref]
    places: Sequence[Places]
    shape: tuple[int, ...]

    def read(self, read: ReadRows, first: int, last: int) -> Array:
        """Rows first..last, float64; what lies in a row in one tensor is read at once."""
        found = np.zeros((last - first, math.prod(self.shape[1:])))
        at = first
        while at < last:
            places = self.places[at]
            if len(places) != 1:
                rows = [read(self.refs[number], row, row + 1)[0] for number, row in places]
                if rows:
                    found[at - first] = sum(rows) / len(rows)
                at += 1
                continue
            ((number, row),) = places
            end = at + 1
            while end < last and self.places[end] == ((number, row + end - at),):
                end += 1
            found[at - first : end - first] = read(self.refs[number], row, row + end - at)
            at = end
        return found


def with_rows(tokens: Tokens, models: Sequence[Model], refs: Sequence[Ref], base: Model | None) -> list[Ref]:
    """The tensors of each model, with a row for each token of the output; the same where that changes nothing. Raises
    InputError for tokens whose row is to come from where it is not."""
    if all(ref.shape[0] == tokens.size for ref in refs) and not tokens.asked:
        same = list(range(tokens.size))
        if all(list(tokens.rows[model]) == same for model in models):
            return list(refs)
    defaults = [_default(tokens, models, base, token) for token in range(tokens.known)]
    found = []
    for own, model in enumerate(models):
        places: list[Places] = []
        for token in range(tokens.known):
            row, asked = tokens.rows[model][token], tokens.asked.get(token)
            places.append(((own, row),) if row >= 0 and not (asked and asked.force) else defaults[token])
        found.append(_made(refs, places, (tokens.size, *refs[own].shape[1:])))
    for ref, model in zip(refs, models, strict=True):
        if any(row >= ref.shape[0] for row in tokens.rows[model]):
            raise InputError(f"{ref.path}: {shown(ref.spec.name)} has fewer rows than its tokenizer has tokens")
    return found


def _default(tokens: Tokens, models: Sequence[Model], base: Model | None, token: int) -> Places:
    has = [number for number, model in enumerate(models) if tokens.rows[model][token] >= 0]
    asked = tokens.asked.get(token)
    if asked is None:
        if base in models and models.index(base) in has:
            has = [models.index(base)]
        return tuple((number, tokens.rows[models[number]][token]) for number in has)
    if asked.model is None:
        return ()
    if asked.model not in models:
        raise InputError(f"the row of a token is to be that of {shown(asked.model)}, which is not merged with it")
    row: int | None = tokens.rows[asked.model][token]
    if asked.token is not None:
        own: Mapping[str, int] = tokens.own[asked.model].tokens
        row = asked.token if isinstance(asked.token, int) else own.get(asked.token)
        row = row if row is not None and row < len(own) else -1
    if row is None or row < 0:
        raise InputError(f"{shown(asked.model)} has no such token: {shown(asked.token)}")
    return ((models.index(asked.model), row),)


def _made(refs: Sequence[Ref], places: Sequence[Places], shape: tuple[int, ...]) -> Ref:
    rows = _Rows(refs, places, shape)
    count = len(places)

    def mean(read: ReadRows) -> Array:
        total = np.zeros(math.prod(shape[1:]))
        for first in range(0, count, _AT_ONCE):
            total += rows.read(read, first, min(count, first + _AT_ONCE)).sum(axis=0)
        return total / count

    kept = remembered(mean)

    def with_mean(read: ReadRows, first: int, last: int) -> Array:
        found = rows.read(read, min(first, count), min(last, count))
        if last <= count:
            return found
        return np.concatenate([found, np.tile(kept(read), (last - max(first, count), 1))])

    return made(refs, shape, with_mean)
