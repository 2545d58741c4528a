"""The format of MLX's adapters, as the record that the rest of the program asks."""

from __future__ import annotations

from adaptertool.formats.format import Format, without_beside
from adaptertool.formats.mlx.config import facts
from adaptertool.formats.mlx.keys import FILES, FORMAT, by_names, recognise
from adaptertool.formats.mlx.layers import layered, renamed
from adaptertool.formats.mlx.misreadings import misreadings
from adaptertool.formats.mlx.read import read_adapter
from adaptertool.formats.mlx.write import SAVING

MLX = Format(
    name=FORMAT,
    files=FILES,
    recognise=recognise,
    read=read_adapter,
    read_as_far_as_clear=without_beside(read_adapter),
    by_names=by_names,
    facts=facts,
    layered=layered,
    renamed=renamed,
    misreadings=misreadings,
    save=SAVING,
)
