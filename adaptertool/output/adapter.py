"""From layers to a published adapter: the part that all commands that make adapters of adapters share."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from blake3 import blake3

from adaptertool.algebra import rewrite
from adaptertool.engine.produce import SAFETENSORS, Job, results, write_tensors
from adaptertool.engine.progress import expect
from adaptertool.engine.resources import peak_memory, thread_count
from adaptertool.errors import UsageError
from adaptertool.files import LOCAL, publish, store_of
from adaptertool.files.hashing import DEFAULT, Digests
from adaptertool.files.header import read_header
from adaptertool.files.hub import called, kept_as
from adaptertool.files.place import PART
from adaptertool.files.reader import Inputs, is_folder, stamp_of
from adaptertool.files.sent import SentStaging
from adaptertool.files.stage import Finished
from adaptertool.files.staging import Staging
from adaptertool.files.writer import AT_ONCE, OutputFile, copy_range, write_small
from adaptertool.formats import is_adapter
from adaptertool.output.leftovers import Leftovers
from adaptertool.output.manifest import Facts, facts_of, write_manifest
from adaptertool.output.options import Options
from adaptertool.records import dataclass, field
from adaptertool.spec.plan import Asset
from adaptertool.spec.portable import Container, Draft
from adaptertool.spec.tensors import Ref, Stamp, TensorSpec
from adaptertool.version import __version__

Said = TypeVar("Said")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterJob(Generic[Said]):
    """An adapter that is to be written. From headers and configs alone."""

    command: str
    recipe: Mapping[str, Any]  # for the manifest: what else makes it, as JSON
    sources: Sequence[Path]
    weights: str  # the name of its file of tensors; "" where OUT is that file
    stamps: Mapping[Path, Stamp]  # of every file that is read
    largest: Sequence[TensorSpec]  # its tensors in their order, none smaller than it will be
    metadata: Mapping[str, str]
    jobs: Callable[[Inputs], Iterable[Job[Said]]]  # make them, in the same order
    small: Callable[[Sequence[Said]], Mapping[str, bytes]]  # its small files by name, from what the jobs have said
    assets: Sequence[Asset] = ()
    notes: Sequence[str] = ()  # what the user should know
    reserved: int | None = None  # bytes of disk for the tensors, where `largest` says far too many
    looked_at: Mapping[Path, Stamp] = field(default_factory=dict)  # files that only the report is made from
    container: Container = SAFETENSORS
    # Where what the jobs make is to be written in another format: (their tensors by name, what they have said, or None
    # before they begin) -> the files. Raises for what that format cannot hold
    redraft: Callable[[Mapping[str, Ref], Sequence[Said] | None], Draft] | None = None

    @property
    def needed(self) -> int:
        """The bytes of disk that the adapter needs."""
        tensors = sum(spec.nbytes for spec in self.largest) if self.reserved is None else self.reserved
        return tensors + sum(asset.size for asset in self.assets)


@dataclass(frozen=True, slots=True)
class Done(Generic[Said]):
    said: list[Said]
    bytes_written: int
    threads: int
    seconds: float
    peak_memory: int
    notes: tuple[str, ...] = ()

    def summary(self, output: AdapterJob[Said], out: Path, options: Options) -> dict[str, Any]:
        """The fields that every AdapterReport has."""
        return {
            "command": output.command,
            "sources": tuple(map(called, output.sources)),
            "out": str(out),
            "bytes_read": sum(size for _, _, size, _, _ in output.stamps.values()),
            "bytes_written": self.bytes_written,
            "threads": self.threads,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "dry_run": options.dry_run,
            "notes": (*output.notes, *self.notes),
        }


def check_out(
    out: Path, sources: Sequence[Path], files: Iterable[Path] = (), *, force: bool, as_file: bool = False
) -> None:
    """Refuse an OUT that cannot or must not be written. The arguments are those of `publish.check_target`, and so are
    the errors. Raises UsageError for a name of a file too, unless it is to be one."""
    publish.check_target(out, sources, files, as_file=as_file, force=force, is_adapter=is_adapter)
    if as_file and (inside := next((one for one in sources if one.resolve() in out.resolve().parents), None)):
        raise UsageError(f"OUT {out} would be a file among those of {inside}; choose another OUT")
    if out.suffix == ".safetensors" and not as_file:
        raise UsageError(f"OUT {out} is named like a file, but an adapter is a directory; give a name without the end")


def write_adapter(output: AdapterJob[Said], out: Path, options: Options) -> Done[Said]:
    """Compute in a staging directory, and publish. On any error OUT is as it was before."""
    start = time.perf_counter()
    if output.redraft is not None:  # before anything is computed
        output.redraft({spec.name: Ref(output.sources[0], 0, spec) for spec in output.largest}, None)
    threads = thread_count(options.threads)
    check_out(out, output.sources, output.stamps, force=options.force, as_file=not output.weights)
    written, notes = 0, list[str]()
    with Inputs({**output.looked_at, **output.stamps}) as inputs:
        if options.dry_run:
            with contextlib.closing(results(output.jobs(inputs), threads)) as made:
                said = [told for _, told in made]
        else:
            local = store_of(out) is LOCAL
            with Staging(out, _key(output)) if local else SentStaging(out, _key(output)) as stage:
                others = Leftovers(out, stage.folder, clean=options.clean)
                stage.require_space(output.needed)
                said, more = _write(output, stage.work, output.weights or out.name, inputs, threads, options)
                stage.sync()
                written = sum(path.stat().st_size for path in stage.work.rglob("*") if path.is_file())
                options.begin_publishing()
                work = stage.work if output.weights else stage.work / out.name
                stage.publish(work, force=options.force)
                notes = [*more, *stage.notes, *others.at_end()]
    return Done(said, written, threads, time.perf_counter() - start, peak_memory(), tuple(notes))


def _write(
    output: AdapterJob[Said], folder: Path, name: str, inputs: Inputs, threads: int, options: Options
) -> tuple[list[Said], list[str]]:
    """What the jobs have said, and notes. name: of the file of tensors"""
    for path in output.stamps:
        inputs.stream(path)
    if options.progress is not None and output.reserved is None:  # else nobody knows yet how large they will be
        expect(options.progress, sum(spec.nbytes for spec in output.largest))
    first = folder / (name if output.redraft is None else f"{PART}factors.safetensors")
    said, size, weights = write_tensors(
        first,
        output.largest,
        output.metadata,
        output.jobs(inputs),
        inputs,
        threads=threads,
        progress=options.tell_progress,
        reserved=output.reserved,
        container=output.container,
    )
    small, notes = output.small(said) if output.redraft is None else {}, list[str]()
    if output.redraft is not None:
        draft = output.redraft(read_header(first).tensors, said)
        size, weights, notes = _redrafted(draft, first, folder / name, threads)
        small = draft.files
    for named, content in small.items():
        write_small(folder / named, content)
    for asset in output.assets:
        _copy(asset, folder / asset.name, inputs)
    digests = {path: inputs.hash(path) for path in output.stamps}
    inputs.check_unchanged()
    if not output.weights:
        return said, notes  # one file, without a place for a manifest
    files = facts_of(folder, {folder / name: Finished(size, weights)}, DEFAULT)
    write_manifest(
        folder,
        _recipe(output),
        {"sources": [_facts(output, source, digests) for source in output.sources]},
        files,
        DEFAULT,
    )
    return said, notes


def _redrafted(draft: Draft, first: Path, path: Path, threads: int) -> tuple[int, Digests, list[str]]:
    """Write what is drafted of the tensors of a file, which is removed: size, hashes, and notes."""
    with Inputs({first: stamp_of(first)}) as inputs:
        said, size, digests = write_tensors(
            path,
            [tensor.spec for tensor in draft.tensors],
            draft.metadata,
            rewrite.jobs(draft, inputs),
            inputs,
            threads=threads,
            progress=lambda _: None,
            container=draft.container or SAFETENSORS,
        )
    first.unlink()
    notes = list(draft.notes)
    if count := sum(one.rounded for one in said):
        notes.append(f"{count:,} elements are rounded, each by half a unit at most, to say what the format can")
    return size, digests, notes


def _facts(output: AdapterJob[Said], source: Path, digests: Mapping[Path, Digests]) -> dict[str, Facts]:
    """Size and hashes of the files of one source that were read, by name."""
    return {
        path.relative_to(source if is_folder(source) else source.parent).as_posix(): {"size": stamp[2], **digests[path]}
        for path, stamp in sorted(output.stamps.items())
        if path == source or source in path.parents
    }


def _copy(asset: Asset, path: Path, inputs: Inputs) -> None:
    publish.make_directory(path.parent)
    with contextlib.closing(OutputFile(path, asset.size)) as file:
        copy_range(inputs, asset.source, 0, asset.size, [(file, 0)], memoryview(bytearray(AT_ONCE)))
        file.finish()


def _recipe(output: AdapterJob[Said]) -> dict[str, Any]:
    return {
        "command": output.command,
        "sources": [{"name": kept_as(path)} for path in output.sources],
        **output.recipe,
    }


def _key(output: AdapterJob[Said]) -> str:
    """What tells a run from every other: the version, the recipe, and each input file as it was found."""
    inputs = sorted((str(path), stamp) for path, stamp in output.stamps.items())
    return blake3(repr((__version__, _recipe(output), inputs)).encode()).hexdigest(8)
