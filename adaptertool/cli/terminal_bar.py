"""The bar of a command on a terminal, by tqdm, which takes a tenth of a start to load: only where one is drawn."""

from __future__ import annotations

from tqdm import tqdm


def terminal_bar(title: str, total: int | None) -> tqdm:
    """A bar of bytes that are done, of so many."""
    tqdm.monitor_interval = 0  # no thread beside ours
    return tqdm(total=total, unit="B", unit_scale=True, desc=title, leave=False, dynamic_ncols=True)
