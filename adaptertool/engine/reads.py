"""What a run reads of its input files, and which of them are hashed on the way. From the plan alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.spec.plan import Output, Plan, Shard, Step
from adaptertool.spec.tensors import Ref, files_of


def to_hash(plan: Plan) -> tuple[list[Path], list[Path]]:
    """(large files, hashed as they are read; the others that have no copy in the output, which has their hash).

    A shard of the base of which nothing is read but its header (where adapters are written) is in neither.
    """
    whole = {shard.source for shard in plan.shards if copied_whole(shard, plan.outputs) is not None}
    copied = {asset.source for asset in plan.assets if asset.content is None}
    used = {shard.source for shard in plan.shards}
    used |= _read_by(plan.steps(), plan)
    adapters = set() if plan.tuned_is_checkpoint else {path for files in plan.files[1:] for path in files.values()}
    streamed = used - adapters - whole
    unused = {
        path
        for path in plan.files[0].values()
        if plan.as_adapter and path.suffix == ".safetensors" and path not in used
    }
    aside = plan.inputs.keys() - streamed - whole - copied - unused
    return sorted(streamed), sorted(aside)


def hashed_with(plan: Plan) -> dict[str, list[Path]]:
    """The files that are hashed as they are read by who makes a shard, by its name: each file with the first shard that
    reads it, so that every one is hashed once, whatever the parts."""
    streamed, found = set(to_hash(plan)[0]), dict[str, list[Path]]()
    for shard in plan.shards:
        used = {shard.source} | _read_by(shard.steps, plan)
        found[shard.name] = sorted(used & streamed)
        streamed -= used
    return found


def _read_by(steps: Iterable[Step], plan: Plan) -> set[Path]:
    """The files that steps read, without those of adapters."""
    refs = list[Ref]()
    for step in steps:
        refs.append(step.base)
        if plan.tuned_is_checkpoint:
            refs += [ref for edit in step.edits for ref in edit.factors.values()]
            refs += step.fisher or ()
    if any(ref.made for ref in refs):
        refs = [one for ref in refs for one in ref.stored]
    return {*files_of(refs)[0]}


def read_files(plan: Plan) -> list[Path]:
    """All input files but those of which nothing is read but their headers."""
    streamed, aside = to_hash(dataclasses.replace(plan, outputs=()))
    return sorted({*streamed, *aside, *(asset.source for asset in plan.assets if asset.content is None)})


def copied_whole(shard: Shard, outputs: Sequence[Output]) -> int | None:
    """The number of an output that has this file of the base as it is."""
    if shard.header is not None:
        return None
    for number, output in enumerate(outputs):
        if all(verbatim(step, step.at(output.alpha)) is step.stored for step in shard.steps):
            return number
    return None


def unread(shard: Shard) -> Iterator[tuple[int, int]]:
    """(offset, size) of what a file of the base has and the output does not: its header where that is made anew, and
    tensors that others take the place of."""
    if shard.header is None or shard.divided:
        return
    end = 0
    refs = [ref for step in shard.steps for ref in step.base.stored if ref.path == shard.source]
    for ref in sorted(refs, key=lambda ref: ref.offset):
        if ref.offset > end:
            yield end, ref.offset - end
        end = max(end, ref.offset + ref.spec.nbytes)
