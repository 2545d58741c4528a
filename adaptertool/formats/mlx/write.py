"""An adapter of MLX's of what one of another format changes: LoRA, or DoRA of linear layers, of one rank and one scale.

Smaller ranks are filled up with zeros, and other scales are multiplied into lora_b. The matrices of all experts are one
tensor. As mlx-lm 0.32.2 loads them, which gives a layer of adapters to each block of the last `num_layers` that has a
module in `keys`, and to each module that these name in full; factors that the file lacks are then zeros.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from adaptertool.architectures.flat import is_flat
from adaptertool.architectures.mlx import in_stack, stack_of, stored_otherwise
from adaptertool.errors import shown
from adaptertool.files.jsonfile import objects
from adaptertool.formats.experts import complete, filled, stacked
from adaptertool.formats.mlx.keys import CONFIG, FORMAT, PARAMETERS, TYPE
from adaptertool.formats.mlx.targets import targets_of
from adaptertool.formats.saving import WritingOptions, drafted, dtype_of, in_order, refuse
from adaptertool.formats.spelled_out import kept_metadata
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.equivalent import spelled_as
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import turned
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Draft, Drafted, Portable

_EXTRACT = "merge it into its base, and extract a LoRA"


class _Layer(NamedTuple):
    """A layer of MLX's, and the changes that it has: one, or of a stack one for each expert."""

    name: str
    changes: Sequence[Module]
    stacked: bool = False


def draft(portable: Portable, options: WritingOptions) -> Draft:  # noqa: ARG001
    """The files. Raises UnsupportedError for what they cannot hold."""
    if flat := [change for change in portable.changes if is_flat(change.name)]:
        refuse(portable, flat, "named as kohya's tools do, which only a base can tell, and MLX has paths: give --base")
    changes = [_low_rank(portable, change) for change in portable.changes]
    normed = [change for change in changes if MAGNITUDE in change.factors]
    if normed and len(normed) < len(changes):
        other = next(change for change in changes if MAGNITUDE not in change.factors)
        refuse(portable, [other, normed[0]], f"one is LoRA and one DoRA, of which MLX has one for all: {_EXTRACT}")
    layers = list(_layers(portable, changes))
    rank = max((change.rank for change in changes), default=1)
    scales = Counter(change.scale for change in changes if change.scale)
    scale = max(scales, key=lambda one: scales[one], default=1.0)
    tensors = [tensor for layer in layers for tensor in _factors(layer, rank, scale)]
    blocks, keys = targets_of([layer.name for layer in layers], portable.config)
    fields = {
        TYPE: "dora" if normed else "lora",
        **({"model": portable.adapter.trained_on} if portable.adapter.trained_on else {}),
        "num_layers": blocks,
        PARAMETERS: {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
    }
    return Draft(
        tensors=in_order(tensors),
        metadata=kept_metadata(portable.adapter),
        files={CONFIG: (json.dumps(fields, indent=2, ensure_ascii=False) + "\n").encode()},
        notes=_notes(changes, rank, scale),
    )


def _low_rank(portable: Portable, change: Module) -> Module:
    """The change as LoRA or DoRA of a matrix. Raises UnsupportedError where it is none."""
    own = kind_of(change)
    found = None if own.replaces or own.follows else spelled_as(change, FORMAT)
    if found is None or not change.target.endswith(".weight") or change.grouped or change.stacked:
        what = "MLX has LoRA and DoRA of the weights of layers"
        refuse(portable, [change], f"of kind {change.kind}, on {shown(change.target)}; {what}: {_EXTRACT}")
    if any(len(found.factors[role].shape) != 2 for role in (A, B)) or not found.rank:
        refuse(portable, [change], "a change of a convolution, which MLX has no adapters for")
    if MAGNITUDE in found.factors and (found.transposed or in_stack(found.name)):
        refuse(portable, [change], f"DoRA of embeddings and of experts MLX has otherwise, or not at all: {_EXTRACT}")
    stored = portable.stored.get(change.target)
    why = None if stored is None else stored_otherwise(stored.spec, _families(portable), in_stack=True)
    if why is not None:
        refuse(portable, [change], f"{why}, and the change is for those of Hugging Face: merge it there")
    return found


def _families(portable: Portable) -> set[str]:
    parts = objects(portable.config or {})
    return {own for part in parts if isinstance(own := part.get("model_type"), str)}


def _layers(portable: Portable, changes: Sequence[Module]) -> Iterator[_Layer]:
    """The layers as MLX has them, by the names of the base where there is one. Raises UnsupportedError for experts
    that do not make a stack."""
    stacks: dict[str, dict[int, Module]] = {}
    for change in changes:
        stored = portable.stored.get(change.target)
        name = change.name if stored is None else stored.spec.name.removesuffix(".weight")
        if (place := in_stack(name)) is None:
            yield _Layer(name, [change])
            continue
        before, expert, projection = place
        if not _families(portable):
            refuse(portable, [change], "of experts, and only a base tells what MLX calls their stack: give it (--base)")
        stacks.setdefault(f"{before}.{stack_of(_families(portable))}.{projection}", {})[expert] = change
    for name, experts in stacks.items():
        yield _Layer(name, complete(portable, experts, "MLX"), stacked=True)


def _factors(layer: _Layer, rank: int, scale: float) -> Iterator[Drafted]:
    """lora_a, lora_b and m of a layer. MLX has those of experts as PEFT has them, and others turned."""
    first = layer.changes[0]
    if layer.stacked:
        a = stacked([filled(change.factors[A], 0, rank) for change in layer.changes])
        b = stacked([filled(change.factors[B], 1, rank) for change in layer.changes])
    else:
        a, b = filled(turned(first.factors[A]), 1, rank), filled(turned(first.factors[B]), 0, rank)
    made_of = {"lora_a": a, "lora_b": b} | ({"m": first.factors[MAGNITUDE]} if MAGNITUDE in first.factors else {})
    for ending, ref in made_of.items():
        times = first.scale / scale if ref is b else 1.0
        # What is rounded is rounded to 24 bits; and MLX computes with float64 on few machines
        wide = dtype_of(ref) == "F64" or abs(math.frexp(times)[0]) not in (0.0, 0.5)
        yield drafted(f"{layer.name}.{ending}", ref, dtype="F32" if wide else None, times=times)


def _notes(changes: Sequence[Module], rank: int, scale: float) -> list[str]:
    found = []
    if smaller := [change for change in changes if change.rank < rank]:
        found.append(f"{len(smaller)} of {len(changes)} changes have a rank below {rank}: zeros fill them up to it")
    if others := [change for change in changes if change.scale != scale]:
        found.append(
            f"{len(others)} of {len(changes)} changes have another scale than {scale:g}, since MLX has one for all: it "
            "is multiplied into their lora_b"
        )
    return found
