"""What an error says of a path that is not what it should be, and of where that may be."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from adaptertool.errors import StorageError, shown
from adaptertool.files import store_of

_LISTED = 8  # folders that are named
_HUB = re.compile(r"(?:https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/)?(\w[\w.-]*/[\w.-]+)(?:/tree/.*)?/?")


def not_there(path: Path) -> str:
    """A path that does not exist, and may be meant for a repository on the hub."""
    if found := _HUB.fullmatch(str(path)):
        return f"{shown(path)} does not exist (if it is on the hub: `hf download {found[1]} --local-dir DIR` first)"
    return f"{shown(path)} does not exist"


def found_below(root: Path, names: Sequence[str]) -> str:
    """The end of a message that says where one of these files is: one level below `root`, or in the snapshots of a
    folder of the hub's cache. It begins with "; ", and is empty where there is none."""
    store = store_of(root)
    folders: list[Path] = []
    with contextlib.suppress(StorageError):  # the second is not there, as a rule
        for here in (root, root / "snapshots"):
            folders += [here / one.name for one in store.entries(here) if one.is_folder]
    found = [folder for folder in folders if any(store.look(folder / name) is not None for name in names)]
    found.sort(key=lambda folder: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", folder.name)])
    with contextlib.suppress(OSError, ValueError):  # which snapshot is the present one
        main = (root / "refs" / "main").read_text().strip()
        found.sort(key=lambda folder: folder.name != main)
    if not found:
        return ""
    if len(found) == 1:
        return f"; there is one in {shown(found[0])}: give that path"
    return f"; give one of {', '.join(map(shown, found[:_LISTED]))}{' ...' if len(found) > _LISTED else ''}"


def from_pickle(source: Path, target: Path) -> str:
    """The command that makes a safetensors file of a pickle that holds tensors by name, and runs no code in it."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; save_file({k: v.contiguous().clone() for k, v in "
        "torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}, sys.argv[2])"
    )
    return f'python -c "{code}" {shlex.quote(str(source))} {shlex.quote(str(target))}'
