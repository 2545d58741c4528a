"""Opens what is merged into a base, whatever format it came in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats.peft.config import reading
from adaptertool.formats.peft.read import read_adapter
from adaptertool.resolution.renaming import Renames
from adaptertool.spec.adapter import Adapter

COMPOSITIONS = ("sequential", "mixed")


def check_compose(compose: str) -> None:
    if compose not in COMPOSITIONS:
        raise UsageError(f"compose is {' or '.join(COMPOSITIONS)}, not {compose!r}")


def layout_chosen(expert_layout: str | None) -> dict[str, str]:
    """For the manifest, where it is given."""
    return {} if expert_layout is None else {"expert_layout": expert_layout}


def open_adapter(
    path: Path, base: Checkpoint, renames: Renames, leave_out: Sequence[str], expert_layout: str | None
) -> Adapter:
    """The adapter, with the names that it has in the base after all renamings."""
    has, read = renames.holder(base), reading(expert_layout)
    return renames.adapter(read_adapter(path, has, read, base=base, leave_out=leave_out))
