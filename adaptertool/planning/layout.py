"""The files of the output: as a rule those of the base, with the same headers, index and config.

Where an end is stored apart, a vocabulary has another size, a layer is padded, or a head is new, the header of that
shard, the index and config.json follow.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adaptertool.architectures.kept import require_kept
from adaptertool.errors import UnsupportedError, by, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.gguf import Fields
from adaptertool.files.gguf_header import with_other_types
from adaptertool.files.header import Header, build_header
from adaptertool.files.jsonfile import objects
from adaptertool.patterns import regex
from adaptertool.resolution.heads import Head, dtype_in, stored_as
from adaptertool.resolution.ties import FLAG
from adaptertool.spec.plan import EDITS_ALONE, Asset, Edit, Keeping, Shard, Step
from adaptertool.spec.tensors import DTYPE_BITS, Ref, TensorSpec

CONFIG = "config.json"
_OF_INDEX = regex(r"[^/]+\.safetensors\.index(\.[\w-]+)?\.json")  # whatever the files of weights are called
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
# Layers of denoisers that take in_channels, as diffusers 0.42.1 calls them; and models of its, whose out_channels are
# in_channels where config.json has none
_FIRST_LAYER = regex(r"x_embedder(\.proj)?\.weight|(conv_in|img_in|patch_embedding|pos_embed\.proj)\.weight")
_AS_IN_CHANNELS = ("FluxTransformer2DModel", "ChromaTransformer2DModel")
Edits = Mapping[str, Sequence[Edit]]
_new_step = functools.partial(tuple.__new__, Step)


@dataclass(frozen=True, slots=True)
class TensorSetChange:
    """How the tensors of the output differ from the base's, in more than their numbers."""

    apart: Mapping[str, str] = field(default_factory=dict)  # new tensors -> the one that they were tied to
    resized: Mapping[str, Ref] = field(default_factory=dict)  # what takes the place of a tensor
    head: Head | None = None  # in the place of another, or where there was none
    padded: Mapping[str, Ref] = field(default_factory=dict)  # as `resized`: the base's own, with zeros

    @property
    def dropped(self) -> tuple[str, ...]:
        return () if self.head is None else self.head.dropped

    @property
    def grown(self) -> Mapping[str, Ref]:
        """What has another size than the base's tensor of that name, in its place."""
        return {**self.resized, **self.padded}


def shards_of(base: Checkpoint, edits: Edits, changes: TensorSetChange) -> tuple[Shard, ...]:
    """The files of the output's weights. Raises UnsupportedError for a pipeline whose set of tensors changes."""
    if base.components and (changes.apart or changes.grown or changes.head is not None):
        raise UnsupportedError(
            f"{base.path} is a pipeline, and the adapter changes the set or the sizes of its tensors (a new head, "
            "more tokens, a layer that grows); that is supported for single models: give the folder of the component "
            "as BASE"
        )
    require_kept(base, edits.keys())
    home = _home(base, changes.head)
    shards = [_shard(base, header, edits, changes, is_home=header is home) for header in base.headers]
    # Where all tensors of a file were scales, whose weights are elsewhere, there is nothing left for it
    return tuple(shard for shard in shards if shard.steps or base.stored_as is None)


def _home(base: Checkpoint, head: Head | None) -> Header | None:
    """The file that a new head goes to: that of the old one, or the last."""
    if head is None:
        return None
    old = {*head.dropped, *head.tensors}
    return next((header for header in base.headers if not old.isdisjoint(header.tensors)), base.headers[-1])


def _shard(base: Checkpoint, header: Header, edits: Edits, changes: TensorSetChange, *, is_home: bool) -> Shard:
    added = [end for end, source in changes.apart.items() if source in header.tensors]
    head = {} if changes.head is None else changes.head.tensors
    touched = {*changes.grown, *head, *changes.dropped}
    if base.stored_as is None and not added and not is_home and touched.isdisjoint(header.tensors):
        steps = list(_same_tensors(base, header, edits))
        return Shard(header.path, header.data_start, header.size, tuple(steps), path=base.name_of(header))
    if isinstance(header.typed, Fields) and touched.isdisjoint(header.tensors) and not added and not is_home:
        return _cast_gguf(base, header, header.typed, edits)
    if header.typed is not None:
        raise UnsupportedError(
            f"{header.path}: its tensors would be others than before ({', '.join(map(shown, sorted(touched)[:3]))}); "
            "the header of a GGUF file is kept as it is: merge into the checkpoint that it was made from, and convert"
        )
    refs = dict(header.tensors)
    for end in added:
        refs[end] = header.tensors[changes.apart[end]]
    tensors = []
    for name, ref in {**refs, **(head if is_home else {})}.items():
        used, dtype = changes.grown.get(name, ref), stored_as(base, ref)
        if name in head:
            used, dtype = head[name], dtype_in(base, head[name])
        if name in changes.dropped or (name in head and not is_home):
            continue
        size = used.spec.numel * DTYPE_BITS[dtype] // 8
        tensors.append((TensorSpec(name, dtype, used.spec.shape, size), used))
    tensors.sort(key=lambda pair: -DTYPE_BITS[pair[0].dtype])  # wide ones first, so that all are aligned
    content = build_header([spec for spec, _ in tensors], header.metadata)
    offset, steps = len(content), []
    for spec, ref in tensors:
        steps.append(_step(base, spec, offset, ref, edits))
        offset += spec.nbytes
    return Shard(header.path, len(content), offset, tuple(steps), content)


def _same_tensors(base: Checkpoint, header: Header, edits: Edits) -> Iterator[Step]:
    """The steps of a file of the same tensors."""
    refs = header.tensors.values()
    if base.kept:
        return (_step(base, ref.spec, ref.offset, ref, edits) for ref in refs)
    # By columns, and past the function of the class itself, since there may be hundreds of thousands
    specs, offsets = [ref.spec for ref in refs], [ref.offset for ref in refs]
    own = [tuple(edits.get(spec.name, ())) for spec in specs]
    return map(_new_step, zip(specs, offsets, refs, own, *map(itertools.repeat, EDITS_ALONE), strict=False))


def _cast_gguf(base: Checkpoint, header: Header, fields: Fields, edits: Edits) -> Shard:
    """A GGUF file of the same tensors, in their order, of other types."""
    refs = list(header.tensors.values())
    dtypes = [stored_as(base, ref) for ref in refs]
    specs = [
        ref.spec._replace(dtype=dtype, nbytes=ref.spec.numel * DTYPE_BITS[dtype] // 8)
        for ref, dtype in zip(refs, dtypes, strict=True)
    ]
    content, offsets, size = with_other_types(fields, specs)
    steps = [
        Step(spec, offset, ref, tuple(edits.get(spec.name, ())))
        for spec, offset, ref in zip(specs, offsets, refs, strict=True)
    ]
    return Shard(header.path, len(content), size, tuple(steps), content)


def _step(base: Checkpoint, spec: TensorSpec, offset: int, ref: Ref, edits: Edits) -> Step:
    """What makes a tensor of the output from `ref`, or of a weight that stays codes, these and their scales."""
    own = None if base.kept is None else base.kept.get(spec.name)
    if own is None:
        return Step(spec, offset, ref, tuple(edits.get(spec.name, ())))
    if changes := tuple(edits.get(own.name, ())):
        return Step(spec, offset, own.ref, changes, keeps=Keeping(own.lattice, ref))
    return Step(spec, offset, ref)


def assets_of(base: Checkpoint, shards: Sequence[Shard], changes: TensorSetChange) -> tuple[Asset, ...]:
    """The base's assets; index and config follow the changes."""
    if base.stored_as is None and not changes.apart and not changes.grown and changes.head is None:
        return base.assets
    new: dict[str, bytes] = {}
    if base.config is not None:
        new[CONFIG] = dump(_config(base, changes))
    if base.index is not None:
        own = (asset.name for asset in base.assets if is_index(asset.name))
        new[next(own)] = dump(index_of(dict(base.index), shards))
    return tuple(
        dataclasses.replace(asset, content=new[asset.name], size=len(new[asset.name])) if asset.name in new else asset
        for asset in base.assets
    )


def is_index(name: str) -> bool:
    """Whether an asset of that name tells which file each tensor is in."""
    return _OF_INDEX.fullmatch(name) is not None


def dump(content: Mapping[str, Any]) -> bytes:
    """JSON as files of a checkpoint have it."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def index_of(index: dict[str, Any], shards: Sequence[Shard]) -> dict[str, Any]:
    """The index of such files. index: the base's, or empty where it has none"""
    steps = [(shard, step) for shard in shards for step in shard.steps]
    places = {step.spec.name: shard.name for shard, step in steps}
    if not index:
        index = {"metadata": {"total_size": 0, "total_parameters": 0}, "weight_map": {}}
    index["weight_map"] = {name: places[name] for name in index["weight_map"] if name in places} | places
    totals = {
        "total_size": sum(step.spec.nbytes for _, step in steps),
        "total_parameters": sum(step.spec.numel for _, step in steps),
    }
    if isinstance(metadata := index.get("metadata"), dict):
        index["metadata"] = metadata | {key: total for key, total in totals.items() if key in metadata}
    return index


def _config(base: Checkpoint, changes: TensorSetChange) -> dict[str, Any]:
    config = copy.deepcopy(dict(base.config or {}))
    parts = objects(config)
    if changes.apart:
        for part in parts:
            if part is config or FLAG in part:
                part[FLAG] = False
    for name, ref in changes.resized.items():
        if name in base.tensors:
            _resize(base, config, name, base.tensors[name].spec.shape[0], ref.spec.shape[0])
    for name, ref in changes.padded.items():
        _widen(base, config, base.tensors[name], ref.spec.shape)
    return config if changes.head is None else changes.head.configured(config)


def _resize(base: Checkpoint, config: Mapping[str, Any], name: str, old: int, new: int) -> None:
    """Set vocab_size. Raises UnsupportedError where it is not clear in which parts, or a token would lie outside."""
    where = f"{base.path / CONFIG}"
    holders = [part for part in objects(config) if part.get("vocab_size") == old]
    if not holders and not any(part.get("vocab_size") == new for part in objects(config)):  # a second end finds it done
        raise UnsupportedError(
            f"{where} has no vocab_size of {old}, which {shown(name)} has and the adapter makes {new}"
        )
    for outer, inner in itertools.pairwise(holders):  # from the outermost on
        if not any(part is inner for part in objects(outer)):
            raise UnsupportedError(
                f"{where} has a vocab_size of {old} in several parts; which is that of {shown(name)}?"
            )
    for part in holders:
        part["vocab_size"] = new
        for key in _TOKENS:
            ids = part.get(key)
            if any(type(one) is int and one >= new for one in (ids if isinstance(ids, list) else [ids])):
                raise UnsupportedError(
                    f"{where} has {key} {ids}, but the adapter makes the vocabulary {new}: no loader accepts that"
                )


def _widen(base: Checkpoint, config: dict[str, Any], ref: Ref, shape: tuple[int, ...]) -> None:
    """Set in_channels, where the first layer of a denoiser has more; what the model returns stays as it was. Raises
    UnsupportedError where the config does not say the size of that layer so."""
    old, where = ref.spec.shape, f"{base.path / CONFIG}"
    first = len(old) > 1 and config.get("in_channels") == old[1] and _FIRST_LAYER.fullmatch(ref.spec.name) is not None
    if not first or shape != (old[0], shape[1], *old[2:]):
        raise UnsupportedError(
            f"{where} does not say the size of {shown(ref.spec.name)}, which the adapter makes {by(shape)}, as the "
            "in_channels of a first layer, and so cannot follow: give the model as one file, without a config.json"
        )
    config["in_channels"] = shape[1]
    if "out_channels" not in config and config.get("_class_name") not in _AS_IN_CHANNELS:
        raise UnsupportedError(
            f"{where} has no out_channels, which loaders may take from in_channels, and the adapter changes these from "
            f"{old[1]} to {shape[1]}: write there what the model returns"
        )
    if config.get("out_channels") is None:  # the same as in_channels, to loaders
        config["out_channels"] = old[1]
