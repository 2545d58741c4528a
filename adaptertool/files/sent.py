"""OUT in an object store that is sent when all of it is there: one file, or an adapter. Until then it is on the local
disk. What is of several shards is sent shard by shard (files.remote)."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from adaptertool.errors import OutputError
from adaptertool.files import upload
from adaptertool.files.assets import RUN
from adaptertool.files.hashing import DEFAULT
from adaptertool.files.scratch import make_scratch, require_scratch
from adaptertool.files.staging import Staging
from adaptertool.files.unfinished import FOLDER, Run, remove_old, require_ours, send


class SentStaging(Staging):
    """A staging directory in the scratch folder, from where OUT is sent."""

    def __init__(
        self,
        out: Path,
        key: str,
        hashes: tuple[str, ...] = DEFAULT,
        *,
        labels: Mapping[Path, str] = MappingProxyType({}),
        scratch: Path | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """The arguments are those of files.remote.RemoteStaging. Raises StorageError."""
        self._scratch, self._there, self._run_folder, self._stopped = make_scratch(scratch), out, FOLDER + key, stopped
        super().__init__(self._scratch / out.name, key, hashes, labels=labels)

    def __enter__(self) -> SentStaging:
        try:
            super().__enter__()
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        return self

    def __exit__(self, _kind: object, _error: BaseException | None, _trace: object) -> None:
        super().__exit__(None, None, None)  # nothing is kept here
        shutil.rmtree(self._scratch, ignore_errors=True)

    def require_space(self, needed: int) -> None:
        """Raises StorageError where there is no room for so many bytes in the scratch folder."""
        require_scratch(self._scratch, needed)

    def publish(self, work: Path, *, force: bool) -> None:
        """Send `work`, or a file in it: of a folder the configs last, each only where there is none. Raises OutputError
        where OUT came to exist, and StorageError."""
        out = self._there
        if work.is_file():
            _send_file(out, work, self._stopped)
            return
        names = tuple(path.relative_to(work).as_posix() for path in work.rglob("*") if path.is_file())
        run = Run(names)
        if force:
            remove_old(out)
        require_ours(out, self._run_folder, run, upload.objects_below(out))
        upload.create(out / self._run_folder / RUN, run.content())
        try:
            require_ours(out, self._run_folder, run, upload.objects_below(out))  # of two that begin at once, both hear
        except OutputError:
            upload.remove(out, [f"{self._run_folder}/{RUN}"])
            raise
        send(out, work, names, self._stopped)
        upload.remove(out, [f"{self._run_folder}/{RUN}"])


def _send_file(out: Path, work: Path, stopped: Callable[[], bool]) -> None:
    """Small ones go only where there is none. Of larger ones no store is asked that: it is looked before and that is
    all."""
    taken = upload.look(out) is not None or bool(upload.objects_below(out))
    if not taken and work.stat().st_size > upload.WHOLE:
        upload.put_file(out, work, stopped)
    elif taken or not upload.create(out, work.read_bytes()):
        raise OutputError(f"{out} came to exist during the run, and is not replaced")
