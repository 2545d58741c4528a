"""`clean`: removes what runs that were killed, or failed, have left beside OUT."""

from __future__ import annotations

from adaptertool.arguments import PathLike, as_path
from adaptertool.files import LOCAL, store_of, unfinished
from adaptertool.files.leftovers import left_behind, remove
from adaptertool.files.place import steps_of


def clean(out: PathLike) -> tuple[str, ...]:
    """Remove the staging directories of runs that were to make `out`, or steps of a recipe for it; returns their paths.
    `out` itself stays. In a store, where nobody can tell whether a run is at work, what they had finished is removed
    with them.

    Raises OutputError where such a run is at work, StorageError.
    """
    target = as_path(out, "OUT")
    if store_of(target) is not LOCAL:
        return tuple(unfinished.clean(target))
    found = [(folder, one) for one in (target, steps_of(target)) for folder in left_behind(one)]
    for folder, one in found:
        remove(folder, one)
    return tuple(str(folder) for folder, _ in found)
