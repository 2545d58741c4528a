"""How much there will be to do, for whoever shows how much is done."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from adaptertool.spec.tensors import Ref


def expect(progress: Callable[[int], None], count: int) -> None:
    """Tell how many bytes there will be: to what takes it, by a method of this name; a plain function does not."""
    told: Callable[[int], None] | None = getattr(progress, "expect", None)
    if told is not None:
        told(count)


def expect_tensors(progress: Callable[[int], None], refs: Iterable[Ref]) -> None:
    expect(progress, sum(ref.spec.nbytes for ref in refs))
