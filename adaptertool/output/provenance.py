"""`--provenance FILE`: where an output came from, as an in-toto statement with a SLSA predicate.

Sources: https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1 (both v1.0). Digests are sha256:
the list of the DigestSet has no blake3.

The statement speaks of files by their digests, and is unsigned: sign it (cosign attest-blob, for instance) where it is
to be believed. It is the same bytes for the same inputs and recipe; it holds a time only where SOURCE_DATE_EPOCH gives
one.

It is written and made durable under a temporary name beside FILE before OUT is published, and gets its name just after:
so a full disk is found before OUT changes, and there is never a statement about an OUT that was not published. A run
that is killed between the two leaves OUT without its statement, and the temporary file beside FILE.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, OutputError, StorageError, UsageError
from adaptertool.files.hashing import SHA256
from adaptertool.files.jsonfile import load_json
from adaptertool.files.publish import place_file, sync_directory
from adaptertool.files.writer import write_small
from adaptertool.output.manifest import Facts, Record, recipe_of
from adaptertool.spec.plan import Plan
from adaptertool.version import __version__

BUILDER = "pkg:generic/adaptertool"
EPOCH = "SOURCE_DATE_EPOCH"


def check_provenance(plan: Plan, out: Path, file: Path, *, force: bool) -> None:
    """Refuse a FILE that cannot or must not be written, before anything is read or computed. Raises UsageError,
    OutputError and StorageError."""
    try:
        real = file.resolve()
        inside = [path for path in (out, plan.base, *plan.sources) if real.is_relative_to(path.resolve())]
        if inside:
            raise UsageError(f"the provenance {file} would lie in {inside[0]}; give a path elsewhere")
        if not real.parent.is_dir():
            raise UsageError(f"the directory {real.parent} for the provenance does not exist; create it first")
        if os.path.lexists(file):
            if not stat.S_ISREG(file.lstat().st_mode):
                raise OutputError(f"{file} is no plain file, and is not replaced; choose another path")
            if not force:
                raise OutputError(f"{file} exists; choose another path, or replace it with --force")
            _require_ours(file)
        if not os.access(real.parent, os.W_OK | os.X_OK):
            raise StorageError(f"the directory {real.parent} for the provenance cannot be written to")
    except (OSError, RuntimeError, ValueError) as error:
        raise UsageError(f"the provenance {file} is no usable path: {error}") from error
    _times()


def _require_ours(file: Path) -> None:
    """Raise OutputError unless it is a statement of ours: else --force might replace an input."""
    try:
        ours = load_json(file, halves=True)["predicate"]["runDetails"]["builder"]["id"] == BUILDER
    except (InputError, KeyError, TypeError):
        ours = False
    if not ours:
        raise OutputError(f"{file} is no provenance by adaptertool, and --force does not replace it; remove it first")


def _times() -> dict[str, str]:
    epoch = os.environ.get(EPOCH)
    if not epoch:
        return {}
    try:
        moment = datetime.datetime.fromtimestamp(int(epoch), datetime.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"{EPOCH} is {epoch!r}, not a number of seconds since 1970") from error
    text = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"startedOn": text, "finishedOn": text}


def statement(record: Record, subjects: Mapping[str, Facts]) -> bytes:
    """The statement about these files of OUT. Of the inputs it names those of which more than the header was read."""
    plan = record.plan
    predicate: dict[str, Any] = {
        "buildDefinition": {
            "buildType": f"{BUILDER}#checkpoint/v1",
            "externalParameters": recipe_of(plan, [output.alpha for output in plan.outputs]),
            "resolvedDependencies": list(_dependencies(record)),
        },
        "runDetails": {"builder": {"id": BUILDER, "version": {"adaptertool": __version__}}},
    }
    if times := _times():
        predicate["runDetails"]["metadata"] = times
    content = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {SHA256: facts[SHA256]}} for name, facts in sorted(subjects.items())],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": predicate,
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _dependencies(record: Record) -> Iterator[dict[str, Any]]:
    for number, files in enumerate(record.inputs()):
        place = "base" if number == 0 else f"sources/{number - 1}"
        for name, facts in files.items():
            if SHA256 in facts:
                yield {"name": f"{place}/{name}", "digest": {SHA256: facts[SHA256]}}


class Prepared:
    """A small file, complete and durable beside its place, as a context: at the end it is removed, unless `publish`
    gave it its name."""

    def __init__(self, file: Path, content: bytes, *, force: bool) -> None:
        """force: what stands there is replaced."""
        self._file, self._force = file.resolve(), force
        self._part = self._file.with_name(f".{self._file.name[:50]}.{secrets.token_hex(8)}")
        self._content = content

    def __enter__(self) -> Prepared:
        try:
            write_small(self._part, self._content)
        except BaseException:
            self._part.unlink(missing_ok=True)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._part.unlink(missing_ok=True)

    def publish(self) -> None:
        """Put the provenance in its place, as the last of all. Raises StorageError."""
        try:
            if self._force:
                self._part.rename(self._file)
            else:
                place_file(self._part, self._file)
        except OSError as error:
            raise StorageError(
                f"OUT is complete, but the provenance {self._file} could not be put in place: {error.strerror}"
            ) from error
        sync_directory(self._file.parent)
