"""Small tensors that are judged together: the same verdicts as where each is judged by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from candidates import BF16, EMBED, F16, F32, NORM, Q1, UP, K, Place, Q, Tensors, naive, verdict
from conftest import write_adapter, write_checkpoint

from adaptertool.numerics import compiled
from adaptertool.tasks.verify import verify
from adaptertool.verification import stretches

pytestmark = pytest.mark.skipif(not compiled.levels(), reason="no compiled kernel: there was no C compiler")
SCALE = 2.0


def right(place: Place, scale: float = SCALE) -> Tensors:
    """What is right, correctly rounded: float64 has products of float32 with room to spare."""
    merged = dict(place.tensors)
    for name in place.factors:
        if name.endswith("lora_A.weight"):
            weight = name.replace("lora_A.", "")
            b, a = place.factors[name.replace("lora_A", "lora_B")].double(), place.factors[name].double()
            base = place.tensors[weight]
            merged[weight] = (base.double() + scale * b @ a).to(base.dtype)
    return merged


@pytest.fixture
def by_itself(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is judged by itself, of what was in a stretch or was not."""
    names: list[str] = []

    def jobs_of(subject: Any) -> Iterator[Any]:
        names.append(subject.name)
        return original(subject)

    original = stretches.jobs_of
    monkeypatch.setattr(stretches, "jobs_of", jobs_of)
    return names


def without(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    def apart(members: Iterable[tuple[Any, int]], *_: object) -> Iterator[Any]:
        yield from (step for step, _ in members)

    with monkeypatch.context() as patched:
        patched.setattr(stretches, "with_stretches", apart)
        return call()


def said(report: Any) -> dict[str, Any]:
    return {name: value for name, value in dataclasses.asdict(report).items() if name != "seconds"}


def put(tensors: Tensors, name: str, at: tuple[int, ...], number: float) -> Tensors:
    changed = tensors[name].clone()
    changed[at] = number
    return {**tensors, name: changed}


def test_what_is_exact_is_not_looked_at_twice(place: Place, by_itself: list[str]) -> None:
    report = place.judge(right(place), strict=True)
    assert report.ok and not set(by_itself).intersection((Q, K, UP, Q1))
    assert all((tensor.status, tensor.max_ulp, tensor.rel_error) == ("exact", 0, 0.0) for tensor in report.tensors)


def test_one_that_is_wrong_is_judged_by_itself(place: Place, by_itself: list[str]) -> None:
    wrong = put(right(place), K, (3, 5), 0.5)
    report = place.judge(wrong)
    assert K in by_itself and not set(by_itself).intersection((Q, UP, Q1))
    assert verdict(report, K).status == "wrong" and report.summary.wrong == 1


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_the_same_verdicts(place: Place, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    place = Place(place.root / "own", dtype)
    exact = right(place)
    candidates: list[Tensors] = [
        exact,
        place.tensors,
        naive(place.tensors, place.factors),
        naive(place.tensors, place.factors, 2.2),
        put(exact, Q, (0, 0), float("nan")),
        put(exact, NORM, (7,), 3.0),
        put(exact, EMBED, (-1, -1), -0.0),
        {name: tensor.float() for name, tensor in exact.items()},
        {name: tensor for name, tensor in exact.items() if name != Q1},
        {**exact, "other.weight": torch.ones(3)},
        {**exact, UP: exact[UP].T},
    ]
    for tensors in candidates:
        for shards in (1, 2):
            together = place.judge(tensors, shards=shards)
            apart = without(monkeypatch, lambda: verify(place.root / "merged", place.base, [place.adapter], threads=1))
            assert said(together) == said(apart)


def test_what_the_dtype_does_not_hold_is_judged_in_that_of_the_candidate(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base has float16, which does not hold one number of the merge; the candidate has float32, which does."""
    tensors = {name: tensor.to(F16) for name, tensor in place.tensors.items()}
    tensors = put(tensors, Q, (0, 0), 60000.0)
    factors = {name: tensor.clone() for name, tensor in place.factors.items()}
    module = Q.removesuffix(".weight")
    factors[f"{module}.lora_A.weight"][:, 0], factors[f"{module}.lora_B.weight"][0] = 40.0, 40.0
    other = Place(place.root / "half", F16)
    write_checkpoint(other.base, tensors)
    write_adapter(other.adapter, factors)
    other.tensors, other.factors = tensors, factors
    wide = {name: tensor.float() for name, tensor in tensors.items()}
    for name in (Q, K, UP, Q1):
        module = name.removesuffix(".weight")
        b, a = (factors[f"{module}.lora_{one}.weight"].double() for one in "BA")
        wide[name] = (tensors[name].double() + SCALE * b @ a).float()
    together = other.judge(wide, config={"torch_dtype": "float32"})
    apart = without(monkeypatch, lambda: verify(other.root / "merged", other.base, [other.adapter], threads=1))
    assert verdict(together, Q).status == "exact"
    assert said(together) == said(apart)


def test_an_interpolation_is_compared_at_its_alpha(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    half = right(place, 0.5 * SCALE)
    together = place.judge(half, alpha="0.5")
    apart = without(
        monkeypatch, lambda: verify(place.root / "merged", place.base, [place.adapter], threads=1, alpha="0.5")
    )
    assert said(together) == said(apart)
    assert together.summary.exact == len(together.tensors)
