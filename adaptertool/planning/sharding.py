"""Output in files of a size that is asked for, as the libraries split what they save: model-00001-of-00003.safetensors
and so on, with an index.

Tensors stay in the order of the base. Each goes into the file of the one before it if that is then no larger than it
may be, header included; a tensor that is larger by itself has a file of its own.

Source: huggingface_hub 1.x (serialization/_base.py), which counts the tensors alone.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator, Sequence

from adaptertool.errors import UnsupportedError, UsageError
from adaptertool.files.checkpoint import INDEX, Checkpoint
from adaptertool.files.header import build_header
from adaptertool.patterns import regex
from adaptertool.planning.layout import dump, index_of, is_index
from adaptertool.spec.plan import Asset, Plan, Shard, Step
from adaptertool.spec.tensors import DTYPE_BITS

Tensor = tuple[Step, ...]  # the steps that make one tensor

_PLACES = 2 * 20  # bytes of data_offsets in a header, at most
_START = 8 + 8 + 2  # bytes of a header beside its entries: its length, what aligns it, its braces
_INDEX_NAME = regex(r"(.+)\.safetensors\.index(\.[\w-]+)?\.json")
_LARGE, _GROWN = 5 * 10**9, 1.5  # bytes of a file, and how much larger it is than those of the base, to be told


def with_shard_size(plan: Plan, base: Checkpoint, most: int | None) -> Plan:
    """The plan with its tensors in files of at most `most` bytes. None: in those of the base; where they grow a lot,
    that is said.

    Raises UsageError where the output is one file, or an adapter, UnsupportedError for a pipeline.
    """
    if most is None:
        return dataclasses.replace(plan, notes=(*plan.notes, *_grown(plan, base)))
    if base.is_file or plan.as_adapter:
        what = "an adapter, which is" if plan.as_adapter else f"made of {base.path}, which is one file, and so is"
        raise UsageError(f"the output is {what} one file: --max-shard-size is for folders of a model")
    if base.components:
        raise UnsupportedError(
            f"{base.path} is a pipeline; --max-shard-size is for single models: give the folder of the component as "
            "BASE"
        )
    tensors = [tuple(own) for shard in plan.shards for _, own in itertools.groupby(shard.steps, lambda s: s.spec.name)]
    metadata: dict[str, str] = {}
    for header in base.headers:
        metadata = {**header.metadata, **metadata}
    sets = list(_divided(tensors, most - _START - len(json.dumps({"__metadata__": metadata}))))
    stem, variant = _names(base)
    names = [f"{stem}{variant}{number}.safetensors" for number in _numbers(len(sets))]
    shards = tuple(_shard(*pair, metadata) for pair in zip(names, sets, strict=True))
    assets = [asset for asset in plan.assets if not is_index(asset.name)]
    if len(shards) > 1:
        content = dump(index_of(dict(base.index or {}), shards))
        first = base.headers[0]
        assets.append(Asset(first.path, first.stamp, f"{stem}.safetensors.index{variant}.json", len(content), content))
    choices = {**plan.choices, "max_shard_size": most}
    notes = (*plan.notes, *_too_large(shards, most))
    return dataclasses.replace(plan, shards=shards, assets=tuple(assets), choices=choices, notes=notes)


def _names(base: Checkpoint) -> tuple[str, str]:
    """What names of the base's files begin with, and its variant with a dot, or ""."""
    if base.index is None:
        stem, _, variant = base.headers[0].path.name.removesuffix(".safetensors").partition(".")
        return stem, variant and f".{variant}"
    own = next((asset.name for asset in base.assets if is_index(asset.name)), INDEX)
    found = _INDEX_NAME.fullmatch(own)
    return (found[1], found[2] or "") if found else ("model", "")


def _numbers(count: int) -> Iterator[str]:
    for number in range(count):
        yield "" if count == 1 else f"-{number + 1:05d}-of-{count:05d}"


def _divided(tensors: Sequence[Tensor], room: int) -> Iterator[list[Tensor]]:
    """The tensors of each file, one after the other. room: bytes for them, and for their entries in the header."""
    some, used = list[Tensor](), 0
    for tensor in tensors:
        size = _size(tensor) + _entry(tensor)
        if some and used + size > room:
            yield some
            some, used = [], 0
        some.append(tensor)
        used += size
    if some:
        yield some


def _size(tensor: Tensor) -> int:
    return sum(step.spec.nbytes for step in tensor)


def _entry(tensor: Tensor) -> int:
    """The bytes of a tensor in a header, at most."""
    spec = tensor[0].spec
    fields = {"dtype": spec.dtype, "shape": [*spec.shape, 1 << 62], "data_offsets": []}
    return len(json.dumps({spec.name: fields}, ensure_ascii=False).encode()) + _PLACES


def _shard(name: str, tensors: Sequence[Tensor], metadata: dict[str, str]) -> Shard:
    ordered = sorted(tensors, key=lambda tensor: -DTYPE_BITS[tensor[0].spec.dtype])  # so that all are aligned
    specs = []
    for first, *more in ordered:
        rows = first.spec.shape[0] + sum(step.spec.shape[0] for step in more) if more else 0
        shape = (rows, *first.spec.shape[1:]) if more else first.spec.shape
        specs.append(first.spec._replace(shape=shape, nbytes=_size((first, *more))))
    content, steps = build_header(specs, metadata), list[Step]()
    offset = len(content)
    for step in itertools.chain.from_iterable(ordered):
        steps.append(step._replace(offset=offset))
        offset += step.spec.nbytes
    return Shard(steps[0].base.path, len(content), offset, tuple(steps), content, name, divided=True)


def _too_large(shards: Sequence[Shard], most: int) -> Iterator[str]:
    if large := [shard for shard in shards if shard.size > most]:
        largest = max(shard.size for shard in large)
        yield (
            f"{len(large):,} of {len(shards):,} files are larger than --max-shard-size ({most:,} bytes): each holds "
            f"one tensor that is, the largest of {largest:,} bytes"
        )


def _grown(plan: Plan, base: Checkpoint) -> Iterator[str]:
    largest = max((shard.size for shard in plan.shards), default=0)
    before = max((header.size for header in base.headers), default=0)
    if base.stored_as is not None and largest > max(_LARGE, _GROWN * before) and not base.is_file:
        yield (
            f"files have the tensors of the base's, and are larger: up to {largest / 1e9:.1f} GB, and there "
            f"{before / 1e9:.1f} GB; --max-shard-size 5GB divides them"
        )
