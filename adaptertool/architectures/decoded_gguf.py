"""A GGUF model with its blocks decoded, and cast: what `--dtype` reads and writes of it. Its fields stay, but for the
one that says what most tensors are.

As llama.cpp's converter has it, vectors and norms, and what it keeps in F32 beside them, stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.quantised.gguf import DECODED, weight_of
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.gguf import BLOCKS, Fields
from adaptertool.files.gguf_header import with_number
from adaptertool.patterns import regex
from adaptertool.spec.choices import DTYPES

_FILE_TYPE, _FILE_TYPES = "general.file_type", {"F32": 0, "F16": 1, "BF16": 32}
_IN_FULL = regex(
    r"_norm\.weight$|(^|\.)(ffn_gate_inp|ffn_gate_inp_shexp|position_embd|token_types|ssm_|shortconv|time_mix|posnet"
    r"|altup|laurel|per_layer_model_proj)"
)


def _kept(name: str) -> bool:
    return _IN_FULL.search(name) is not None


def decoded_gguf(base: Checkpoint, dtype: str) -> Checkpoint:
    """The model with its weights decoded, and matrices to be stored as `dtype` (a key of DTYPES). Raises
    UnsupportedError for blocks that are not decoded."""
    target, (header,) = DTYPES[dtype], base.headers
    tensors, stored_as, formats = dict(header.tensors), dict[str, str](), Counter[str]()
    for name, ref in header.tensors.items():
        if ref.spec.dtype in DECODED:
            tensors[name], stored_as[name] = weight_of(ref).ref, target
            formats[ref.spec.dtype] += 1
        elif ref.spec.dtype in BLOCKS:
            raise UnsupportedError(
                f"{ref.path}: {shown(name)} is {ref.spec.dtype}, and decoded are {', '.join(DECODED)}: use the model "
                "that it was made from"
            )
        elif ref.spec.dtype in COMPUTED and ref.spec.dtype != target and len(ref.shape) > 1 and not _kept(name):
            stored_as[name] = target
    if not stored_as:
        return base
    assert isinstance(header.typed, Fields)
    typed = with_number(header.typed, _FILE_TYPE, _FILE_TYPES[target])
    notes = list(base.notes)
    if formats:
        notes.append(
            f"decoded from {', '.join(sorted(formats))} and stored as {target}: {formats.total():,} of "
            f"{len(tensors):,} tensors"
        )
    if others := len(stored_as) - formats.total():
        notes.append(f"cast to {target}: {others:,} of {len(tensors):,} tensors")
    return dataclasses.replace(
        base,
        headers=(dataclasses.replace(header, tensors=tensors, typed=typed),),
        tensors=tensors,
        notes=tuple(notes),
        stored_as=stored_as,
    )
