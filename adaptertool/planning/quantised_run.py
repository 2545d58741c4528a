"""A note where an adapter says that its run had the base quantised: into which base should it be merged?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import PurePath

from adaptertool.errors import shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.patterns import regex
from adaptertool.spec.adapter import Adapter

# As unsloth and others call what bitsandbytes has made; no field of an adapter's config says it
_FOUR_BITS = regex(r".*[-_.](?:unsloth-)?(?:bnb[-_.]?4bit|4bit|nf4)", re.IGNORECASE)
_FP8 = ("ss_fp8_base", "ss_fp8_base_unet")  # metadata of kohya's sd-scripts


def quantised_run(base: Checkpoint, adapter: Adapter) -> Iterator[str]:
    """Nothing where the base is read as the run had it, or as the caller says that it had it."""
    if any(ref.made is not None for ref in base.tensors.values()):
        return
    name = PurePath(adapter.trained_on).name if adapter.trained_on else ""
    if _FOUR_BITS.fullmatch(name):
        yield (
            f"{adapter.path} says it was trained on {shown(adapter.trained_on)}, which by its name is in 4 bits; "
            f"{base.path} is not that base. For what the run computed merge into that one with --dtype bf16, or into "
            "the dense one with --as-trained nf4 (unsloth's have double quantisation: nf4-double); `adaptertool drift "
            "--as-trained nf4` tells how far they are apart"
        )
    if any(str(adapter.metadata.get(key)).lower() == "true" for key in _FP8):
        yield (
            f"{adapter.path} says that its run had the base in FP8 (ss_fp8_base): it saw weights rounded to E4M3 "
            f"without scales, and {base.path} has others"
        )
