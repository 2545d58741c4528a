"""`truncate`: an adapter at smaller ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adaptertool.algebra.effect import steps_of
from adaptertool.algebra.kronecker import as_layer
from adaptertool.algebra.truncate import How, in_order, jobs
from adaptertool.architectures.decoded_beside import as_numbers
from adaptertool.architectures.families import family_of
from adaptertool.arguments import Number, PathLike, as_input, as_path, cut_of
from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import is_folder, open_input, read_exact
from adaptertool.formats import BY_NAME, format_at, read_alone, writing
from adaptertool.formats.beside import assets_of, left_out, require_used
from adaptertool.formats.checkpoints import open_checkpoint, require_named
from adaptertool.formats.format import Written
from adaptertool.live import device_named
from adaptertool.numerics.spectrum import MAX_VALUES
from adaptertool.output.adapter import AdapterJob, check_out, write_adapter
from adaptertool.output.options import Options
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.redraft import target_of
from adaptertool.planning.sources import Reading, open_adapter
from adaptertool.reports.adapters import LayerTruncated, TruncateReport
from adaptertool.resolution.renaming import renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.layers import Layer, Layered
from adaptertool.spec.plan import Plan
from adaptertool.tasks.in_format import in_format, stored_as, truncated

if TYPE_CHECKING:  # numpy is loaded only where tensors are touched
    from adaptertool.algebra.truncate import LayerOutcome
    from adaptertool.numerics.device import Device
    from adaptertool.output.adapter import AdapterJob

_CUTS = ("rank", "energy", "max_error", "ratio")
_DORA = "DoRA: the magnitudes stay as they were trained, so V/‖V‖ changes and the norms of W' = m·V/‖V‖ do not"


def truncate(
    adapter: PathLike,
    out: PathLike,
    *,
    rank: int | None = None,
    energy: Number | None = None,
    max_error: Number | None = None,
    ratio: Number | None = None,
    to: str | None = None,
    balance: bool = False,
    base: PathLike | None = None,
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
    spectra: bool = False,
    force: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
    before_publish: Callable[[], None] | None = None,
    clean: bool = False,
    device: str = "cpu",
) -> TruncateReport:
    """Write to `out` the adapter with B·A of each layer replaced by its best approximation of a smaller rank.

    Exactly one of these is given; with a ratio the rank may be given as its limit:
    rank:      at most this rank
    energy:    the smallest rank that keeps this share of Σσ², in (0, 1]; for each layer its own
    max_error: the smallest rank whose error, relative in Frobenius norm, is at most this, in [0, 1); what rounding to
               the stored dtype adds is counted in; for each layer its own
    ratio:     as many as there are singular values of at least the largest over this; for each layer its own
    to:        the format to write, of `convert`; that of the adapter unless given
    balance:   A and B both carry the square roots of the singular values. Otherwise the rows of A are orthonormal, and
               B carries the singular values.
    base:      the checkpoint that the adapter is for: the report tells of each layer how far the merged weights move,
               ‖W'' − W'‖/‖W' − W‖ with W' = W + Δ of the adapter and W'' of the truncated one. For LoRA that is the
               error of the change; for DoRA also what the norms do. A base that does not fit is refused first
    renames:   as for `merge`, for the names of that base
    leave_out: files beside the adapter that may hold weights, and are to play no part, as for `merge`
    expert_layout: as for `merge`; what is written has PEFT's layout, rank_major
    spectra:   the report tells the singular values of each layer as well
    dry_run:   compute the report, and write nothing
    clean:     as for `merge`
    device:    "cpu", or one of torch, such as "cuda": large products and QR are then made there, in float64

    The scale of each layer stays. Layers that lose nothing keep their factors byte for byte, and so do saved tensors,
    biases and the magnitudes of DoRA: DoRA's W' = m·V/‖V‖ then has the norms that it was trained with, and only the
    direction of V changes. The pairs of a MultiheadAttention and the experts of a parameter have one rank between them,
    the largest that one of them needs. By QR of both factors and the SVD of the core (numerics.lowrank).
    Raises AdapterToolError; `out` is then as it was before.

    >>> {layer.rank for layer in adaptertool.truncate("fixtures/lora", "smaller", rank=4).layers}
    {4}
    """

    options = Options(
        force=force, threads=threads, dry_run=dry_run, clean=clean, progress=progress, before_publish=before_publish
    )
    cut = cut_of(rank=rank, energy=energy, max_error=max_error, ratio=ratio, names=_CUTS)
    path, target = as_input(adapter, "ADAPTER"), as_path(out, "OUT")
    computing = device_named(device)
    beside = None if base is None else as_input(base, "BASE")
    written = target_of(to, format_at(path).name, target)
    as_file = written is not None and written.as_file
    check_out(target, [path] if beside is None else [path, beside], force=options.force, as_file=as_file)
    reading = Reading(renames, leave_out, expert_layout)
    layered, plan = _opened(path, beside, reading)
    output = _output(layered, plan, cut, computing, balance=balance, spectra=spectra)
    output = dataclasses.replace(output, recipe={**output.recipe, **reading.chosen})
    if written is not None:
        output = in_format(output, written, truncated(layered), stored_as(layered))
    done = write_adapter(output, target, options)
    said = [one for one in done.said if one is not None]
    summary = done.summary(output, target, options)
    summary["bytes_read"] += sum(one.read for one in said)
    named, layers = None if beside is None else str(beside), tuple(map(_told, said))
    return TruncateReport(**summary, cut=cut.as_typed(), balanced=balance, base=named, layers=layers)


def _opened(path: Path, base: Path | None, reading: Reading) -> tuple[Layered, Plan | None]:
    """The adapter, and what a merge into the base would do. From headers and configs alone."""
    if reading.renames and base is None:
        raise UsageError("renamings are for a base, and there is none (--base)")
    files = Parsed(path)
    layered = read_alone(files, reading.leave_out, reading.expert_layout)
    require_used(reading.leave_out, [layered.adapter])
    if not layered.layers:
        raise UsageError(f"{path} has no factors to truncate: it holds saved tensors only")
    layered = dataclasses.replace(
        layered, layers={name: _of_pair(path, name, layer, base) for name, layer in layered.layers.items()}
    )
    if base is None:
        return layered, None
    checkpoint = as_numbers(require_named(open_checkpoint(base)))
    with renaming(reading.renames) as own:
        adapter = open_adapter(files, checkpoint, reading, own)
    require_used(reading.leave_out, [adapter])
    return layered, plan_merge(open_base(checkpoint), [adapter], [1.0])


def _of_pair(path: Path, name: str, layer: Layer, base: Path | None) -> Layer:
    """The layer with factors to cut. Raises UnsupportedError where it has none."""
    if layer.unpaired is None:
        return layer
    if (found := as_layer(layer)) is None:
        raise UnsupportedError(
            f"{path}: {shown(name)} is of kind {layer.unpaired.kind}, which is made of no pair of factors to cut: "
            "`adaptertool sum` with this adapter alone, --base and --rank extracts the leading part as LoRA"
        )
    if base is not None:
        raise UnsupportedError(
            f"{path}: {shown(name)} is of kind {layer.unpaired.kind}, of which the effect on a base is not told: it is "
            "the error of the change, which is told without --base"
        )
    return found


def _told(said: LayerOutcome) -> LayerTruncated:
    return LayerTruncated(
        said.layer.path,
        said.layer.rank,
        said.rank,
        said.energy,
        said.error,
        said.storing,
        family_of(said.layer.path),
        said.effect,
        said.values,
    )


def _output(
    layered: Layered, plan: Plan | None, cut: RankChoice, device: Device, *, balance: bool, spectra: bool
) -> AdapterJob[LayerOutcome | None]:

    path, own = layered.adapter.path, BY_NAME[layered.adapter.format]
    assets, left = assets_of(path, own.files) if is_folder(path) else ((), [])
    others = ", ".join(map(shown, left))
    notes = [_DORA] if any(layer.magnitude is not None for layer in layered.layers.values()) else []
    if others:
        notes.append(f"left out (other copies of the weights, or not part of it): {others}")
    most = max(1, MAX_VALUES // len(layered.layers)) if spectra else 0
    how = How(cut, balance, most, device, None if plan is None else steps_of(plan))
    return AdapterJob(
        command="truncate",
        recipe={"cut": cut.as_typed(), "balance": balance, **left_out([layered.adapter]), **device.recipe},
        sources=[path],
        weights=own.files.weights,
        stamps={**layered.adapter.files, **{asset.source: asset.stamp for asset in assets}},
        largest=[ref.spec for _, refs in in_order(layered) for ref in refs],
        metadata=layered.adapter.metadata,
        jobs=lambda inputs: jobs(layered, inputs, how),
        small=lambda said: {} if own.write is None else {own.files.named[0]: _config(layered, said)},
        assets=assets,
        notes=(*(layered.adapter.notes if plan is None else plan.notes), *notes),
        looked_at={} if plan is None else plan.inputs,
    )


def _config(layered: Layered, said: Sequence[LayerOutcome | None]) -> bytes:
    layers, own = [one for one in said if one is not None], BY_NAME[layered.adapter.format]
    if all(one.rank == one.layer.rank and one.layer.as_stored for one in layers):
        return _text(layered.adapter.path / own.files.named[0])
    written = [
        Written(one.layer.path, one.rank, one.layer.scale, is_parameter=one.layer.is_parameter) for one in layers
    ]
    return writing(own).config_text(layered.fields, written, targets_of=layered.fields)


def _text(path: Path) -> bytes:
    with open_input(path) as file:
        return read_exact(file, 0, file.size)
