"""What the header of a safetensors file says: its tensors and its metadata, each valid by itself."""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping
from itertools import repeat
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, shown
from adaptertool.files.jsonfile import parse_json, require_few_marks
from adaptertool.patterns import regex
from adaptertool.spec.tensors import DTYPE_BITS, Ref, TensorSpec

MAX_SHOWN = 5_000  # characters of a name that are printed; it may be as long as the header

_Form = tuple[str, tuple[int, ...], int]  # dtype, shape, bytes
_Entries = tuple[Mapping[str, str], list[Ref]]

_FIELDS = {"dtype", "shape", "data_offsets"}
_METADATA = "__metadata__"
# As the reference writer has them, or json.dumps. Of a tensor: its name, dtype and shape together, two positions
_USUAL_METADATA = regex(rf'\{{"{_METADATA}": ?(\{{[^{{}}]*+\}}), *+')
_USUAL = regex(
    r'"([^"]*+)": ?\{([^]{}]*+)\], ?"data_offsets": ?\[(0|[1-9][0-9]*+), ?(0|[1-9][0-9]*+)\]\}(?:, *+|\} *+\Z)'
)
_CONTROLS = bytes([*range(0x20), 0x7F])  # all of ASCII that is not printable
# Without the functions of the classes themselves, which take three times as long: there may be hundreds of thousands
_new_ref, _new_spec = functools.partial(tuple.__new__, Ref), functools.partial(tuple.__new__, TensorSpec)


def read_entries(path: Path, data_start: int, raw: bytes) -> _Entries:
    """The metadata, and the tensors in order of offset. Raises InputError, naming the file and the tensor."""
    what = f"the header of {path}"
    require_few_marks(raw, what)
    try:
        found = _usual(path, data_start, raw)
    except (InputError, ValueError):
        found = None
    return _strict(path, data_start, parse_json(raw, what)) if found is None else found


def _strict(path: Path, data_start: int, fields: dict[str, Any]) -> _Entries:
    """The same of a header that is parsed. Raises InputError."""
    metadata = fields.pop(_METADATA, None)
    metadata = {} if metadata is None else metadata  # MLX writes null for none
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: {_METADATA} must map strings to strings")
    forms: dict[_Form, _Form] = {}
    refs = [_entry(path, data_start, name, entry, forms) for name, entry in fields.items()]
    refs.sort(key=lambda ref: (ref.offset, ref.spec.nbytes))
    return metadata, refs


def _usual(path: Path, data_start: int, raw: bytes) -> _Entries | None:
    """The same of a valid header that is written as usual. None for all others, valid or not; or it raises ValueError
    or InputError.

    Parsed as JSON each tensor is a dict, two lists and four numbers, of which nothing stays: that takes four times as
    long. Here no loop over tensors is one of Python's, and each combination of dtype and shape, of which there are few,
    is parsed and checked once.
    """
    text = raw.decode()
    # Else each quote begins or ends a string that JSON may have. ASCII is looked through in a quarter of the time
    printable = len(raw.translate(None, _CONTROLS)) == len(raw) if raw.isascii() else text.isprintable()
    if "\\" in text or not printable:
        return None
    said = _USUAL_METADATA.match(text)
    parts = _USUAL.split(text[1 if said is None else said.end() :])
    between, names, forms, first, last = (parts[at::5] for at in range(5))
    if (
        not text.startswith("{")
        or any(between)
        or not text.rstrip(" ").endswith("}}")
        or len(known := {*names}) != len(names)
        or _METADATA in known
    ):
        return None
    metadata = {} if said is None else _strict(path, 0, {_METADATA: parse_json(said[1].encode(), "")})[0]
    begins, ends = list(map(int, first)), list(map(int, last))
    if begins[1:] != ends[:-1]:
        order = sorted(range(len(names)), key=list(zip(begins, ends, strict=True)).__getitem__)
        names, forms = ([some[at] for at in order] for some in (names, forms))
        begins, ends = ([some[at] for at in order] for some in (begins, ends))
    sizes = list(map(operator.sub, ends, begins))
    checked = {form: _of_form(path, form, size) for form, size in dict(zip(forms, sizes, strict=True)).items()}
    dtypes, shapes, own = zip(*map(checked.__getitem__, forms), strict=True)
    if [*own] != sizes or max(ends) >= 2**63:
        return None
    specs = map(_new_spec, zip(names, dtypes, shapes, own, strict=True))
    places = map(data_start.__add__, begins)
    nothing = repeat(None)
    return metadata, list(map(_new_ref, zip(repeat(path), places, specs, nothing, nothing, strict=False)))


def _of_form(path: Path, form: str, size: int) -> _Form:
    """dtype and shape as a header has them, up to the last bracket, of a tensor of `size` bytes. Raises InputError."""
    return _entry(path, 0, "", parse_json(f'{{{form}],"data_offsets":[0,{size}]}}'.encode(), ""), {}).spec[1:]


def _entry(path: Path, data_start: int, name: str, entry: object, forms: dict[_Form, _Form]) -> Ref:
    """One tensor. What was found to be valid of the others is shared: most have the form of another."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise bad(path, name, "must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise bad(path, name, f"has the unknown dtype {shown(dtype)[:80]}")
    if not _are_naturals(shape):
        raise bad(path, name, "has a shape that is not a list of sizes")
    if not _are_naturals(offsets) or len(offsets) != 2:
        raise bad(path, name, "has data_offsets that are not two positions")
    begin, end = offsets
    form = dtype, tuple(shape), end - begin
    if (known := forms.get(form)) is None:
        known = forms[form] = _checked(path, name, form)
    return Ref(path, data_start + begin, TensorSpec(name, *known))


def _checked(path: Path, name: str, form: _Form) -> _Form:
    dtype, shape, nbytes = form
    bits = DTYPE_BITS[dtype]
    for size in shape:
        bits *= size
        if bits >= 2**66:
            raise bad(path, name, "has a shape beyond what the format can address")
    if bits % 8 or nbytes != bits // 8:
        raise bad(path, name, f"takes {nbytes:,} bytes, but its dtype and shape need {bits / 8:,.10g}")
    return form


def bad(path: Path, name: str, what: str) -> InputError:
    """The error of a tensor, to be raised."""
    return InputError(f"{path}: tensor {shown(name[:MAX_SHOWN])} {what}")


def _are_naturals(values: object) -> bool:
    """Whether a value is a list of numbers from 0 on. A loop: for lists this short all() takes twice as long."""
    if not isinstance(values, list):
        return False
    for value in values:  # noqa: SIM110
        if type(value) is not int or not 0 <= value < 2**63:  # type() because True is an int
            return False
    return True
