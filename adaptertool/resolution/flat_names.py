"""Parameters of a model by the flat names that kohya's tools have for them (architectures/flat.py): also of layers that
the adapter has apart and the base together, or together where they are apart in the base."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

from adaptertool.architectures.flat import by_flat_name, without_prefix
from adaptertool.patterns import regex
from adaptertool.resolution.fused import FUSED, IN_FUSED, split

_EXPERT = regex(rf"(.*_experts)_(\d{{1,9}})_({'|'.join(IN_FUSED)})\.weight")


class FlatNames:
    """Which parameters a flat name may stand for."""

    def __init__(self, known: Callable[[], Collection[str]]) -> None:
        """known: the names of all tensors, on the disk and in memory; asked for where a flat name is"""
        self._known = known

    def __call__(self, name: str) -> Sequence[str]:
        if (flat := without_prefix(name)) is None:
            return ()
        if (found := self._by_name.get(flat)) or (match := _EXPERT.fullmatch(flat)) is None:
            return found or ()
        before, expert, projection = match.groups()  # one of those that a tensor holds
        held = {IN_FUSED[projection][0], projection}
        stacks = [one for parameter in held for one in self._by_name.get(f"{before}.{parameter}", ())]
        return sorted({f"{one.rpartition('.')[0]}.{expert}.{projection}.weight" for one in stacks})

    @functools.cached_property
    def _by_name(self) -> Mapping[str, list[str]]:
        known = self._known()
        return by_flat_name(sorted({*known, *_also_called(known)}))


def _also_called(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        before, projection, kind = split(name)
        yield from (f"{before}{part}.{kind}" for part in FUSED.get(projection, ()))
        yield from (f"{before}{fused}.{kind}" for fused, parts in FUSED.items() if projection == parts[0])
