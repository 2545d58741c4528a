"""The other base that an adapter may have been merged into: dense, or as a QLoRA run had it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.quantised.four_bits import CHOICES, as_loaded
from adaptertool.codecs.tensors import read_stored
from adaptertool.numerics.rounding import Array
from adaptertool.spec.choices import DTYPES
from adaptertool.spec.tensors import Ref
from adaptertool.verification.codes import weight_of
from adaptertool.verification.sample import Sample, all_made
from adaptertool.verification.subject import Candidate

_NEAR = 0.1  # how far codes with double quantisation are from those without, relatively, at most


class OnOther(NamedTuple):
    code: str
    detail: str
    numbers: Sequence[Array]  # of each sample: what a merge into that base is


def on_other_bases(subject: Candidate, samples: Sequence[Sample]) -> Iterator[OnOther]:
    """What rows of a matrix would be on the other bases, where that may be what their bad ones hold."""
    base, dtype = subject.step.base, subject.step.spec.dtype
    if base.made is not None:
        if weight_of(base) is not None or not base.made.decodes or len(base.made.sources) != 1:
            return
        (base,) = base.made.sources
        if (numbers := all_made(samples, functools.partial(_under, subject=subject, base=base))) is not None:
            yield OnOther("dense-base", "merged into the dense base", numbers)
    if len(base.shape) != 2 or base.spec.dtype not in DTYPES.values() or dtype not in DTYPES.values():
        return
    plain: Callable[[Sample], Array] | None = None  # without double quantisation
    for name, how in CHOICES.items():
        if how.nested and not (plain and _is_near(samples, plain)):
            continue
        make = functools.partial(_under, subject=subject, base=as_loaded(base, how, dtype))
        plain = plain if how.nested else make
        if (numbers := all_made(samples, make)) is not None:
            yield OnOther(f"{name[:3]}-base", f"merged into the base as {name} of bitsandbytes has it", numbers)


def _is_near(samples: Sequence[Sample], make: Callable[[Sample], Array]) -> bool:
    """Whether all rows are about what is made of them."""
    found = np.concatenate([sample.found.ravel() for sample in samples])
    away = np.linalg.norm(found - np.concatenate([make(sample).ravel() for sample in samples]))
    return bool(away <= _NEAR * np.linalg.norm(found))


def _under(sample: Sample, subject: Candidate, base: Ref) -> Array:
    other = Candidate(subject.step._replace(base=base), subject.alpha, subject.candidate, subject.inputs)
    block = sample.block
    stored = read_stored(subject.inputs, base, block.start, block.start + block.numel)
    rows = doubles(stored, base.spec.dtype).reshape(sample.base.shape)
    return sample._replace(base=rows).under(other, subject.step.edits)
