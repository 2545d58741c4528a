"""The format of MLX's adapters, as the record that the rest of the program asks."""

from __future__ import annotations

from adaptertool.files.parsed import Parsed
from adaptertool.formats.format import BaseHas, Format
from adaptertool.formats.mlx.config import facts
from adaptertool.formats.mlx.keys import FILES, FORMAT, by_names, recognise
from adaptertool.formats.mlx.layers import layered, renamed
from adaptertool.formats.mlx.misreadings import misreadings
from adaptertool.formats.mlx.read import read_adapter
from adaptertool.formats.mlx.write import SAVING
from adaptertool.spec.adapter import Adapter


def read_as_far_as_clear(files: Parsed, base_has: BaseHas, expert_layout: str | None) -> Adapter:
    """The adapter without what lies beside it. Raises InputError."""
    return read_adapter(files, base_has, leave_out=None, expert_layout=expert_layout)


MLX = Format(
    name=FORMAT,
    files=FILES,
    recognise=recognise,
    read=read_adapter,
    read_as_far_as_clear=read_as_far_as_clear,
    by_names=by_names,
    facts=facts,
    layered=layered,
    renamed=renamed,
    misreadings=misreadings,
    save=SAVING,
)
