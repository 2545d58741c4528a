"""`adaptertool.manifest.json`: how a checkpoint came to be, with the hash of every file of it and of every input; and
`SHA256SUMS`. The same inputs and recipe give the same bytes: no time, no absolute path, no mark of having gone on."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from marshal import dumps
from pathlib import Path
from typing import Any

from blake3 import blake3

from adaptertool.errors import StorageError, shown
from adaptertool.files import LOCAL, store_of
from adaptertool.files.checkpoint import MANIFEST, SUMS
from adaptertool.files.hashing import SHA256, Digests, digests_of
from adaptertool.files.hub import kept_as
from adaptertool.files.reader import open_input, read_into
from adaptertool.files.stage import Finished, Published
from adaptertool.files.writer import write_small
from adaptertool.reports.run import KeptReport
from adaptertool.spec.plan import EDITS_ALONE, Edit, Plan, Shard
from adaptertool.spec.tensors import Ref, files_of
from adaptertool.version import __version__

_SAMPLE = 1 << 12  # bytes at each of two places of an input file

Facts = dict[str, int | str]  # size, and hashes by name

# What the manifest of a recipe's last step has beside its own: all steps as data, with the manifests of those before.
# Set around that step (cli.steps); it decides nothing of what is computed
STEPS: ContextVar[Sequence[Mapping[str, Any]] | None] = ContextVar("STEPS", default=None)


def labels_of(plan: Plan) -> dict[Path, str]:
    """What each input file is called on every machine: the number of what it belongs to (0 is the base), and its name
    in there."""
    labels = {path: f"{number}/{name}" for number, files in enumerate(plan.files) for name, path in files.items()}
    return labels | {path: f"-/{path.name}" for path in plan.inputs.keys() - labels.keys()}


def recipe_key(plan: Plan, hashes: tuple[str, ...]) -> str:
    """What tells a run from every other: the version, the recipe, each input file as it was found, each tensor and
    edit. No path, device or inode is in it: other machines that see the same files have the same key. Files of two
    adapters may be as long as each other, and out of one archive as old, so some of their bytes are in it."""
    labels = labels_of(plan)
    outputs = [(output.folder, output.alpha, output.files) for output in plan.outputs]
    found = [(label, path, plan.inputs[path][2:4]) for path, label in labels.items() if path in plan.inputs]
    inputs = sorted((label, stamp, _sampled(path, stamp[0])) for label, path, stamp in found)
    assets = [(asset.name, asset.size, asset.content) for asset in plan.assets]
    recipe = plan.command, plan.weights, plan.precision, sorted(plan.choices.items()), hashes
    state = blake3(repr((__version__, recipe, outputs, inputs, assets)).encode())
    numbers = {path: number for number, path in enumerate(sorted(labels, key=labels.__getitem__))}
    for shard in plan.shards:
        for columns in _shard_told(shard, numbers):
            state.update(dumps(columns, 2))
    return state.hexdigest(8)


def _sampled(path: Path, size: int) -> bytes:
    """Some bytes of a file of so many; none of one in a store, whose stamp tells what it holds."""
    if store_of(path) is not LOCAL:
        return b""
    places = [size // 3, 2 * size // 3]
    parts = [bytearray(min(_SAMPLE, size - place)) for place in places]
    with open_input(path) as file:
        for place, part in zip(places, parts, strict=True):
            read_into(file, place, memoryview(part))
    return b"".join(parts)


# What the key of a run has of tensors and edits: one thing of all, then the next of all. There may be hundreds of
# thousands, and so no loop over them is one of Python's. Plain lists, tuples, strings and numbers alone: version 2 of
# marshal writes the same for what is equal, and takes a fourth of the time of repr.


def _shard_told(shard: Shard, numbers: Mapping[Path, int]) -> Iterator[Any]:
    """numbers: those of the input files"""
    steps = shard.steps
    yield shard.name, shard.size, shard.data_start, numbers[shard.source], shard.header
    yield [tuple(step.spec) for step in steps], [step.offset for step in steps], [len(step.edits) for step in steps]
    yield from _refs_told([step.base for step in steps], numbers)
    others = [(at, step) for at, step in enumerate(steps) if step[4:] != EDITS_ALONE]
    yield [
        (at, repr((step.blend, step.makes, step.share)), step.fisher is not None, step.keeps is not None)
        for at, step in others
    ]
    yield from _refs_told([ref for _, step in others for ref in step.fisher or ()], numbers)
    yield from _refs_told([step.stored for _, step in others if step.keeps is not None], numbers)
    yield from _edits_told([edit for step in steps for edit in step.edits], numbers)


def _edits_told(edits: Sequence[Edit], numbers: Mapping[Path, int]) -> Iterator[Any]:
    for field in ("kind", "adapter", "module", "scale", "weight", "transposed", "on_base"):
        yield list(map(operator.attrgetter(field), edits))
    yield from _factors_told([edit.factors for edit in edits], numbers)
    yield [(at, repr(edit.view)) for at, edit in enumerate(edits) if edit.view is not None]
    parts = [(at, edit.part_of) for at, edit in enumerate(edits) if edit.part_of is not None]
    yield [(at, repr([None if field is part.factors else field for field in part])) for at, part in parts]
    yield from _factors_told([part.factors for _, part in parts], numbers)


def _factors_told(factors: Sequence[Mapping[str, Ref]], numbers: Mapping[Path, int]) -> Iterator[Any]:
    yield list(map(tuple, factors))  # the roles
    yield from _refs_told([ref for own in factors for ref in own.values()], numbers)


def _refs_told(refs: Sequence[Ref], numbers: Mapping[Path, int]) -> Iterator[Any]:
    paths, files = files_of(refs)
    of_file = [numbers[path] for path in paths]
    yield [of_file[file] for file in files], [ref.offset for ref in refs], [tuple(ref.spec) for ref in refs]
    yield [(at, repr(ref.columns)) for at, ref in enumerate(refs) if ref.columns is not None]
    made = [(at, ref.made) for at, ref in enumerate(refs) if ref.made is not None]
    yield [(at, one.first, one.rows.__qualname__, len(one.sources)) for at, one in made]
    if made:
        yield from _refs_told([source for _, one in made for source in one.sources], numbers)


def names_of(plan: Plan) -> list[str]:
    """The names within OUT of all that a run makes, but for the manifests."""
    return [
        f"{output.folder}/{name}".lstrip("/")
        for output in plan.outputs
        for name in (
            *(shard.name for shard in plan.shards),
            *(asset.name for asset in plan.assets),
            *(name for name, _ in output.files),
        )
    ]


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of the files of a run when all are written."""

    plan: Plan
    stage: Published
    digests: Mapping[Path, Digests]  # of inputs
    kept: Sequence[KeptReport] | None = None  # what became of weights that stay codes

    def inputs(self) -> tuple[dict[str, Facts], ...]:
        """Size and hashes of the files of the base and of each source, by name. Where only the header of a file was
        needed (a shard of the base, with --as-adapter) the size alone."""
        sizes = self.plan.inputs
        return tuple(
            {name: {"size": sizes[files[name]][2], **self.digests.get(files[name], {})} for name in sorted(files)}
            for files in self.plan.files
        )

    def outputs(self, folder: Path) -> dict[str, Facts]:
        """Size and hashes of every file below `folder`, by its path from there."""
        known = {self.stage.work / name: finished for name, finished in self.stage.finished.items()}
        return facts_of(folder, known, self.stage.hashes)

    def require_all(self, *more: str) -> None:
        """Raises StorageError unless the files are there, all of them and no others but `more`: somebody may have been
        there."""
        plan, work = self.plan, self.stage.work
        expected = {*more, *names_of(plan)}
        present = {path.relative_to(work).as_posix() for path in work.rglob("*") if not path.is_dir()}
        if wrong := sorted(expected ^ present):
            what = "is gone from" if wrong[0] in expected else "came into"
            raise StorageError(f"{shown(wrong[0])} {what} {work} during the run; nothing was published, run again")


def recipe_of(plan: Plan, alphas: list[float]) -> dict[str, Any]:
    """What a manifest says of how its files are made, but for the inputs."""
    sources = zip(plan.sources, plan.weights, strict=True)
    return {
        "command": plan.command,
        "base": kept_as(plan.base),
        "sources": [{"name": kept_as(path), "weight": weight} for path, weight in sources],
        "alphas": alphas,
        "precision": plan.precision,
        **plan.choices,
    }


def write_manifests(record: Record) -> None:
    """One beside every output, and one at the top of several; with sha256, SHA256SUMS beside each."""
    outputs, work = record.plan.outputs, record.stage.work
    for output in outputs:
        _write(record, work / output.folder, [output.alpha])
    if [output.folder for output in outputs] != [""]:
        _write(record, work, [output.alpha for output in outputs])


def _write(record: Record, folder: Path, alphas: list[float]) -> None:
    base, *sources = record.inputs()
    inputs = {"base": base, "sources": sources}
    known = record.kept
    kept = None if known is None else [dataclasses.asdict(one) for one in known if one.alpha in alphas]
    write_manifest(folder, recipe_of(record.plan, alphas), inputs, record.outputs(folder), record.stage.hashes, kept)


def write_manifest(
    folder: Path,
    recipe: Mapping[str, Any],
    inputs: Mapping[str, Any],
    files: Mapping[str, Facts],
    hashes: tuple[str, ...],
    kept: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """kept: what became of weights that stay codes"""
    content = {
        "schema": "manifest/1",
        "adaptertool": __version__,
        "recipe": recipe,
        "inputs": inputs,
        **({} if kept is None else {"kept": kept}),
        **({} if (steps := STEPS.get()) is None else {"steps": steps}),
        "files": files,  # --force replaces a folder that holds these, the manifest, SHA256SUMS, and no others
    }
    write_small(folder / MANIFEST, (json.dumps(content, indent=2) + "\n").encode())
    if SHA256 in hashes:
        known = {**files, MANIFEST: digests_of(folder / MANIFEST, hashes)}
        write_small(folder / SUMS, sums({name: str(facts[SHA256]) for name, facts in known.items()}))


def facts_of(folder: Path, known: Mapping[Path, Finished], hashes: tuple[str, ...]) -> dict[str, Facts]:
    """Size and hashes of every file below `folder`, by its path from there. known: those that need not be read."""
    return {
        path.relative_to(folder).as_posix(): (
            {"size": known[path].size, **known[path].digests}
            if path in known
            else {"size": path.stat().st_size, **digests_of(path, hashes)}
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sums(files: Mapping[str, str]) -> bytes:
    """SHA256SUMS as `sha256sum` writes it: of every file but itself; a name with a backslash or a line break is
    escaped, and a backslash before the line says so."""
    lines = []
    for name in sorted(files):
        escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        lines.append(("\\" if escaped != name else "") + f"{files[name]}  {escaped}\n")
    return b"".join(map(os.fsencode, lines))
