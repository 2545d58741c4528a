"""The files of a folder as they were parsed: each is read when it is first asked for, and then kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptertool.files.gguf import read_any
from adaptertool.files.header import Header
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import stamp_of
from adaptertool.spec.tensors import Stamp


class Parsed:
    """JSON files and headers of files of tensors below `path`, by name. What is given is not to be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._json: dict[str, tuple[Stamp, dict[str, Any]]] = {}
        self._headers: dict[str, Header] = {}

    def json(self, name: str) -> Mapping[str, Any]:
        """Raises InputError."""
        return self._stamped(name)[1]

    def stamp(self, name: str) -> Stamp:
        """What identified the JSON file before it was read. Raises InputError."""
        return self._stamped(name)[0]

    def header(self, name: str) -> Header:
        """Raises InputError."""
        if name not in self._headers:
            self._headers[name] = read_any(self.path / name)
        return self._headers[name]

    def _stamped(self, name: str) -> tuple[Stamp, dict[str, Any]]:
        if name not in self._json:
            self._json[name] = stamp_of(self.path / name), load_json(self.path / name)
        return self._json[name]
