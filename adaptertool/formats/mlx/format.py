"""The format of MLX's adapters, as the record that the rest of the program asks."""

from __future__ import annotations

from adaptertool.formats.format import Format, without_beside
from adaptertool.formats.mlx.keys import FILES, FORMAT, WEIGHTS, by_names, recognise
from adaptertool.formats.saving import Saving
from adaptertool.late import late

read_adapter = late("adaptertool.formats.mlx.read", "read_adapter")

MLX = Format(
    name=FORMAT,
    files=FILES,
    recognise=recognise,
    read=read_adapter,
    read_as_far_as_clear=without_beside(read_adapter),
    by_names=by_names,
    facts=late("adaptertool.formats.mlx.config", "facts"),
    layered=late("adaptertool.formats.mlx.layers", "layered"),
    renamed=late("adaptertool.formats.mlx.layers", "renamed"),
    misreadings=late("adaptertool.formats.mlx.misreadings", "misreadings"),
    save=Saving(draft=late("adaptertool.formats.mlx.write", "draft"), weights=WEIGHTS, ties=True),
)
