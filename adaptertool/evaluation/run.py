"""One model after the other: the base, with its adapters and without, then every checkpoint."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from adaptertool.errors import StorageError
from adaptertool.evaluation.answers import Answers, answers_of, score
from adaptertool.evaluation.encoding import Case, Encoder, check_fit
from adaptertool.evaluation.loading import (
    alone,
    check_folder,
    context_of,
    has_tokenizer,
    load_model,
    load_tokenizer,
    vocabulary_of,
)
from adaptertool.evaluation.logits import Reference
from adaptertool.evaluation.prompts import read_prompts
from adaptertool.files.hub import called
from adaptertool.live.attach import attaching
from adaptertool.live.device import OUT_OF_MEMORY, device_of
from adaptertool.planning.sources import Reading
from adaptertool.records import dataclass
from adaptertool.reports.evaluate import EvaluationReport, ModelScores


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments of `evaluate`, checked."""

    base: Path
    adapters: tuple[Path, ...]
    merged: tuple[Path, ...]
    prompts: Path
    weights: tuple[float, ...]
    compose: str
    reading: Reading
    each: bool
    losses: tuple[str, ...]
    generate: int
    device: str
    fail_above: float

    @property
    def models(self) -> list[tuple[str, tuple[int, ...]]]:
        """The base with adapters unmerged: what to call it, and which of the adapters."""
        together = tuple(range(len(self.adapters)))
        groups = [(n,) for n in together] if self.each else [together] * bool(together)
        return [(self._name(group), group) for group in groups]

    def _name(self, group: Sequence[int]) -> str:
        own = [called(self.adapters[n]) + (f" × {self.weights[n]:g}" if self.weights[n] != 1 else "") for n in group]
        return " + ".join([called(self.base), *own])


def run(request: Request) -> EvaluationReport:
    """See `adaptertool.evaluate`."""
    with alone():
        return _run(request, time.perf_counter())


def _run(request: Request, start: float) -> EvaluationReport:
    device = device_of(request.device)
    for path in (request.base, *request.merged):
        check_folder(path)
    cases, notes = _cases(request)
    try:
        with contextlib.closing(_Models(request, device, cases, notes)) as models:
            scores = [*models.on_base(), *models.merged()]
    except OUT_OF_MEMORY as error:
        raise StorageError(f"out of memory on {device}: give shorter prompts, or --device cpu") from error
    judged = [one.drift for one in scores if one.drift is not None and one.role != "base"]
    return EvaluationReport(
        ok=all(drift.mean_kl <= request.fail_above for drift in judged),
        base=called(request.base),
        adapters=tuple(map(called, request.adapters)),
        weights=request.weights,
        merged=tuple(map(called, request.merged)),
        reference=next(one.name for one in scores if one.drift is None),
        prompts=len(cases),
        tokens=sum(len(case.prompt) for case in cases),
        generated=request.generate,
        device=str(device),
        fail_above=request.fail_above if request.fail_above < float("inf") else None,
        models=tuple(scores),
        notes=tuple(dict.fromkeys(notes)),
        seconds=time.perf_counter() - start,
    )


def _cases(request: Request) -> tuple[list[Case], list[str]]:
    """The lines of the file as tokens of the base's tokenizer, and notes."""
    lines, notes = read_prompts(request.prompts)
    encoder = Encoder(load_tokenizer(request.base), str(request.prompts))
    cases = [encoder.case(line) for line in lines]
    if encoder.cut_within:
        notes.append(
            f"{request.prompts}: on {len(set(encoder.cut_within))} lines a token would reach from the prompt into the "
            f"answer, so these were made tokens apart (first on line {encoder.cut_within[0]})"
        )
    for path in filter(has_tokenizer, request.merged):
        own = Encoder(load_tokenizer(path), str(request.prompts))
        if other := [line.number for line, case in zip(lines, cases, strict=True) if own.case(line) != case]:
            notes.append(
                f"{path}: its own tokenizer makes other tokens of {len(other)} lines (first of line {other[0]}); "
                "all models are given the tokens of the base's"
            )
    return cases, notes


class _Models:
    def __init__(self, request: Request, device: torch.device, cases: Sequence[Case], notes: list[str]) -> None:
        self._request, self._device, self._cases, self._notes = request, device, cases, notes
        self._before: list[Answers] = []
        self._reference: Reference | None = None

    def on_base(self) -> Iterator[ModelScores]:
        """The base, and the base with adapters: the reference is one of them."""
        request, start = self._request, time.perf_counter()
        model, base = self._load(request.base), str(request.base)
        self._before = answers_of(model, base, self._cases)
        referred = None if request.each or not request.adapters else request.models[0]
        if referred is None:
            self._reference = Reference(model, base, self._cases, request.generate)
            yield self._scores(model, base, "base", start, self._before, refers=True)
        else:
            with self._attached(model, referred[1]):
                self._reference = Reference(model, referred[0], self._cases, request.generate)
                answers = answers_of(model, referred[0], self._cases)
            attached = self._scores(model, referred[0], "unmerged", start, answers, refers=True)
            yield self._scores(model, base, "base", time.perf_counter(), self._before)
            yield attached
        for name, group in request.models if referred is None else ():
            start = time.perf_counter()
            with self._attached(model, group):
                yield self._scores(model, name, "unmerged", start, answers_of(model, name, self._cases))

    def merged(self) -> Iterator[ModelScores]:
        for path in self._request.merged:
            gc.collect()  # the model before: a cycle may hold it
            start = time.perf_counter()
            model = self._load(path)
            yield self._scores(model, called(path), "merged", start, answers_of(model, called(path), self._cases))
            del model

    def close(self) -> None:
        if self._reference is not None:
            self._reference.close()

    def _load(self, path: Path) -> Any:
        model, notes = load_model(path, self._device)
        self._notes += notes
        check_fit(self._cases, called(path), context_of(model), vocabulary_of(model), self._request.generate)
        return model

    def _attached(self, model: Any, group: Sequence[int]) -> contextlib.AbstractContextManager[None]:
        request = self._request
        paths, weights = [request.adapters[n] for n in group], [request.weights[n] for n in group]
        return attaching(model, paths, weights, request.reading, request.compose, self._notes.append)

    def _scores(
        self, model: Any, name: str, role: str, start: float, answers: Sequence[Answers], *, refers: bool = False
    ) -> ModelScores:
        assert self._reference is not None
        return ModelScores(
            name=name,
            role=role,
            drift=None if refers else self._reference.drift(model, name),
            edits=score(self._cases, answers, self._before, self._request.losses),
            seconds=time.perf_counter() - start,
        )
