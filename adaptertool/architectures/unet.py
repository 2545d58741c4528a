"""The U-Net of Stable Diffusion 1, 2 and XL in two spellings: of the original repositories (ldm, sgm: input_blocks.4.1)
and of diffusers (down_blocks.1.attentions.0). Which block is which follows from the blocks that are there: so in
diffusers 0.42 (loaders.single_file_utils.convert_ldm_unet_checkpoint)."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator

from adaptertool.architectures.relation import Relation

Pair = tuple[str, str]  # the path of a module: the original's, diffusers'

_OUTSIDE: tuple[Pair, ...] = (
    ("input_blocks.0.0", "conv_in"),
    ("time_embed.0", "time_embedding.linear_1"),
    ("time_embed.2", "time_embedding.linear_2"),
    ("label_emb.0.0", "add_embedding.linear_1"),
    ("label_emb.0.2", "add_embedding.linear_2"),
    ("label_emb.0.0", "class_embedding.linear_1"),
    ("label_emb.0.2", "class_embedding.linear_2"),
    ("out.0", "conv_norm_out"),
    ("out.2", "conv_out"),
    ("middle_block.1", "mid_block.attentions.0"),
)
_IN_RESNET: tuple[Pair, ...] = (
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
)


def is_original(names: Collection[str]) -> bool:
    return "input_blocks.0.0.weight" in names and "middle_block.0.in_layers.2.weight" in names


def is_unet(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of such a U-Net, in either spelling."""
    return is_original(names) or ("conv_in.weight" in names and "down_blocks.0.resnets.0.conv1.weight" in names)


def relations(names: Collection[str]) -> Iterator[Relation]:
    """Each tensor of a U-Net in both spellings."""
    original = is_original(names)
    blocks = _of_original(names) if original else _of_diffusers(names)
    others: dict[str, list[str]] = {}
    for theirs, ours in (*_OUTSIDE, *_resnet("middle_block.0", "mid_block.resnets.0"),
                         *_resnet("middle_block.2", "mid_block.resnets.1"), *blocks):  # fmt: skip
        others.setdefault(theirs if original else ours, []).append(ours if original else theirs)
    for name in names:
        parts = name.split(".")
        path = next((path for end in range(len(parts) - 1, 0, -1) if (path := ".".join(parts[:end])) in others), None)
        for other in others[path] if path is not None else ():
            rest = name[len(path or "") :]
            yield Relation(other + rest, name) if original else Relation(name, other + rest)


def _resnet(original: str, ours: str) -> Iterator[Pair]:
    return ((f"{original}.{theirs}", f"{ours}.{own}") for theirs, own in _IN_RESNET)


def _of_original(names: Collection[str]) -> Iterator[Pair]:
    level = number = 0
    for block in itertools.count(1):
        path = f"input_blocks.{block}"
        if f"{path}.0.op.weight" in names:
            yield f"{path}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
            level, number = level + 1, 0
        elif f"{path}.0.in_layers.2.weight" in names:
            yield from _resnet(f"{path}.0", f"down_blocks.{level}.resnets.{number}")
            yield f"{path}.1", f"down_blocks.{level}.attentions.{number}"
            number += 1
        else:
            break
    level = number = 0
    for block in itertools.count():
        path = f"output_blocks.{block}"
        if f"{path}.0.in_layers.2.weight" not in names:
            break
        yield from _resnet(f"{path}.0", f"up_blocks.{level}.resnets.{number}")
        upsampler = next((one for one in (1, 2) if f"{path}.{one}.conv.weight" in names), None)
        if upsampler != 1:
            yield f"{path}.1", f"up_blocks.{level}.attentions.{number}"
        number += 1
        if upsampler is not None:
            yield f"{path}.{upsampler}.conv", f"up_blocks.{level}.upsamplers.0.conv"
            level, number = level + 1, 0


def _of_diffusers(names: Collection[str]) -> Iterator[Pair]:
    for side, first, begin in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        block = begin
        for level in itertools.count():
            path = f"{side}_blocks.{level}"
            if f"{path}.resnets.0.conv1.weight" not in names:
                break
            for number in itertools.count():
                if f"{path}.resnets.{number}.conv1.weight" not in names:
                    break
                yield from _resnet(f"{first}.{block}.0", f"{path}.resnets.{number}")
                yield f"{first}.{block}.1", f"{path}.attentions.{number}"
                block += 1
            if f"{path}.downsamplers.0.conv.weight" in names:
                yield f"{first}.{block}.0.op", f"{path}.downsamplers.0.conv"
                block += 1
            last = 2 if f"{path}.attentions.0.norm.weight" in names else 1  # in the block of the last resnet
            yield f"{first}.{block - 1}.{last}.conv", f"{path}.upsamplers.0.conv"
