"""A method over one tensor, as a merge does it, in memory."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from adaptertool.arguments import settings_for
from adaptertool.methods import METHOD_BY_NAME, Block, Method, Place, Settings, Survey
from adaptertool.numerics.top_k import Band, band


def blended(
    name: str,
    base: np.ndarray,
    tuned: Sequence[np.ndarray],
    weights: Sequence[float],
    settings: dict[str, Any],
) -> np.ndarray:
    """What `merge --method` computes before it rounds; settings that are tuples are one for each source."""
    method = METHOD_BY_NAME[name]
    each = {key: value for key, value in settings.items() if isinstance(value, tuple)}
    given = settings_for(method, settings | {key: value[0] for key, value in each.items()}) | each
    changes = [(model - base).reshape(-1) for model in tuned]
    columns = base.shape[-1]
    return combined(method, base.reshape(-1), changes, weights, given, (3 * columns, columns)).reshape(base.shape)


def combined(
    method: Method,
    base: np.ndarray,
    changes: Sequence[np.ndarray],
    weights: Sequence[float],
    settings: Settings,
    cut: tuple[int, int],
) -> np.ndarray:
    """A flat tensor and changes to it, combined. cut: the elements of a block and of a row."""
    step, columns = cut

    def parts(number: int, function: Callable[[Any], Any]) -> Iterator[Any]:
        for first in range(0, base.size, step):
            yield function(changes[number][first : first + step])

    bands: list[Band | None] = []
    for number in range(len(changes)):
        skipped, count = method.counts(settings, number, base.size)
        trims = method.trims and count < base.size
        bands.append(band(functools.partial(parts, number), skipped, count) if trims else None)

    def blocks() -> Iterator[Block]:
        for part, first in enumerate(range(0, base.size, step)):
            block = slice(first, first + step)
            place = Place("name", first, len(base[block]), columns)
            whole = [change[block] for change in changes]
            thinned = [
                method.thinned(change, settings, place, source, bands[source], part)
                for source, change in enumerate(whole)
            ]
            yield Block(base[block], thinned, whole)

    found = (
        None
        if method.survey is None
        else method.survey(Survey(lambda function: map(function, blocks()), weights, settings, columns))
    )
    return np.concatenate([method.combine(one.base, one.changes, weights, settings, found) for one in blocks()])
