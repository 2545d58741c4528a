"""Reports as JSON: one object, with the fields `schema` and `ok`. Within a version of a schema fields are only added;
`adaptertool/schemas/` has them all (`tools/schemas.py`)."""

from __future__ import annotations

import dataclasses
import json
from typing import Any, ClassVar, Protocol

from adaptertool.errors import AdapterToolError


class Report(Protocol):
    """A dataclass that names its schema."""

    schema: ClassVar[str]

    @property
    def ok(self) -> bool:
        """Whether the command exits with code 0."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


def to_json(report: Report, *, indent: int | None = None) -> str:
    return json.dumps(
        {"schema": report.schema, "ok": report.ok, **dataclasses.asdict(report)}, allow_nan=False, indent=indent
    )


def annotation(text: str) -> str:
    """What GitHub's Actions show as an error of a step, and on the page of its run: a workflow command, escaped as its
    runner undoes it."""
    for one, other in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(one, other)
    return f"::error title=adaptertool::{text}"


def error_to_json(error: AdapterToolError) -> str:
    body = {"type": type(error).__name__, "message": error.on_command_line, "exit_code": error.exit_code}
    return json.dumps({"schema": "error/1", "ok": False, "error": body})
