"""`diff`: two checkpoints, tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from adaptertool.comparison_report import DiffReport, TensorDiff
from adaptertool.errors import InputError, MismatchError, shown
from adaptertool.files.checkpoint import INDEX, SINGLE, Checkpoint, open_checkpoint
from adaptertool.files.jsonfile import load_json
from adaptertool.formats.beside import PREFIX, weights_beside
from adaptertool.formats.peft import CONFIG, WEIGHTS, is_adapter
from adaptertool.spec import COMPUTED, Ref
from adaptertool.tasks.arguments import PathLike, as_path
from adaptertool.tasks.common import config_notes, peak_memory, thread_count


def diff(
    a: PathLike,
    b: PathLike,
    *,
    ranks: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> DiffReport:
    """Which tensors of two checkpoints, or of two adapters, differ, and by how much. One pass, streaming.

    a, b:  directories or .safetensors files. Of adapters the factors are compared as they are stored: others may make
           the same change
    ranks: also the stable and the effective rank of each matrix B − A (numerics.spectrum, as in `inspect`); takes
           longer

    Bits count: −0.0 and 0.0 differ, NaN and the same NaN do not. Figures are float64 and do not depend on threads.
    Raises InputError where something cannot be read.
    """
    from adaptertool.comparison import Comparison, compare  # noqa: PLC0415  # loads numpy
    from adaptertool.files.reader import Inputs  # noqa: PLC0415

    start, count, paths = time.perf_counter(), thread_count(threads), (as_path(a, "A"), as_path(b, "B"))
    ours, theirs = map(_opened, paths)
    _require_alike(ours, theirs)
    headers = {header.path: header for header in (*ours.headers, *theirs.headers)}
    fits = {
        name: _comparable(ref, theirs.tensors[name]) for name, ref in ours.tensors.items() if name in theirs.tensors
    }
    with Inputs({path: header.stamp for path, header in headers.items()}) as inputs:
        pairs = [Comparison(inputs, ours.tensors[name], theirs.tensors[name]) for name, fit in fits.items() if fit]
        told = list(compare(pairs, count, progress or (lambda _: None), ranks=ranks))
        inputs.check_unchanged()
    found = {one.name: one for one in (*_misfits(ours, theirs, fits), *told) if one is not None}
    order = [name for name in (*ours.tensors, *(name for name in theirs.tensors if name not in fits)) if name in found]
    return DiffReport(
        equal=not found,
        a=str(paths[0]),
        b=str(paths[1]),
        same=sum(one is None for one in told),
        tensors=tuple(found[name] for name in order),
        notes=tuple(_notes(paths, ours, theirs)),
        bytes_read=sum(header.size for header in headers.values()),
        threads=count,
        seconds=time.perf_counter() - start,
        peak_memory=peak_memory(),
    )


def _opened(path: Path) -> Checkpoint:
    if not is_adapter(path):
        return open_checkpoint(path)
    if any((path / name).exists() for name in (SINGLE, INDEX)):
        raise InputError(f"{path} holds an adapter and a checkpoint; give the path of the file that is meant")
    return open_checkpoint(path / WEIGHTS)


def _require_alike(a: Checkpoint, b: Checkpoint) -> None:
    adapters = [one for one in (a, b) if any(name.startswith(PREFIX) for name in one.tensors)]
    if len(adapters) == 1:
        adapter, other = (a, b) if adapters[0] is a else (b, a)
        raise MismatchError(
            f"{adapter.path} is an adapter, and {other.path} a checkpoint; they have no tensors in common. Merge it, "
            "and compare what it makes; `adaptertool inspect ADAPTER --base BASE` tells what it changes"
        )


def _comparable(one: Ref, other: Ref) -> bool:
    computed = one.spec.dtype in COMPUTED and other.spec.dtype in COMPUTED
    return one.spec.shape == other.spec.shape and (one.spec.dtype == other.spec.dtype or computed)


def _misfits(a: Checkpoint, b: Checkpoint, fits: Mapping[str, bool]) -> Iterator[TensorDiff]:
    """What is told by the headers alone."""
    for name, ref in a.tensors.items():
        if name not in fits:
            yield TensorDiff(name, "missing", str(ref.spec), None)
        elif not fits[name]:
            other = b.tensors[name].spec
            status = "shape-changed" if ref.spec.shape != other.shape else "dtype-changed"
            yield TensorDiff(name, status, str(ref.spec), str(other))
    for name, ref in b.tensors.items():
        if name not in fits:
            yield TensorDiff(name, "extra", None, str(ref.spec))


def _notes(paths: tuple[Path, Path], a: Checkpoint, b: Checkpoint) -> Iterator[str]:
    yield from dict.fromkeys((*a.notes, *b.notes))
    adapters = [is_adapter(path) for path in paths]
    for path in (path for path, adapter in zip(paths, adapters, strict=True) if adapter):
        if beside := weights_beside(path):
            yield f"not compared, beside the factors in {path}: {', '.join(map(shown, beside))}"
    if all(adapters):
        yield from config_notes(CONFIG, *(load_json(path / CONFIG) for path in paths))
    elif not any(adapters):
        yield from config_notes("config.json", a.config, b.config)
