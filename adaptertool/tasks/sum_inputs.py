"""The adapters of a `sum`, opened, and what each of them does to the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from adaptertool.algebra.leading_part import sized
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.parsed import Parsed
from adaptertool.formats import read_alone, require_one_naming
from adaptertool.formats.beside import require_used
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.sources import Reading
from adaptertool.resolution.renaming import Renames
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.layers import Layered
from adaptertool.spec.plan import Plan


def opened_alone(paths: Sequence[Path], reading: Reading, base: Checkpoint | None) -> list[Layered]:
    """The adapters as layers. base: tells which layers have a bias; without it all may have one.

    Raises InputError for what cannot be read, and for adapters whose names mean different models.
    """
    own = reading.renames if isinstance(reading.renames, Renames) else Renames(reading.renames)
    has = (lambda _: True) if base is None else own.holder(base)
    opened = [read_alone(Parsed(path), reading.leave_out, reading.expert_layout, has) for path in paths]
    require_used(reading.leave_out, [one.adapter for one in opened])
    require_one_naming([one.adapter for one in opened])
    return opened


def on_base(adapters: Sequence[Layered], base: Checkpoint | None) -> tuple[list[Layered], list[Plan]]:
    """The adapters with the sizes that only the base tells; and where a layer needs the base, the plan of each adapter
    alone merged into it. Raises what planning raises."""
    if base is None or not any(layer.needs_base for adapter in adapters for layer in adapter.layers.values()):
        return list(adapters), []
    plans = [plan_merge(open_base(base), [adapter.adapter], [1.0]) for adapter in adapters]
    return [sized(adapter, plan) for adapter, plan in zip(adapters, plans, strict=True)], plans
