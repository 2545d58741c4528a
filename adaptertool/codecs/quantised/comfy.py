"""What ComfyUI says of the layers that it stores as codes, in single files without a config. X is a module.

| | said by | the scale of X.weight | of activations |
| --- | --- | --- | --- |
| until 2025 | a tensor scaled_fp8, of nothing | X.scale_weight | X.scale_input |
| since | X.comfy_quant, U8: JSON; or `_quantization_metadata` of the file | X.weight_scale | X.input_scale |

W = code·scale, of one scale for a weight, or one for a row: float8_e4m3fn, float8_e5m2, int8_tensorwise. Others lay out
scales for a GPU (nvfp4, mxfp8), or rotate weights (convrot); which is refused. Weights without a scale are the numbers
that their dtype says.

Sources: ComfyUI 0.3 to 0.11 (comfy/quant_ops.py; comfy/utils.py, convert_old_quants; comfy/ops.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from adaptertool.codecs.quantised.record import Stored
from adaptertool.errors import MismatchError, UnsupportedError, shown

SAID = "_quantization_metadata"  # key of the metadata of a file
MARKER = "scaled_fp8"  # with what all names begin with before it
_LAYER = ".comfy_quant"
_FORMATS = frozenset({"float8_e4m3fn", "float8_e5m2", "int8_tensorwise"})
_HARMLESS = frozenset({"format", "full_precision_matrix_mult", "orig_dtype"})  # how it is computed with


def marks_of(stored: Stored, metadata: Mapping[str, str]) -> frozenset[str]:
    """The names of the tensors that say of others how they are stored. Raises UnsupportedError for a layer that is
    stored otherwise than is known, MismatchError where what should say so is no JSON."""
    names = frozenset(name for name in stored.tensors if name.endswith(_LAYER))
    for name in names:
        ref = stored.need(stored.tensors[name], name, ("U8",))
        _require_known(str(ref.path), name.removesuffix(_LAYER), _parsed(f"{ref.path}: {shown(name)}", ref, stored))
    for path, module, fields in _in_metadata(stored, metadata):
        _require_known(path, module, fields)
    return names | {name for name in stored.tensors if name.split(".")[-1] == MARKER}


def _parsed(where: str, ref: Any, stored: Stored) -> Any:
    try:
        return json.loads(stored.content(ref))
    except (ValueError, RecursionError) as error:
        raise MismatchError(f"{where} is not the JSON that ComfyUI writes") from error


def _in_metadata(stored: Stored, metadata: Mapping[str, str]) -> Iterator[tuple[str, str, Any]]:
    if SAID not in metadata:
        return
    path = str(next(iter(stored.tensors.values())).path) if stored.tensors else SAID
    try:
        layers = json.loads(metadata[SAID])["layers"].items()
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise MismatchError(f"{path}: {SAID} is not the JSON that ComfyUI writes") from error
    for module, fields in layers:
        yield path, module, fields


def _require_known(path: str, module: str, fields: Any) -> None:
    called = fields.get("format") if isinstance(fields, dict) else None
    more = {key for key, value in fields.items() if key not in _HARMLESS and value} if isinstance(fields, dict) else ()
    if called not in _FORMATS or more:
        known = ", ".join(sorted(_FORMATS))
        raise UnsupportedError(
            f"{path}: {shown(module)} is stored as ComfyUI has {shown(fields)[:200]}; decoded are {known}, without "
            "more (rotations, scales in tiles): use the checkpoint that it was made from"
        )
