"""The base as a QLoRA run saw it: its linear layers in 4 bits, decoded again (codecs/quantised/four_bits.py).

Which weights those are is data, from transformers itself: linear.json, made by tools/derive_linear.py. They are all
linear layers but those that transformers leaves out by default. Fused experts are parameters, and stay as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.architectures.conversion import Piece, Rule, architecture_of, into_memory, rules_for
from adaptertool.codecs.quantised.four_bits import BLOCK, CHOICES, FourBits, as_loaded
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.patterns import regex
from adaptertool.spec.choices import DTYPES
from adaptertool.spec.tensors import Ref

_NUMBER = regex(r"(?<=\.)\d+(?=\.)")


def in_four_bits(base: Checkpoint, choice: str) -> Checkpoint:
    """The checkpoint with the weights that bitsandbytes quantises as it decodes them. choice: a key of CHOICES.

    Raises UnsupportedError where it is not known which these are, or they are codes already.
    """
    how, option = CHOICES[choice], f"--as-trained {choice}"
    if base.gguf is not None or base.components:
        what = "GGUF" if base.gguf is not None else "a pipeline"
        raise UnsupportedError(f"{base.path} is {what}; {option} is for checkpoints of transformers' models")
    architecture = architecture_of(base.config)
    if (known := _known(architecture)) is None:
        raise UnsupportedError(
            f"{base.path}: which weights bitsandbytes quantises is not known for the architecture that its config.json "
            f"names ({shown(architecture) or 'none'}): {option} is not for it. Quantise and decode it by bitsandbytes, "
            "and merge into what that makes"
        )
    linear, others = known
    rules = rules_for(architecture)
    marks = [rule for rule in rules if rule.target is None]
    found: dict[str, Ref] = {}
    in_memory = {name: into_memory(rules, name) for name in base.tensors}
    for name, pieces in in_memory.items():
        ref = base.tensors[name]
        if any(_NUMBER.sub("#", own) in linear for own, _ in pieces):
            _require_plain(ref, pieces, marks, linear, how)
            dtype = (base.stored_as or {}).get(name, ref.spec.dtype)
            found[name] = as_loaded(ref, how, dtype)
    for name, pieces in in_memory.items():  # after those, since the scales of a quantised base are such matrices too
        ref = base.tensors[name]
        if name not in found and len(ref.shape) == 2 and not any(_NUMBER.sub("#", own) in others for own, _ in pieces):
            raise UnsupportedError(
                f"{ref.path}: {shown(name)} ({ref.spec}) is a matrix that {architecture} has not as transformers makes "
                f"it: whether bitsandbytes quantises it is not known, and {option} not for it"
            )
    if not found:
        raise UnsupportedError(
            f"{base.path}: none of its tensors has the name of a linear layer of {architecture}, which its config.json "
            f"names: {option} finds nothing to quantise"
        )
    headers = tuple(
        dataclasses.replace(header, tensors={name: found.get(name, ref) for name, ref in header.tensors.items()})
        for header in base.headers
    )
    stored_as = {name: base.tensors[name].spec.dtype for name in found} | dict(base.stored_as or {})
    note = (
        f"--as-trained {choice}: {len(found):,} of {len(base.tensors):,} tensors are taken as bitsandbytes stores and "
        "decodes them, also where no adapter changes them: all linear layers but those that transformers leaves out by "
        "default (output head, what is tied). A run with llm_int8_skip_modules of its own saw another base"
    )
    return dataclasses.replace(
        base,
        headers=headers,
        tensors={name: found.get(name, ref) for name, ref in base.tensors.items()},
        notes=(*base.notes, note),
        stored_as=stored_as,
    )


def _require_plain(
    ref: Ref, pieces: Sequence[tuple[str, Piece]], marks: Sequence[Rule], linear: Collection[str], how: FourBits
) -> None:
    """Raises UnsupportedError for a weight of which it is not certain what bitsandbytes makes of it."""
    where, name = f"{ref.path}: {shown(ref.spec.name)}", f"--as-trained {how.name}"
    if ref.made is not None or ref.spec.dtype not in DTYPES.values():
        raise UnsupportedError(
            f"{where} is stored as {'codes' if ref.made else ref.spec.dtype}; {name} is for a base in "
            f"{', '.join(DTYPES.values())}. A base that is quantised already is what its adapters saw: merge into it "
            "with --dtype bf16, and without --as-trained"
        )
    if len(ref.shape) != 2 or any(mark.matches(own) for own, _ in pieces for mark in marks):
        raise UnsupportedError(
            f"{where} ({ref.spec}) is other numbers in memory than on the disk: {name} is not for it"
        )
    part = any(piece.part is not None or piece.cut is not None for _, piece in pieces)
    each = ref.spec.numel // len(pieces)
    alike = all(_NUMBER.sub("#", own) in linear for own, _ in pieces) and ref.shape[0] % len(pieces) == 0
    if part and (how.nested or not alike or each % BLOCK):
        raise UnsupportedError(
            f"{where} is a part of a layer in memory, or several; blocks of {BLOCK} numbers are others there: {name} "
            "is not for it"
        )


@functools.cache
def _table() -> Mapping[str, Any]:
    table: dict[str, Any] = json.loads(Path(__file__).with_name("linear.json").read_text())
    return table


def _known(architecture: str) -> tuple[Collection[str], Collection[str]] | None:
    """The names in memory, with # for numbers, of the weights that are quantised, and of other matrices; None where
    that is not known."""
    number = _table()["architectures"].get(architecture, -1)
    if number < 0:
        return None
    names = _table()["lists"][number]
    return frozenset(names["linear"]), frozenset(names["others"])
