"""A GGUF adapter of what one of another format changes: two matrices for each tensor, and one alpha for all.

As convert_lora_to_gguf.py of llama.cpp lays them out, which ignores ranks and alphas that differ, and rsLoRA.
"""

from __future__ import annotations

import functools
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from adaptertool.architectures.change import Change
from adaptertool.architectures.changed import changed
from adaptertool.architectures.gguf import ARCHITECTURE, EMBEDDING, Found, into_gguf, known
from adaptertool.architectures.gguf_experts import stack_in_gguf
from adaptertool.errors import shown
from adaptertool.files.gguf import ALIGNMENT
from adaptertool.files.gguf_header import build_gguf
from adaptertool.formats.experts import complete, filled, stacked
from adaptertool.formats.gguf.keys import ADAPTER, ALPHA, FORMAT, KIND, LORA_TYPE, TYPE
from adaptertool.formats.saving import WritingOptions, drafted, refuse
from adaptertool.kinds import kind_of
from adaptertool.kinds.equivalent import spelled_as
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import turned
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Container, Draft, Drafted, Portable

_LEAST, _LARGEST = 2.0**-126, 3.4e38  # that float32 holds in full, about


def draft(portable: Portable, options: WritingOptions) -> Draft:  # noqa: ARG001
    """The file. Raises UnsupportedError for what it cannot hold."""
    arch, find = _names(portable)
    placed = list(_placed(portable, [_product(portable, change) for change in portable.changes], find))
    changes = [change for change, _ in placed]
    alpha = _alpha(changes)
    tensors, near = list[Drafted](), list[Module]()
    for change, found in placed:
        times = change.scale / (alpha / change.rank)
        # What float32 does not hold of alpha is not worth a rounded factor
        if times != 1 and _single(change.scale * change.rank) == alpha:
            near.append(change)
            times = 1.0
        tensors += _factors(portable, change, found, times)
    fields = {ARCHITECTURE: arch, TYPE: ADAPTER, KIND: LORA_TYPE, ALPHA: alpha}
    header = functools.partial(build_gguf, fields)
    notes = []
    if near:
        notes.append(
            f"the scale of {len(near)} of {len(changes)} layers, {shown(near[0].name)} the first, is rounded: {ALPHA} "
            "is FLOAT32, which moves these changes by 6e-8 of themselves at most"
        )
    if baked := [change for change in changes if change.scale != alpha / change.rank and change not in near]:
        notes.append(
            f"{len(baked)} of {len(changes)} layers have another scale than {ALPHA} says, since there is one for all: "
            "it is multiplied into their lora_b"
        )
    return Draft(tensors=tensors, notes=notes, container=Container(header, ALIGNMENT))


def _names(portable: Portable) -> tuple[str, Callable[[Module], Found]]:
    """The architecture, and what a change's tensor is in GGUF. Raises UnsupportedError where that is not known."""
    if portable.gguf is not None:
        return str(portable.gguf.get(ARCHITECTURE)), functools.partial(_stored, portable)
    if portable.config is None and portable.adapter.format == FORMAT:  # read without a base, whose names it has
        return str(portable.adapter.fields[ARCHITECTURE]), lambda change: Found(change.target, Change())
    if (own := into_gguf(portable.config)) is None:
        refuse(
            portable,
            portable.changes,
            "what the layers are called in GGUF only the base tells: `adaptertool convert` with --base, a GGUF file "
            f"or a checkpoint whose config.json has one of these architectures: {known()}",
        )
    arch, across = own

    def find(change: Module) -> Found:
        found = next(across(change.target), None)
        if found is None:
            refuse(portable, [change], f"of the architecture {arch}, which is not known to have it in GGUF by itself")
        return found

    return arch, find


def _stored(portable: Portable, change: Module) -> Found:
    """The tensor of a GGUF file. Raises UnsupportedError for a part of one."""
    if change.target not in portable.stored:
        refuse(portable, [change], "a part of a tensor of the base, which GGUF has no adapters for")
    return Found(change.target, Change())


def _placed(
    portable: Portable, changes: Sequence[Module], find: Callable[[Module], Found]
) -> Iterator[tuple[Module, Found]]:
    """The changes with the tensors that they are of; those of all experts as one. Raises UnsupportedError for changes
    of an end that is tied."""
    tied = {*portable.ends, *portable.ends.values()}
    stacks: dict[str, dict[int, Module]] = {}
    for change in changes:
        stored = portable.stored.get(change.target)
        if stored is not None and stored.spec.name in tied:
            refuse(
                portable,
                [change],
                "the base ties its head to its embedding: llama.cpp then has one tensor for both, which it looks rows "
                "up in and multiplies with, and loads no adapter of that: merge it into the base, and convert the "
                "result to GGUF",
            )
        place = stack_in_gguf(portable.config, portable.gguf, change.target)
        if place is None:
            yield change, find(change)
        else:
            stacks.setdefault(place[0], {})[place[1]] = change
    for name, experts in stacks.items():
        some = complete(portable, experts, "GGUF")
        rank = max(change.rank for change in some)
        factors = {A: stacked([filled(one.factors[A], 0, rank) for one in some])}
        factors[B] = stacked([filled(one.factors[B], 1, rank) for one in some])
        yield some[0]._replace(factors=factors, rank=rank, stacked=True), Found(name, Change())


def _product(portable: Portable, change: Module) -> Module:
    """The change as LoRA of a weight. Raises UnsupportedError where it is none."""
    found = spelled_as(change, "gguf")
    if found is None or not kind_of(found).is_product or not change.target.endswith(".weight") or change.grouped:
        refuse(
            portable,
            [change],
            f"of kind {change.kind}, on {shown(change.target)}; GGUF has LoRA of the weights of layers alone: merge it "
            "into its base, and extract a LoRA",
        )
    if any(len(found.factors[role].shape) != 2 for role in (A, B)) or not found.rank:
        refuse(portable, [change], "a change of a convolution, which is not written as GGUF")
    return found


def _alpha(changes: Sequence[Module]) -> float:
    """The alpha that says the scales of most layers: scale·r, as float32. Never 0, which means a scale of 1."""
    alphas = Counter(alpha for change in changes if (alpha := _single(change.scale * change.rank)))
    return max(alphas, key=lambda alpha: alphas[alpha], default=1.0)


def _single(number: float) -> float:
    """The nearest float32; 0 where it holds none, or one of few bits."""
    found: float = struct.unpack("f", struct.pack("f", number))[0] if _LEAST <= abs(number) < _LARGEST else 0.0
    return found


def _factors(portable: Portable, change: Module, found: Found, times: float) -> list[Drafted]:
    """lora_a and lora_b of a tensor, those of the embedding turned; `times` is multiplied into lora_b."""
    if found.change.heads:
        stored = portable.stored.get(change.target)
        spec = change.factors[B].spec if stored is None else stored.spec
        change = changed(change, found.change, spec)
    a, b = change.factors[A], change.factors[B]
    if found.name == EMBEDDING:
        a, b = (turned(a), b) if change.transposed else (b, turned(a))
    elif change.transposed:
        refuse(portable, [change], "a change of an embedding, which GGUF has of the input embedding alone")
    return [drafted(f"{found.name}.lora_a", a), drafted(f"{found.name}.lora_b", b, times=times)]
