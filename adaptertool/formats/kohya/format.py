"""The format of kohya's files, as the record that the rest of the program asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from adaptertool.errors import UnsupportedError
from adaptertool.files.parsed import Parsed
from adaptertool.formats.format import BaseHas, Format, Move
from adaptertool.formats.kohya.keys import FILES, FORMAT, by_names, recognise
from adaptertool.formats.kohya.layers import layered
from adaptertool.formats.kohya.read import facts, read_adapter
from adaptertool.formats.kohya.write import SAVING
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.layers import Layered


def _renamed(adapter: Layered, moves: Mapping[str, Move]) -> NoReturn:  # noqa: ARG001
    """Raises UnsupportedError."""
    raise UnsupportedError(
        f"{adapter.adapter.path} names its modules as kohya's tools do, and is not renamed; convert it to another "
        "format first (`adaptertool convert --base`)"
    )


def read_as_far_as_clear(files: Parsed, base_has: BaseHas, expert_layout: str | None) -> Adapter:  # noqa: ARG001
    """The same as is read for a merge: no field of a config may be left open. Raises InputError."""
    return read_adapter(files, base_has)


KOHYA = Format(
    name=FORMAT,
    files=FILES,
    recognise=recognise,
    read=read_adapter,
    read_as_far_as_clear=read_as_far_as_clear,
    by_names=by_names,
    facts=facts,
    layered=layered,
    renamed=_renamed,
    misreadings=lambda _: {},
    save=SAVING,
)
