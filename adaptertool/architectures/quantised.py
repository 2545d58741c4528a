"""A checkpoint as it is with its codes decoded, and cast: what `--dtype` reads and writes.

Its tensors are those of a dense checkpoint. Weights that are stored as codes are made of these (codes/quantised) as
they are read; scales and the like are none of it. Which floats become what: all weights that were codes, and all
others that are stored as narrow as the model is as a whole. What is wider was left so on purpose (the float32 bias of
a router) and keeps dtype and bytes.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from adaptertool.architectures.traits import NOT_CODES, codes_of
from adaptertool.codecs import COMPUTED
from adaptertool.codecs.quantised import FORMATS, METHODS, Format, Settings, Stored, Weight
from adaptertool.codecs.quantised.comfy import SAID, marks_of
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import Header
from adaptertool.files.jsonfile import objects
from adaptertool.patterns import regex
from adaptertool.spec.choices import DTYPES
from adaptertool.spec.tensors import DTYPE_BITS, Ref

QUANTISED_BY = ("quantization_config", "compression_config")  # keys of config.json, of all or of a part
CONFIG, OF_MODELOPT = "config.json", "hf_quant_config.json"
_HALF = 16  # bits of what is not quantised in a quantised model
# Scales of activations and of the cache of keys and values: of use to codes only
_GONE = regex(
    r".*\.(?:(?:in|out)put_(?:scale|zero_point|global_scale|observer)|activation_scale|qscale_act|scale_input|[qkv]_scale|kv_scale"
    r"|[kv]_zero_point)"
)
_BY_DTYPE = {dtype: [one for one in FORMATS if dtype in one.dtypes] for one in FORMATS for dtype in one.dtypes}
_WAY_OUT = "use the checkpoint that it was made from"


def decoded(base: Checkpoint, dtype: str) -> Checkpoint:
    """The checkpoint with its weights decoded, and floats to be stored as `dtype` (a key of DTYPES).

    Raises UnsupportedError for codes of no format that is known, MismatchError where config and tensors disagree.
    """
    target = DTYPES[dtype]
    weights, kept, gone = read_codes(base)
    bits = _HALF if weights else _most_bits(base)
    narrow = {name for name, ref in kept.items() if ref.spec.dtype in COMPUTED and DTYPE_BITS[ref.spec.dtype] <= bits}
    stored_as = {name: target for name in narrow if kept[name].spec.dtype != target}
    stored_as |= {weight.name: target for weight in weights.values()}
    if not stored_as:
        return base
    by_codes = {weight.parts[0].spec.name: weight for weight in weights.values()}
    headers = tuple(_without_codes(header, kept, by_codes) for header in base.headers)
    return dataclasses.replace(
        base,
        headers=headers,
        tensors={name: ref for header in headers for name, ref in header.tensors.items()},
        config=None if base.config is None else _config(base.config, dtype),
        assets=tuple(asset for asset in base.assets if not (weights and asset.name == OF_MODELOPT)),
        notes=(
            *base.notes,
            *_notes(weights, stored_as, (len(kept) + len(weights), gone), target, configured=base.config is not None),
        ),
        stored_as=stored_as,
    )


def read_codes(base: Checkpoint) -> tuple[dict[str, Weight], dict[str, Ref], int]:
    """(weights that are codes, tensors that stay as they are, by name; how many tensors are of use to codes only).

    Raises UnsupportedError for codes of no format that is known, MismatchError where config and tensors disagree.
    """
    settings, (_, beside) = _settings(base), codes_of(base)
    if settings.method is not None and settings.method not in METHODS:
        raise UnsupportedError(
            f"{settings.where}: quant_method {shown(settings.method)[:80]} is not decoded, as are "
            f"{', '.join(sorted(METHODS))}: {_WAY_OUT}"
        )
    _require_plain(settings)
    stored = Stored(base.tensors, {header.path: header.stamp for header in base.headers}, settings)
    marks = marks_of(stored, {key: value for header in base.headers for key, value in header.metadata.items()})
    weights = _weights(base, stored, beside | marks)
    if settings.method is not None and not weights:
        raise MismatchError(
            f"{settings.where} says quant_method {shown(settings.method)[:80]}, but no weight is stored as codes of "
            "it. Where the weights are whole, take quantization_config out of it"
        )
    return weights, *_others(base, weights, beside, marks)


def _settings(base: Checkpoint) -> Settings:
    """What the checkpoint says of its codes."""
    where = str((base.path.parent if base.is_file else base.path) / CONFIG)
    for part in objects(base.config or {}):
        for key in QUANTISED_BY:
            if fields := part.get(key):
                method = fields.get("quant_method") if isinstance(fields, dict) else fields
                if method is None and key == "compression_config":
                    method = "compressed-tensors"
                return Settings(str(method).lower(), fields if isinstance(fields, dict) else {}, where)
    if any(asset.name == OF_MODELOPT for asset in base.assets):
        return Settings("modelopt", {}, str(base.path / OF_MODELOPT))
    return Settings(None, {}, where, _is_plain(base))


def _is_plain(base: Checkpoint) -> bool:
    """Whether floats of 8 bits without a scale are numbers as any others: in a file with no config, or one of
    diffusers', or one that says so. Not where others have scales that are none of ComfyUI's."""
    config = base.config or {}
    said = [config.get(key) for key in ("dtype", "torch_dtype")]
    plain = base.config is None or "_class_name" in config or any("float8" in str(dtype) for dtype in said)
    others = (name for name in base.tensors if name.endswith(("_scale_inv", ".qscale_weight")))
    return plain and not base.is_shard and next(others, None) is None


def _require_plain(settings: Settings) -> None:
    """Raises UnsupportedError for what acts on weights beside codes: rotations, and zeros that are left out."""
    if settings.fields.get("transform_config"):
        raise UnsupportedError(f"{settings.where} has a transform_config: weights that are rotated too: {_WAY_OUT}")
    sparse = settings.fields.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        raise UnsupportedError(f"{settings.where} has a sparsity_config, format {shown(sparse['format'])}: {_WAY_OUT}")


def _weights(base: Checkpoint, stored: Stored, beside: Collection[str]) -> dict[str, Weight]:
    """The weights that are codes, by their names in a dense checkpoint."""
    settings = stored.settings
    found: dict[str, Weight] = {}
    for ref in base.tensors.values():
        may_be = [(one, name) for one in _BY_DTYPE.get(ref.spec.dtype, ()) for name in _names(one, ref, beside)]
        _require_said(base, settings, ref, may_be)
        for one, name in may_be:
            if settings.method not in (None, *one.methods) or (weight := one.find(stored, ref, name)) is None:
                continue
            if weight.name in found or (weight.name in base.tensors and weight.name != ref.spec.name):
                raise UnsupportedError(f"{ref.path}: {shown(weight.name)} is stored twice, and as codes")
            found[weight.name] = weight
    return found


def _names(one: Format, ref: Ref, beside: Collection[str]) -> Iterator[str]:
    """The name without its end, where the tensor may be codes of that format."""
    for end in one.ends:
        if ref.spec.name.endswith(end) and (end or ref.spec.name not in beside):
            yield ref.spec.name.removesuffix(end)


def _require_said(base: Checkpoint, settings: Settings, ref: Ref, may_be: Sequence[tuple[Format, str]]) -> None:
    """Raises MismatchError where a tensor surely is codes, and the config says nothing of such, or something else."""
    surely = [one for one, _ in may_be if one.ends != ("",) or ref.spec.dtype not in (*COMPUTED, "U8")]
    if not surely or any(settings.method in one.methods for one in surely):
        return
    if settings.method is not None:
        raise MismatchError(
            f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}, {surely[0].name}, but {settings.where} says "
            f"quant_method {shown(settings.method)}"
        )
    if base.config is not None and not settings.plain:
        raise MismatchError(
            f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}, {surely[0].name}, but {settings.where} has no "
            "quantization_config: is it that of another checkpoint?"
        )


def _others(
    base: Checkpoint, weights: Mapping[str, Weight], beside: Collection[str], marks: Collection[str]
) -> tuple[dict[str, Ref], int]:
    """The tensors that stay as they are, by name, and how many go for they were of use to codes only. Raises
    UnsupportedError for what may be codes, and of which nothing is known."""
    claimed = set(marks) | {ref.spec.name for weight in weights.values() for ref in weight.parts}
    claimed |= {name for weight in weights.values() for name in weight.also}
    kept, gone = {}, 0
    for name, ref in base.tensors.items():
        if name in claimed:
            continue
        if weights and _GONE.fullmatch(name):
            gone += 1
        else:
            kept[name] = ref
            if name in beside or ref.spec.dtype not in NOT_CODES:
                raise UnsupportedError(
                    f"{ref.path}: {shown(name)} ({ref.spec}) looks like codes, or like what belongs to such, of no "
                    f"format that is decoded: {_WAY_OUT}"
                )
    return kept, gone


def _most_bits(base: Checkpoint) -> int:
    """The bits of the floats that most numbers of a checkpoint are stored as."""
    counts: dict[int, int] = {}
    for ref in base.tensors.values():
        if ref.spec.dtype in COMPUTED:
            bits = DTYPE_BITS[ref.spec.dtype]
            counts[bits] = counts.get(bits, 0) + ref.spec.numel
    return max(counts, key=lambda bits: (counts[bits], bits), default=0)


def _without_codes(header: Header, kept: Mapping[str, Ref], weights: Mapping[str, Weight]) -> Header:
    tensors = {}
    for name, ref in header.tensors.items():
        if name in weights:
            tensors[weights[name].name] = weights[name].ref
        elif name in kept:
            tensors[name] = ref
    said = {key: value for key, value in header.metadata.items() if key != SAID}
    return dataclasses.replace(header, tensors=tensors, metadata=said)


def _config(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json without what it says of codes, and with the new dtype where it names one."""
    dense = copy.deepcopy(dict(config))
    for part in objects(dense):
        for key in QUANTISED_BY:
            part.pop(key, None)
    for part in objects(dense):
        for key in ("dtype", "torch_dtype"):
            if isinstance(part.get(key), str):
                part[key] = _IN_CONFIG[dtype]
    return dense


_IN_CONFIG = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}


def _notes(
    weights: Mapping[str, Weight],
    stored_as: Mapping[str, str],
    counts: tuple[int, int],
    target: str,
    *,
    configured: bool,
) -> Iterator[str]:
    """counts: of tensors, and of those that are left out"""
    count, gone = counts
    formats = sorted({weight.format for weight in weights.values()})
    others = len(stored_as) - len(weights)
    if weights:
        yield (
            f"decoded from {', '.join(formats)} and stored as {target}: {len(weights):,} of {count:,} tensors"
            f"{'; config.json is that of a dense checkpoint' if configured else ''}"
        )
    if others:
        yield f"cast to {target}: {others:,} of {count:,} tensors"
    if gone:
        yield f"left out, of use to codes only: {gone:,} scales of activations, or of the cache"
    if "AWQ" in formats:
        yield (
            "AWQ moved scales of activations into the layers before: an adapter that was trained on the original "
            "model, and not on this one, does not fit exactly"
        )
