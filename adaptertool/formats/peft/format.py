"""PEFT's format, as the record that the rest of the program asks."""

from __future__ import annotations

from adaptertool.formats.format import Format, Writing
from adaptertool.formats.peft.fields import FORMAT
from adaptertool.formats.peft.keys import FILES, WEIGHTS
from adaptertool.formats.peft.read import read_adapter, read_as_far_as_clear, recognise
from adaptertool.formats.saving import Saving
from adaptertool.late import late

PEFT = Format(
    name=FORMAT,
    files=FILES,
    recognise=recognise,
    read=read_adapter,
    read_as_far_as_clear=read_as_far_as_clear,
    by_names=late("adaptertool.formats.peft.describe", "by_names"),
    facts=late("adaptertool.formats.peft.describe", "facts"),
    layered=late("adaptertool.formats.peft.layers", "layered"),
    renamed=late("adaptertool.formats.peft.layers", "renamed"),
    misreadings=late("adaptertool.formats.peft.misreadings", "misreadings"),
    write=Writing(
        config_text=late("adaptertool.formats.peft.write", "config_text"),
        nearest_scale=late("adaptertool.formats.peft.write", "nearest_scale"),
        times=late("adaptertool.formats.peft.write", "times"),
        new_fields=late("adaptertool.formats.peft.write", "new_fields"),
        takes_factors=late("adaptertool.formats.peft.write", "may_have_factors"),
    ),
    save=Saving(draft=late("adaptertool.formats.peft.convert", "draft"), weights=WEIGHTS, ties=None),
)
