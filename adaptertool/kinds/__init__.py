"""The kinds of adapter, one file each. To add one: write the file, add one line here."""

from adaptertool.kinds.full import FULL
from adaptertool.kinds.kind import Kind
from adaptertool.kinds.lora import LORA

KINDS: tuple[Kind, ...] = (LORA, FULL)
BY_NAME = {kind.name: kind for kind in KINDS}

__all__ = ["BY_NAME", "FULL", "KINDS", "LORA", "Kind"]
