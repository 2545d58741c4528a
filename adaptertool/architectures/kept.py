"""A quantised checkpoint whose weights stay codes: what `--quantise keep` reads and writes.

Its files, names, dtypes and config stay as they are. What is resolved against it are the weights that codes mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

from adaptertool.architectures.quantised import read_codes
from adaptertool.codecs.quantised import Weight
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.patterns import regex
from adaptertool.spec.plan import KeptWeight

WAY_OUT = "`--dtype bf16` decodes them, and writes a dense checkpoint"
# Scales of activations that were measured on the base
_ACTIVATIONS = regex(r".*\.(?:input_(?:scale|global_scale)|activation_scale|qscale_act)")


def kept(base: Checkpoint) -> Checkpoint:
    """The checkpoint with its weights as tensors that are made of codes. Raises UnsupportedError where it has none, or
    none that can be made anew, and as `read_codes` does."""
    weights, others, _ = read_codes(base)
    if not weights:
        raise UnsupportedError(
            f"{base.path} is not quantised: there is nothing to keep, and --quantise of a dense base is not offered; "
            "leave it out"
        )
    if not any(weight.lattice for weight in weights.values()):
        raise UnsupportedError(f"{base.path}: {_cannot(weights.values())}: {WAY_OUT}")
    by_part: dict[str, KeptWeight] = {}
    for weight in weights.values():
        own = KeptWeight(weight.name, weight.format, weight.ref, weight.lattice)
        by_part |= {ref.spec.name: own for ref in weight.parts[: 2 if weight.lattice else 1]}
    tensors = {}
    for name in base.tensors:
        if name in others:
            tensors[name] = others[name]
        elif name in by_part and by_part[name].ref.stored[0].spec.name == name:
            tensors[by_part[name].name] = by_part[name].ref
    return dataclasses.replace(base, tensors=tensors, kept=by_part, notes=(*base.notes, *_notes(base)))


def require_kept(base: Checkpoint, edited: Collection[str]) -> None:
    """Raises UnsupportedError for a weight that is edited, and cannot stay as it is stored."""
    for own in (base.kept or {}).values():
        if own.lattice is None and own.name in edited:
            raise UnsupportedError(
                f"{own.ref.path}: {shown(own.name)} is stored as {own.format}, of which codes are not made anew "
                f"(--quantise keep): {WAY_OUT}"
            )


def _cannot(weights: Collection[Weight]) -> str:
    formats = ", ".join(sorted({weight.format for weight in weights}))
    return f"its weights are stored as {formats}, of which codes are not made anew (--quantise keep)"


def _notes(base: Checkpoint) -> Iterator[str]:
    count = sum(1 for name in base.tensors if _ACTIVATIONS.fullmatch(name))
    if count:
        yield f"scales of activations stay as they were measured on the base: {count:,}"
