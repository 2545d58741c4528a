"""Where the outputs of steps are until a recipe is done: a staging directory beside its OUT (files.staging), which
stays when a run fails or is killed. Each step has a folder there, named after all that decides its bytes, so that a run
of the same recipe, or of one with other later steps, takes over what is made.

In .OUT.steps.adaptertool-KEY/steps/KEY-OF-THE-STEP:
    NAME      what the step made, where it is temporary
    made      once it is made: its report, and the hash of its manifest; of a single file its stamp
    about-H   H is the hash of a manifest that a run was about to publish
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.arguments import as_input
from adaptertool.errors import AdapterToolError, StorageError
from adaptertool.files import LOCAL, store_of
from adaptertool.files.checkpoint import MANIFEST
from adaptertool.files.jsonfile import load_json
from adaptertool.files.place import STEPS, listed, steps_of
from adaptertool.files.publish import make_directory
from adaptertool.files.reader import files_below, is_folder, stamp_of
from adaptertool.files.staging import Staging
from adaptertool.files.writer import write_small
from adaptertool.output.integrity import check_files
from adaptertool.version import __version__

_KEY = blake3(b"adaptertool: the steps of a recipe").hexdigest(8)  # one directory for all recipes that make OUT
_MADE, _ABOUT = "made", "about-"


def place_of(out: Path, scratch: Path | None) -> Path:
    """What the staging directory is named after: OUT, with an end of its own, so that the run of the last step does not
    take it for another's. For an OUT in a store it is in a folder of the local disk."""
    if store_of(out) is LOCAL:
        return steps_of(out)
    return steps_of((scratch or Path(tempfile.gettempdir())) / f"{out.name}-{blake3(str(out).encode()).hexdigest(4)}")


@contextlib.contextmanager
def workshop(out: Path, scratch: Path | None) -> Iterator[Workshop]:
    """The place for the steps of a recipe that makes OUT, held alone; removed at the end, unless something
    fails. Raises what a run raises that cannot have its staging directory, and what is raised within."""
    with Staging(place_of(out, scratch), _KEY) as stage:
        folder = stage.folder / STEPS
        make_directory(folder)
        try:
            yield Workshop(folder)
        except BaseException as error:
            stage.precious = any(any(room.iterdir()) for room in folder.iterdir())
            if not (stage.precious and isinstance(error, AdapterToolError)):
                raise
            hint = f"the same command goes on from there; `adaptertool clean {out}` removes it"
            raise type(error)(f"{error.on_command_line}; steps that are made are kept in {folder}: {hint}") from error


class Workshop:
    """The folders of steps."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def room(self, key: str) -> Path:
        """The folder of a step. Raises StorageError."""
        make_directory(self._folder / key)
        return self._folder / key

    def leave_only(self, keys: Collection[str]) -> None:
        """Remove the folders of other steps than these. Raises StorageError."""
        for name in listed(self._folder):
            if name not in keys:
                self.discard(self._folder / name)

    def discard(self, out: Path) -> None:
        """Remove a temporary output, such as one that nothing is noted of: a run was killed just then; or what was
        noted. Raises StorageError."""
        try:
            if out.is_dir():
                shutil.rmtree(out)
            else:
                out.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(f"removing {out} failed: {error.strerror}") from error

    def note(self, key: str, out: Path, report: Mapping[str, Any] | None) -> None:
        """Note that the step is made, perhaps once more: its OUT may have been removed. Raises StorageError."""
        self.discard(self.room(key) / _MADE)
        write_small(self.room(key) / _MADE, json.dumps({"out": state_of(out), "report": report}).encode())

    def about(self, key: str, manifest: bytes) -> None:
        """Note the manifest of an OUT that is about to be published. Raises StorageError."""
        path = self.room(key) / f"{_ABOUT}{_hash(manifest)}"
        if not path.exists():
            write_small(path, b"")

    def noted(self, key: str, out: Path) -> Mapping[str, Any] | None:
        """What was noted, where OUT is still what was made: files that are not as its manifest says do not count. Of
        an OUT that was published just before a run was killed there is no report."""
        made: Mapping[str, Any] = {}
        with contextlib.suppress(AdapterToolError, OSError):
            made = load_json(self._folder / key / _MADE)
        with contextlib.suppress(AdapterToolError, OSError):
            state = state_of(out)
            if state is None or (made.get("out") != state and not (self._folder / key / f"{_ABOUT}{state}").exists()):
                return None
            if out.is_file() or check_files(out).ok:
                return made if made.get("out") == state else {"out": state, "report": None}
        return None


def _hash(manifest: bytes) -> str:
    return blake3(manifest).hexdigest()


def state_of(out: Path) -> str | None:
    """The hash of the manifest of OUT, or what the system says of a single file: no other has the same."""
    if store_of(out) is not LOCAL:
        return None
    if out.is_file():
        return str(stamp_of(out))
    return _hash((out / MANIFEST).read_bytes()) if (out / MANIFEST).is_file() else None


def key_of(command: str, values: Mapping[str, Any], inputs: Iterable[tuple[str, str]]) -> str:
    """What decides the bytes of a step: the version, the command and what it is given, and each input as it was found.
    inputs: what is read, as it is called in `values`, with a path, or with the key of the step that makes it"""
    found = [(name, _stamps(path)) for name, path in inputs]
    return blake3(repr((__version__, command, sorted(values.items()), found)).encode()).hexdigest(8)


def _stamps(path: str) -> object:
    """Names, sizes and times of what is at a path; the text itself where there is nothing."""
    with contextlib.suppress(AdapterToolError, OSError):
        place = as_input(path, "an input")
        files = files_below(place) if is_folder(place) else [place]
        return sorted((file.relative_to(place).as_posix(), stamp_of(file)[2:4]) for file in files)
    return path
