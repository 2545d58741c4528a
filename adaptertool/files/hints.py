"""What an error says of a path that is not what it should be, and of where that may be."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from adaptertool.errors import StorageError, shown
from adaptertool.files import LOCAL, store_of
from adaptertool.patterns import regex

PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
_LOOKED_AT = 5000  # names that another is compared with
_LISTED = 8  # folders that are named
_HUB = regex(r"\w[\w.-]*/[\w.-]+/?")
_UNEXPANDED = regex(r"[$*?]")  # what a shell takes the place of, unless it is quoted


def not_there(path: Path) -> str:
    """A path that does not exist, and what may be meant by it: a name that is nearly that, what a shell would have made
    of it, or a repository on the hub."""
    if store_of(path) is not LOCAL:
        return f"{shown(path)} does not exist"
    return f"{shown(path)} does not exist{_meant(path, str(path))}"


def _meant(path: Path, text: str) -> str:
    if text.startswith("~"):
        home = os.path.expanduser(text)  # noqa: PTH111  # which does not raise where there is no such user
        meant = f": give {shown(home)}" if os.path.exists(home) else ""
        return f"; a shell puts a folder in the place of ~ only where it is not quoted{meant}"
    if near := _near(path):
        quote = " (a path with a blank in it needs quotes)" if " " in near.name and " " not in path.name else ""
        return f"; did you mean {shown(near)}{quote}?"
    if found := _UNEXPANDED.search(text):
        return f"; a shell expands {found[0]} only where it is not quoted, and there is what it stands for"
    return _on_hub(text.rstrip("/")) if _HUB.fullmatch(text) else ""


def _on_hub(name: str) -> str:
    get = f"if it is on the hub: `hf download {name}` first, and give {name}"
    return f", nor does the local cache of the hub have it ({get})"


def _near(path: Path) -> Path | None:
    """The path with the first name in it that is not there spelled as one that is, where that leads somewhere."""
    parts = path.parts
    missing = next((at for at in range(len(parts)) if not os.path.lexists(Path(*parts[: at + 1]))), None)
    if missing is None:
        return None
    above = Path(*parts[:missing])
    with contextlib.suppress(OSError):
        present = [one.name for one in itertools.islice(above.iterdir(), _LOOKED_AT)]
        cut_short = sorted(name for name in present if name.startswith(f"{parts[missing]} "))  # was it not quoted?
        for name in difflib.get_close_matches(parts[missing], present, n=_LISTED) + cut_short:
            meant = Path(above, name, *parts[missing + 1 :])
            if os.path.exists(meant):
                return meant
    return None


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


def another_file(path: Path) -> str:
    """The end of a message on a file that is read by nobody, and begins with "; "."""
    if path.suffix.lower() in PICKLES:
        return "; it is a pickle, and pickles are never opened: convert it to safetensors"
    if path.suffix.lower() == ".json":
        return f"; give the directory that it stands in, {shown(path.parent)}"
    return "; nothing else is read"


def from_pickle(source: Path, target: Path) -> str:
    """The command that makes a safetensors file of a pickle that holds tensors by name, and runs no code in it."""
    code = (
        "import sys, torch; from safetensors.torch import save_file; save_file({k: v.contiguous().clone() for k, v in "
        "torch.load(sys.argv[1], map_location='cpu', weights_only=True).items()}, sys.argv[2])"
    )
    return f'python -c "{code}" {shlex.quote(str(source))} {shlex.quote(str(target))}'
