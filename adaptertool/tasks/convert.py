"""`convert`: an adapter of one format, in another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from adaptertool.algebra.rewrite import Rewritten, jobs
from adaptertool.arguments import PathLike, as_input, as_path
from adaptertool.engine.produce import SAFETENSORS
from adaptertool.errors import UsageError
from adaptertool.files.hub import kept_as
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import is_folder
from adaptertool.formats import BY_NAME, SAVINGS, format_at
from adaptertool.formats.beside import assets_of, left_out, require_used
from adaptertool.formats.checkpoints import open_checkpoint, require_merged
from adaptertool.formats.saving import Saving, WritingOptions
from adaptertool.output.adapter import AdapterJob, check_out, write_adapter
from adaptertool.output.options import Options
from adaptertool.planning.portable import portable
from adaptertool.planning.redraft import require_ends_told, require_names, target_at
from adaptertool.planning.sources import Reading, open_adapter
from adaptertool.reports.adapters import ConvertReport
from adaptertool.resolution.renaming import renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.portable import Draft, Portable

FORMATS = tuple(SAVINGS)


def convert(
    adapter: PathLike,
    out: PathLike,
    *,
    to: str,
    base: PathLike | None = None,
    parts: Sequence[str] = (),
    prefix: str | None = None,
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
    force: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
    before_publish: Callable[[], None] | None = None,
    clean: bool = False,
) -> ConvertReport:
    """Write to `out` what `adapter` changes, in another format.

    to:      the format: peft, kohya, diffusers, comfy, ...
    base:    the checkpoint that the adapter is for: it tells what its layers are called, and which dimensions they
             have; from names as kohya's tools have them nothing else does
    parts:   of a pipeline: unet, text_encoder, ...; the changes of others are left out, and the report says so
    prefix:  what names begin with, instead of what is usual: lora_unet_, diffusion_model., unet.
    renames, leave_out, expert_layout, clean: as for `merge`. dry_run: compute the report, and write nothing
    A format that is one file makes one, where OUT ends as such files do.

    Factors keep their bits and dtypes, and scales are said as they are, wherever the format can. What it cannot say is
    multiplied into a factor; elements that this rounds are counted in the report. What it cannot hold is refused.
    Raises AdapterToolError; `out` is then as it was before.

    >>> adaptertool.convert("fixtures/lora", "lora.safetensors", to="kohya", base="fixtures/base").layers
    28
    """
    options = Options(
        force=force, threads=threads, dry_run=dry_run, clean=clean, progress=progress, before_publish=before_publish
    )
    path, target = as_input(adapter, "ADAPTER"), as_path(out, "OUT")
    beside = None if base is None else as_input(base, "BASE")
    written = target_at(to, target)
    check_out(target, [path, *([] if beside is None else [beside])], force=options.force, as_file=written.as_file)
    changes = _opened(path, beside, Reading(renames, leave_out, expert_layout), parts, written.saving)
    if changes.adapter.format == to:
        raise UsageError(f"{path} is of the format {to} already")
    require_names(changes, to)
    draft = written.saving.draft(changes, WritingOptions(prefix=prefix, as_file=written.as_file))
    require_ends_told(changes, to)
    recipe: dict[str, object] = {"to": to, "parts": list(parts), "prefix": prefix, "renames": list(renames)}
    if beside is not None:
        recipe["base"] = kept_as(beside)
    if expert_layout is not None:
        recipe["expert_layout"] = expert_layout
    output = _output(changes, draft, written.weights, recipe)
    done = write_adapter(output, target, options)
    rounded = [one for one in done.said if one.rounded]
    return ConvertReport(
        **done.summary(output, target, options),
        base=None if beside is None else str(beside),
        format_before=changes.adapter.format,
        format=to,
        layers=len({change.name for change in changes.changes}),
        tensors=len(draft.tensors),
        copied=sum(tensor.copied for tensor in draft.tensors),
        rounded=sum(one.rounded for one in rounded),
        rounded_tensors=tuple(dict.fromkeys(one.name for one in rounded)),
    )


def _opened(path: Path, base: Path | None, reading: Reading, parts: Sequence[str], saving: Saving) -> Portable:
    """What the adapter changes. From headers and configs alone."""
    if base is None:
        if reading.renames:
            raise UsageError("renamings are for a base, and there is none (--base)")
        read = format_at(path).read
        alone = read(Parsed(path), lambda _: True, leave_out=reading.leave_out, expert_layout=reading.expert_layout)
        require_used(reading.leave_out, [alone])
        return portable(alone, None, parts)
    checkpoint = require_merged(open_checkpoint(base))
    with renaming(reading.renames) as own:
        adapter = open_adapter(path, checkpoint, reading, own)
    require_used(reading.leave_out, [adapter])
    return portable(adapter, open_base(checkpoint), parts, saving.names, saving.ties)


def _output(changes: Portable, draft: Draft, weights: str, recipe: Mapping[str, object]) -> AdapterJob[Rewritten]:
    adapter = changes.adapter
    assets, left = assets_of(adapter.path, BY_NAME[adapter.format].files) if is_folder(adapter.path) else ((), [])
    if not weights:
        left, assets = [*left, *(asset.name for asset in assets)], ()
    notes = [*adapter.notes, *draft.notes]
    notes += [f"{part or 'what is of no part'} is left out: {count:,} changes" for part, count in changes.left.items()]
    if left:
        notes.append(f"left out (not part of what is written): {', '.join(left)}")
    return AdapterJob(
        command="convert",
        recipe={**recipe, **left_out([adapter])},
        sources=[adapter.path],
        weights=weights,
        stamps={**adapter.files, **{asset.source: asset.stamp for asset in assets}},
        largest=[tensor.spec for tensor in draft.tensors],
        metadata=draft.metadata,
        jobs=lambda inputs: jobs(draft, inputs),
        small=lambda _: draft.files,
        assets=assets,
        notes=notes,
        container=draft.container or SAFETENSORS,
        looked_at=changes.stamps,
    )
