"""The message for modules of an adapter that find no tensor in the base."""

from __future__ import annotations

from collections.abc import Sequence

from adaptertool.errors import shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.resolution.nearest import nearest
from adaptertool.spec.adapter import Adapter, Module

_SHOWN = 8  # modules that are listed in full


def unmatched_modules(base: Checkpoint, adapter: Adapter, modules: Sequence[Module]) -> str:
    """Which they are, the names that are nearest to each, and what to do."""
    lines = [f"{len(modules)} of {len(adapter.modules)} modules of {adapter.path} have no tensor in {base.path}:"]
    for module in modules[:_SHOWN]:
        near = nearest(module.target, base.tensors)
        lines.append(f"  {shown(module.target)}" + (f"  nearest: {', '.join(map(shown, near))}" if near else ""))
    if len(modules) > _SHOWN:
        lines.append(f"  and {len(modules) - _SHOWN} more")
    heads = {"lm_head.weight", "output.weight"}.intersection(module.target for module in modules)
    if base.gguf is not None and heads and "output.weight" not in base.tensors:
        lines.append(
            "The model is tied: its head is token_embd.weight, the embedding. Merge into the checkpoint that it was "
            "made from, and convert that"
        )
        return "\n".join(lines)
    if base.is_shard:
        lines.append(f"{base.path.name} is one shard of many; give the directory: {base.path.parent}")
        return "\n".join(lines)
    lines.append("Is this adapter for another model? If only names differ: --rename 'regex=>replacement'.")
    return "\n".join(lines)
