"""PEFT's format, as the record that the rest of the program asks."""

from __future__ import annotations

from adaptertool.formats.format import Format, Writing
from adaptertool.formats.peft.convert import SAVING
from adaptertool.formats.peft.describe import by_names, facts
from adaptertool.formats.peft.fields import FORMAT
from adaptertool.formats.peft.keys import FILES
from adaptertool.formats.peft.layers import layered, renamed
from adaptertool.formats.peft.misreadings import misreadings
from adaptertool.formats.peft.read import read_adapter, read_as_far_as_clear, recognise
from adaptertool.formats.peft.write import config_text, may_have_factors, nearest_scale, new_fields, times

PEFT = Format(
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
    write=Writing(
        config_text=config_text,
        nearest_scale=nearest_scale,
        times=times,
        new_fields=new_fields,
        takes_factors=may_have_factors,
    ),
    save=SAVING,
)
