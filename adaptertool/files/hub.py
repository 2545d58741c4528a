"""The local cache of the Hugging Face hub: a repository by its name, where it was downloaded before.

A name is `org/name`, `org/name@revision` or `org/name@revision/path/inside`: a branch, a tag, `refs/pr/1`, or a whole
commit; the default is `main`. It is found where huggingface_hub would find it without a network:

    CACHE/models--org--name/refs/REVISION              the commit, as text
    CACHE/models--org--name/snapshots/COMMIT/...       links to ../../blobs
    CACHE/models--org--name/trees/COMMIT.json          the names of all files, where the downloader knew them

Nothing is downloaded here, and huggingface_hub is not imported. Source: huggingface_hub 1.x (constants,
_snapshot_download, _tree_cache, hf_file_system for names with revisions).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from adaptertool.errors import AdapterToolError, InputError, shown
from adaptertool.files import LOCAL, store_of
from adaptertool.files.jsonfile import load_json
from adaptertool.patterns import regex

_MAIN = "main"
_NAME = regex(
    r"(?P<repository>(?:\w[\w.-]*/)?\w[\w.-]*)"
    r"(?:@(?P<revision>refs/(?:convert/\w+|pr/\d+)|[^/@]+))?"
    r"(?P<inside>(?:/[^/]+)*)",
    re.ASCII,
)
_COMMIT = regex(r"[0-9a-f]{40}")
_FOLDER = "models--"
_LISTED = 8  # revisions that are named


class Snapshot(NamedTuple):
    """A path in the cache: of which repository, at which commit."""

    folder: Path  # of the repository
    commit: str
    inside: str  # the path below the commit; "" for all of it

    @property
    def repository(self) -> str:
        return self.folder.name.removeprefix(_FOLDER).replace("--", "/")

    @property
    def root(self) -> Path:
        return self.folder / "snapshots" / self.commit

    def __str__(self) -> str:
        """The name that finds just this again."""
        return "/".join(filter(None, (f"{self.repository}@{self.commit}", self.inside)))


def cache() -> Path:
    """The folder of the cache: $HF_HUB_CACHE, else $HF_HOME/hub, else ~/.cache/huggingface/hub."""
    near = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", str(Path(near) / "huggingface"))
    given = os.environ.get("HF_HUB_CACHE", os.environ.get("HUGGINGFACE_HUB_CACHE"))
    return Path(os.path.expandvars(Path(given or Path(home) / "hub").expanduser()))


def find(text: str) -> Path | None:
    """The path in the cache that a name stands for; None where the text is no name, or something local is called so,
    or the cache has nothing of that repository. A folder `models--org--name` stands for its revision `main`.

    Raises InputError where the cache has the repository, and not the revision or the file inside.
    """
    if os.path.lexists(text):
        folder = _absolute(text)
        commit = _commit(folder, _MAIN) if folder.name.startswith(_FOLDER) else None
        return None if commit is None else folder / "snapshots" / commit
    if (found := _NAME.fullmatch(text)) is None:
        return None
    # `a/b` is a repository, and not the file b of a repository a, which are only those of the early days
    repository, inside = found["repository"], found["inside"].removeprefix("/")
    folder = cache() / (_FOLDER + repository.replace("/", "--"))
    if "--" in repository or not os.path.isdir(folder):
        return None
    revision = unquote(found["revision"] or _MAIN)
    commit = _commit(folder, revision)
    if commit is None:
        raise InputError(
            f"{shown(text)} is not in the local cache of the hub: of {repository} that has {_present(folder)}; "
            f"{_download(repository, revision)} brings it"
        )
    path = folder / "snapshots" / commit / inside
    if ".." in inside.split("/") or not os.path.lexists(path):
        raise InputError(
            f"{shown(text)} is not in the local cache of the hub, which has {repository} at {commit}; "
            f"{_download(repository, revision, inside)} brings it, if that is its name"
        )
    return path


def _absolute(path: str | Path) -> Path:
    """Without "." and "..", and with all links as they are."""
    return Path(os.path.normpath(Path.cwd() / path))


def _commit(folder: Path, revision: str) -> str | None:
    """The commit of a revision whose snapshot is there."""
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / revision).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    plain = re.fullmatch(r"\w[\w.-]*", commit)
    return commit if plain and os.path.isdir(folder / "snapshots" / commit) else None


def _present(folder: Path) -> str:
    """The revisions and commits that the cache has of a repository."""
    names = [path.relative_to(folder / "refs").as_posix() for path in sorted((folder / "refs").rglob("*"))]
    known = {name: commit for name in names if (commit := _commit(folder, name))}
    others = sorted({path.name for path in (folder / "snapshots").glob("*")} - set(known.values()))
    told = [*(f"{name} ({commit})" for name, commit in known.items()), *others]
    return ", ".join(map(shown, told[:_LISTED])) or "no whole revision"


def _download(repository: str, revision: str, inside: str = "") -> str:
    at = "" if revision == _MAIN else f" --revision {revision}"
    return f"`hf download {repository}{' ' * bool(inside)}{inside}{at}`"


def snapshot_of(path: Path) -> Snapshot | None:
    """What a path in a cache is part of, whichever way it was given; None for all others."""
    if store_of(path) is not LOCAL:
        return None
    # As it stands first: links inside a snapshot lead to blobs, which have no names
    for one in (_absolute(path), Path(os.path.realpath(path))):
        for folder in one.parents:
            if folder.name == "snapshots" and folder.parent.name.startswith(_FOLDER):
                commit, *inside = one.relative_to(folder).parts
                return Snapshot(folder.parent, commit, "/".join(inside))
    return None


def called(path: Path) -> str:
    """What a report calls an input: `org/name@commit` in the cache, else its path."""
    return str(snapshot_of(path) or path)


def kept_as(path: Path) -> str:
    """What a manifest calls an input: the same, but of a path its last name alone."""
    return str(snapshot_of(path) or path.resolve().name)


def repository_of(path: Path) -> str | None:
    """The name of the repository that a path in the cache belongs to, without its commit."""
    found = snapshot_of(path)
    return None if found is None else found.repository


def to_complete(path: Path) -> str:
    """The end of a message that something is missing at a path: how to have it, where that is in the cache. It begins
    with "; ", and is empty where the path is elsewhere."""
    found = snapshot_of(path)
    if found is None:
        return ""
    revision = _MAIN if _commit(found.folder, _MAIN) == found.commit else found.commit
    partial = "; a download of it was cut off, or goes on" if any(found.folder.glob("blobs/*.incomplete")) else ""
    return f"; the cache does not have all of it: {_download(found.repository, revision)} brings the rest{partial}"


def absent(root: Path) -> list[str] | None:
    """The files that a repository has and its snapshot `root` has not; None where the cache does not know them."""
    found = snapshot_of(root)
    try:
        files = found and load_json(found.folder / "trees" / f"{found.commit}.json").get("files")
    except AdapterToolError:  # mostly there is none; and it is no part of the model
        return None
    return sorted(name for name in files if not os.path.lexists(root / name)) if isinstance(files, dict) else None
