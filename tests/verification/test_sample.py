"""Rows of a tensor that are compared with what faults would have made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from candidates import Place, Q, naive

from adaptertool.verification import run
from adaptertool.verification.sample import Sample, samples_of


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Of a tensor that is wrong from row 7 on."""
    place, found = Place(tmp_path), list[Sample]()
    tensors = naive(place.tensors, place.factors)
    tensors[Q] = tensors[Q].clone()
    tensors[Q][7:] = place.tensors[Q][7:]

    def fault_of(subject: Any, *arguments: Any) -> Any:
        if subject.name == Q:
            found.extend(sample for sample in samples_of(subject, 1024) if len(sample.bad))
        return original(subject, *arguments)

    original = run.fault_of
    monkeypatch.setattr(run, "fault_of", fault_of)
    place.judge(tensors)
    assert len(found) > 2
    return found


@pytest.mark.parametrize("far", [0, 1, 5, 1000])
def test_a_few_rows_rule_out_what_all_rows_do(samples: list[Sample], far: int) -> None:
    """As many elements are far as are asked for, at chance, in bad rows and others."""
    some, ruled_out = np.random.default_rng(far), 0
    for sample in samples:
        for _ in range(20):
            numbers = sample.found.copy()
            numbers.reshape(-1)[some.integers(numbers.size, size=far)] += 10.0

            def make(part: Sample, numbers: Any = numbers, first: int = sample.block.first) -> Any:
                return numbers[part.block.first - first : part.block.last - first]

            made = sample.made(make)
            share = np.mean(abs(sample.found - numbers)[sample.bad] <= 2 * sample.limit[sample.bad])
            assert sample.may_be(numbers) == (share >= 0.999) == (made is not None)
            assert made is None or (made == numbers).all()
            ruled_out += made is None
    assert ruled_out == {0: 0, 1000: 20 * len(samples)}.get(far, ruled_out)


def test_a_few_rows_are_those_of_the_tensor(samples: list[Sample]) -> None:
    """What is computed for a few rows is what is computed for all, there."""
    for sample in samples:
        seen: list[Sample] = []

        def make(part: Sample, seen: list[Sample] = seen) -> Any:
            seen.append(part)
            return part.exact + 100

        assert sample.made(make) is None
        (few,) = seen
        cut = slice(few.block.first - sample.block.first, few.block.last - sample.block.first)
        assert few.block.first == sample.block.first + sample.bad[0]
        for name in ("base", "exact", "found", "plain", "limit"):
            assert (getattr(few, name) == getattr(sample, name)[cut]).all()
        assert (few.bad + cut.start == [bad for bad in sample.bad if cut.start <= bad < cut.stop]).all()
