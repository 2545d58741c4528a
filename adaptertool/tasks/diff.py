"""`diff`: two checkpoints, tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from adaptertool.architectures.decoded_beside import both_dense
from adaptertool.arguments import PathLike, as_input
from adaptertool.codecs import COMPUTED
from adaptertool.engine.resources import peak_memory, thread_count
from adaptertool.errors import InputError, MismatchError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.hub import called
from adaptertool.files.jsonfile import load_json
from adaptertool.files.pipeline import holds_weights
from adaptertool.files.reader import Inputs
from adaptertool.formats import FORMATS, is_adapter, recognised
from adaptertool.formats.beside import weights_beside
from adaptertool.formats.checkpoints import open_checkpoint
from adaptertool.inspection.diff import Comparison, compare
from adaptertool.output.target import config_notes
from adaptertool.reports.diff import DiffReport, TensorDiff
from adaptertool.resolution.correspondence import Counterparts, counterparts
from adaptertool.resolution.renaming import renaming
from adaptertool.spec.tensors import Ref


def diff(
    a: PathLike,
    b: PathLike,
    *,
    ranks: bool = False,
    renames: Sequence[str] = (),
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DiffReport:
    """Which tensors of two checkpoints, or of two adapters, differ, and by how much. One pass, streaming.

    a, b:  directories or .safetensors files. Of adapters the factors are compared as they are stored: others may make
           the same change
    ranks: also the stable and the effective rank of each matrix B − A (numerics.spectrum, as in `inspect`); takes
           longer
    renames: "regex=>replacement" on the names of `b` that `a` does not have

    Tensors of checkpoints are found by other names too, those of another version of transformers for one
    (resolution/correspondence.py); the report has the names of `a`. What one of both leaves out since it is tied and
    the same, or since models compute it themselves, is no difference.

    Where one of both is quantised and the other is not, it is decoded, and its numbers are compared (F64).

    Bits count: −0.0 and 0.0 differ, NaN and the same NaN do not. Figures are float64 and do not depend on threads.
    Raises InputError where something cannot be read.
    """

    start, count, paths = time.perf_counter(), thread_count(threads), (as_input(a, "A"), as_input(b, "B"))
    ours, theirs = both_dense(*map(_opened, paths))
    _require_alike(ours, theirs)
    with renaming(renames) as own:
        theirs = own.checkpoint(theirs, ours)
    found = _counterparts(ours, theirs, plain=any(map(is_adapter, paths)))
    sources = {end.spec.name: (ours.tensors[source.spec.name], end) for end, source in found.copies}
    both = {name: (ref, found.tensors[name]) for name, ref in ours.tensors.items() if name in found.tensors}
    both |= {end: (one.renamed(end), other) for end, (one, other) in sources.items()}
    headers = {header.path: header for header in (*ours.headers, *theirs.headers)}
    with Inputs({path: header.stamp for path, header in headers.items()}) as inputs:
        pairs = [Comparison(inputs, *pair) for pair in both.values() if _comparable(*pair)]
        told = list(compare(pairs, count, progress or (lambda _: None), ranks=ranks))
        inputs.check_unchanged()
    differ = {one.name: one for one in (*_misfits(found, both), *told) if one is not None}
    order = [name for name in (*ours.tensors, *sources, *found.extra) if name in differ]
    return DiffReport(
        equal=not differ,
        a=called(paths[0]),
        b=called(paths[1]),
        same=sum(one is None for one in told),
        tensors=tuple(differ[name] for name in order),
        notes=(*_notes(paths, ours, theirs), *found.notes),
        bytes_read=sum(header.size for header in headers.values()),
        threads=count,
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
    )


def _opened(path: Path) -> Checkpoint:
    if (own := recognised(path)) is None:
        return open_checkpoint(path)
    if holds_weights(path):
        raise InputError(f"{path} holds an adapter and a checkpoint; give the path of the file that is meant")
    return open_checkpoint(path / own.files.weights_at(path))


def _require_alike(a: Checkpoint, b: Checkpoint) -> None:
    prefixes = tuple(one.files.prefix for one in FORMATS if one.files.prefix)
    adapters = [one for one in (a, b) if any(name.startswith(prefixes) for name in one.tensors)]
    if len(adapters) == 1:
        adapter, other = (a, b) if adapters[0] is a else (b, a)
        raise MismatchError(
            f"{adapter.path} is an adapter, and {other.path} a checkpoint; they have no tensors in common. Merge it, "
            "and compare what it makes; `adaptertool inspect ADAPTER --base BASE` tells what it changes"
        )


def _counterparts(a: Checkpoint, b: Checkpoint, *, plain: bool) -> Counterparts:
    """plain: by equal names alone, as the tensors of adapters are compared."""
    if not plain:
        return counterparts(a, b)
    both = {name: ref for name, ref in b.tensors.items() if name in a.tensors}
    missing, extra = ({name: ref for name, ref in one.tensors.items() if name not in both} for one in (a, b))
    return Counterparts(both, missing, extra, (), ())


def _comparable(one: Ref, other: Ref) -> bool:
    computed = one.spec.dtype in COMPUTED and other.spec.dtype in COMPUTED
    return one.spec.shape == other.spec.shape and (one.spec.dtype == other.spec.dtype or computed)


def _misfits(found: Counterparts, both: Mapping[str, tuple[Ref, Ref]]) -> Iterator[TensorDiff]:
    """What is told by the headers alone."""
    for name, (one, other) in both.items():
        if not _comparable(one, other):
            status = "shape-changed" if one.spec.shape != other.spec.shape else "dtype-changed"
            yield TensorDiff(name, status, str(one.spec), str(other.spec))
    for name, ref in found.missing.items():
        yield TensorDiff(name, "missing", str(ref.spec), None)
    for name, ref in found.extra.items():
        yield TensorDiff(name, "extra", None, str(ref.spec))


def _notes(paths: tuple[Path, Path], a: Checkpoint, b: Checkpoint) -> Iterator[str]:
    yield from dict.fromkeys((*a.notes, *b.notes))
    formats = [recognised(path) for path in paths]
    found = [(path, own) for path, own in zip(paths, formats, strict=True) if own is not None]
    for path, own in found:
        if own.files.config is not None and (beside := weights_beside(path, own.files)):
            yield f"not compared, beside the factors in {path}: {', '.join(map(shown, beside))}"
    if len(found) == len(paths):
        if None not in (configs := [own.files.config for _, own in found]):
            read = [load_json(path / own.files.named[0]) for path, own in found]
            yield from config_notes(str(configs[0]), *read)
    elif not found:
        yield from config_notes("config.json", a.config, b.config)
    yield from config_notes("what GGUF files say beside their tensors", a.gguf, b.gguf)
