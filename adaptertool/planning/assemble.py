"""From edits and the changes of the set of tensors to a whole plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptertool.files.checkpoint import Checkpoint
from adaptertool.planning.layout import TensorSetChange, assets_of, shards_of
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Edit, Output, Plan
from adaptertool.spec.tensors import Ref, Stamp


def make_plan(
    command: str,
    base: Checkpoint,
    sources: Sequence[Adapter | Checkpoint],
    weights: Sequence[float],
    edits: Mapping[str, Sequence[Edit]],
    changes: TensorSetChange,
    outputs: tuple[Output, ...],
    notes: Sequence[str],
    equal: Sequence[tuple[Ref, Ref]] = (),
) -> Plan:
    shards = shards_of(base, edits, changes)
    return Plan(
        command=command,
        base=base.path,
        sources=tuple(source.path for source in sources),
        files=({asset.name: asset.source for asset in base.assets} | base.named, *(source.named for source in sources)),
        weights=tuple(weights),
        shards=shards,
        assets=assets_of(base, shards, changes),
        outputs=outputs,
        inputs=_inputs(base, sources),
        equal=tuple(equal),
        tuned_is_checkpoint=not all(isinstance(source, Adapter) for source in sources),
        single_file=base.is_file,
        notes=(*base.notes, *notes),
    )


def _inputs(base: Checkpoint, sources: Sequence[Adapter | Checkpoint]) -> dict[Path, Stamp]:
    files = {asset.source: asset.stamp for asset in base.assets}
    for source in (base, *sources):
        files |= source.files if isinstance(source, Adapter) else {h.path: h.stamp for h in source.headers}
    return files
