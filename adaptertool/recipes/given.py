"""A recipe that is given as Python data, in the form that a file is read into. In the place of lines there is a path:
steps[0].merge.base."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from decimal import Decimal
from fractions import Fraction

from adaptertool.errors import InputError, shown
from adaptertool.files.yamlfile import At, Entry, Items, Node, Scalar, Table


def node_of(value: object, where: str = "recipe") -> Node:
    """Numbers count as the decimals that Python prints for them. Raises InputError for what YAML cannot say."""
    at = At(where, 0, 0)
    if isinstance(value, Mapping):
        entries = {}
        for name, one in value.items():
            if not isinstance(name, str):
                raise InputError(f"{where}: a key is text, and not {shown(repr(name))[:80]}")
            inside = f"{where}.{name}"
            entries[name] = Entry(Scalar(name, At(inside, 0, 0)), node_of(one, inside))
        return Table(entries, at)
    if isinstance(value, str):
        return Scalar(value, at, plain=False)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return Items(tuple(node_of(one, f"{where}[{number}]") for number, one in enumerate(value)), at)
    if isinstance(value, os.PathLike):
        return Scalar(os.fspath(value), at, plain=False)
    if value is None or isinstance(value, bool):
        return Scalar({None: "null", True: "true", False: "false"}[value], at)
    if isinstance(value, int | float | Decimal) and math.isfinite(value):
        return Scalar(str(value), at)
    what = f"{shown(repr(value))[:80]}, of type {type(value).__name__}"
    hint = "; give a decimal" if isinstance(value, Fraction) else ""
    raise InputError(f"{where}: a recipe has no {what}{hint}")
