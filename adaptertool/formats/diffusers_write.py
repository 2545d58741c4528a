"""A file as diffusers (0.42) loads it: factors under the names of its models, with the part of the pipeline before
them.

It has no place for alphas in such a file. A scale that is a power of two is multiplied into B, which loses nothing and
is understood by every version. Where a scale is another, or ranks differ in a part, metadata says what PEFT's config
would: fields of LoraConfig for each part. Then it must speak of every part: of one that it leaves out diffusers takes
the defaults of LoraConfig.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.architectures.flat import is_flat
from adaptertool.architectures.parts import BY_NAME, likely_part, part_of, path_in
from adaptertool.formats.peft.convert import config_of, factors_of, one_kind
from adaptertool.formats.peft.fields import FORMAT
from adaptertool.formats.saving import WritingOptions, in_order, refuse
from adaptertool.formats.spelled_out import in_family, kept_metadata, on_layers
from adaptertool.kinds import kind_of
from adaptertool.kinds.lora import B
from adaptertool.kinds.offset import BIAS
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Draft, Portable

WEIGHTS, METADATA = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"
_WHAT = "diffusers' format"
# How paths begin in models that diffusers has other names for
_ORIGINAL = ("input_blocks.", "middle_block.", "output_blocks.", "double_blocks.", "single_blocks.", "joint_blocks.")
_OF_CONFIG = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_dora", "lora_bias")


def draft(portable: Portable, options: WritingOptions) -> Draft:
    """The file. Raises UnsupportedError for what it cannot hold."""
    on_layers(portable, _WHAT)
    by_part: dict[str, list[Module]] = {}
    for change in portable.changes:
        found = change if kind_of(change).follows else in_family(portable, change, FORMAT, _WHAT)
        if not kind_of(found).follows and not kind_of(found).pair:
            refuse(
                portable,
                [change],
                f"of kind {change.kind}, which diffusers loads of no model, or of few: merge it "
                "into its base, and extract a LoRA",
            )
        part, path = _place_of(portable, change, options)
        by_part.setdefault(part, []).append(found._replace(name=path))
    for changes in by_part.values():
        one_kind(portable, changes, _WHAT)
    baked = all(map(_may_be_baked, by_part.values()))
    tensors = [
        tensor._replace(times=change.scale) if baked and role in (B, BIAS) else tensor
        for part, changes in by_part.items()
        for change in changes
        for role, tensor in zip(change.factors, factors_of(change, f"{part}{change.name}"), strict=True)
    ]
    metadata = kept_metadata(portable.adapter)
    if not baked:
        metadata[METADATA] = json.dumps(_described(portable, by_part), indent=2, sort_keys=True)
    return Draft(tensors=in_order(tensors), metadata=metadata)


def _may_be_baked(changes: Sequence[Module]) -> bool:
    """Whether no scale of a part of the pipeline needs to be said, and no rank."""
    ranks = {change.rank for change in changes if change.rank}
    return len(ranks) < 2 and all(abs(math.frexp(change.scale)[0]) in (0.0, 0.5) for change in changes)


def _place_of(portable: Portable, change: Module, options: WritingOptions) -> tuple[str, str]:
    """(what names in a part begin with, the path in it). Raises UnsupportedError where that is not known."""
    if is_flat(change.name):
        refuse(
            portable,
            [change],
            f"named as kohya's tools do, which only a base can tell, and {_WHAT} has paths: give "
            "the folder of the pipeline (--base)",
        )
    part, path = part_of(change.name)
    if options.prefix is not None:
        return options.prefix, path
    if path.startswith(_ORIGINAL):
        refuse(
            portable,
            [change],
            "named as in the original model, where diffusers has other names: give the folder of the pipeline (--base)",
        )
    if (part := part or likely_part(path)) is None:
        refuse(portable, [change], "of a model that is not known as a part of a pipeline: say which (--prefix unet.)")
    return f"{part.name}.", path_in(part, path)[1]


def _described(portable: Portable, by_part: Mapping[str, Sequence[Module]]) -> dict[str, Any]:
    """The fields of LoraConfig that count, of each part. Names of text encoders stand without text_model, which their
    patterns and targets then fit with and without."""
    found: dict[str, Any] = {}
    for part, changes in by_part.items():
        named = (
            changes
            if part[:-1] not in BY_NAME
            else [change._replace(name=change.name.removeprefix("text_model.")) for change in changes]
        )
        fields = json.loads(config_of(portable, named, "", ()))
        found |= {f"{part}{name}": fields[name] for name in _OF_CONFIG}
    return found
