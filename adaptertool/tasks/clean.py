"""`clean`: removes what runs that were killed, or failed, have left beside OUT."""

from __future__ import annotations

from adaptertool.arguments import PathLike, as_path
from adaptertool.files.leftovers import left_behind, remove


def clean(out: PathLike) -> tuple[str, ...]:
    """Remove the staging directories of runs that were to make `out`; returns their paths. `out` itself stays.

    Raises OutputError where such a run is at work, StorageError.
    """
    target = as_path(out, "OUT")
    folders = left_behind(target)
    for folder in folders:
        remove(folder, target)
    return tuple(map(str, folders))
