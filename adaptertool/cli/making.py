"""Plans and makes the steps of a recipe, in their order."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from adaptertool.arguments import as_path
from adaptertool.cli.steps import Run
from adaptertool.cli.within import Within
from adaptertool.errors import OutputError, UsageError
from adaptertool.files import LOCAL, store_of
from adaptertool.files.checkpoint import MANIFEST, load_manifest
from adaptertool.files.hub import called, find, kept_as
from adaptertool.files.publish import BEFORE
from adaptertool.output.manifest import STEPS
from adaptertool.recipes.fields import PATH, WHOLE
from adaptertool.recipes.ghosts import write_ghost
from adaptertool.recipes.read import OUT
from adaptertool.recipes.workshop import Workshop, key_of, workshop
from adaptertool.render.machine import to_json
from adaptertool.spec.plan import Plan

_PLANS = ("merge", "wise")  # what they write is known before it is computed
PLANNED, TO_PLAN, DONE, THERE = "planned", "to plan", "done", "there"


def plan_all(run: Run, *, quiet: bool) -> None:
    """Plan each step before there is a byte of data: those of `merge` and `wise` also on what earlier ones of them
    will write. quiet: nothing is printed, and what takes arithmetic is left out. Raises AdapterToolError."""
    with tempfile.TemporaryDirectory(prefix="adaptertool-plan-") as folder:
        ghosts = Run(run.recipe, run.out, run.how)
        for number, step in enumerate(run.steps):
            began = time.perf_counter()
            out = run.kept(number)
            if (why := _left(run, number, ghosts.made)) or (quiet and step.command.name not in _PLANS):
                run.report(number, TO_PLAN, 0.0, None, why=why)
                continue
            place = Path(folder) / str(number) / (step.name or "out")
            place.parent.mkdir()
            ghosts.names[str(place)] = f"${{{run.called(number)}}}" if out is None else out
            # A real OUT is looked at by the dry run; for a run that goes on it is another's matter whether it is free
            around, code = ghosts.run(number, str(place) if quiet or out is None else out, "--dry-run", quiet=quiet)
            run.report(number, PLANNED, time.perf_counter() - began, _as_json(around), code)
            for plan in around.plans:
                _ghost(plan, place)
                ghosts.made[number] = str(place)


def _left(run: Run, number: int, made: Collection[int]) -> str | None:
    """Why a step is not planned, in words; None where it can be. made: the steps of whose outputs the names and shapes
    are known"""
    step, needs = run.steps[number], sorted(run.outputs.needs(run.steps[number], number))
    if unknown := [f"step {one + 1} ({run.steps[one].command.name})" for one in needs if one not in made]:
        return f"what {' and '.join(unknown)} makes is known once it is computed"
    if not step.command.writes:
        return "it looks at numbers, and a dry run makes none"
    if "score" in step.values:
        return "what is scored is to be made first"
    if needs and step.command.name not in _PLANS:
        numbers = " and ".join(f"step {one + 1}" for one in needs)
        return f"it computes with the numbers of what {numbers} makes, and a dry run makes none"
    return None


def _as_json(around: Within) -> dict[str, Any] | None:
    found: dict[str, Any] | None = json.loads(to_json(around.reports[-1])) if around.reports else None
    return found


def _ghost(plan: Plan, place: Path) -> None:
    try:
        write_ghost(plan, place)
    except OSError as error:
        raise UsageError(f"planning what is planned needs a folder for headers ({place}): {error.strerror}") from error


def make_all(run: Run) -> None:
    """Run all steps; those that an earlier run of the same has made are not made again. Raises AdapterToolError."""
    writing = [number for number, step in enumerate(run.steps) if step.command.writes]
    if len(writing) < 2 or run.target is None:
        make_steps(run, None)
        return
    scratch = None if run.how.scratch is None else Path(run.how.scratch)
    with workshop(as_path(run.target, "OUT"), scratch) as bench:
        make_steps(run, bench)


def make_steps(run: Run, bench: Workshop | None) -> None:
    """Run all steps, with what is kept of them in `bench`; those that are noted there are not made again. Raises
    AdapterToolError."""
    there = _there(run, bench)
    if len(run.steps) > 1:
        require_free(run, there)
        plan_all(dataclasses.replace(run, done=[]), quiet=True)
    for number in range(len(run.steps)):
        began, out = time.perf_counter(), run.made.get(number)
        run.told.append(_data(run, number))
        if number in there:
            run.report(number, THERE, 0.0, there[number])
        else:
            with _noting(run, number, bench):
                around, code = run.run(number, out)
            report = _as_json(around)
            run.report(number, DONE, time.perf_counter() - began, report, code)
            if code:
                return
            if bench is not None and number in run.keys:
                bench.tell(run.keys[number], report)
        if number in run.keys and number != run.last and out is not None:
            _tell_manifest(run.told[number], as_path(out, "OUT"))


@contextlib.contextmanager
def _noting(run: Run, number: int, bench: Workshop | None) -> Iterator[None]:
    """While a step is run: what its manifest has of the others, and that what it makes is noted. A curve is not: it is
    published also where a point of it failed, and then is no step that is made."""
    step, key = run.steps[number], run.keys.get(number, "")
    notes = bench is not None and key and "score" not in step.values
    history = _history(run) if number == run.last and len(run.steps) > 1 else None
    tokens = STEPS.set(history), BEFORE.set((lambda work: bench.note(key, work)) if bench and notes else None)
    try:
        yield
    finally:
        STEPS.reset(tokens[0])
        BEFORE.reset(tokens[1])


def _there(run: Run, bench: Workshop | None) -> dict[int, dict[str, Any] | None]:
    """Say where the output of each step is; returns the reports of those that are made, as far as they are known."""
    there: dict[int, dict[str, Any] | None] = {}
    for number, step in enumerate(run.steps):
        out = run.kept(number) if step.command.writes else None
        if bench is None and out is not None:
            run.made[number] = out
        elif bench is not None and step.command.writes:
            key = run.keys[number] = _key(run, number)
            if out is None:
                out = str(bench.room(key) / (step.name or "out"))
                run.names[out] = f"${{{run.called(number)}}}"
            run.made[number] = out
            if bench.holds(key, as_path(out, "OUT")):
                there[number] = bench.report(key)
            elif run.kept(number) is None:
                bench.discard(Path(out))
    return there


def _history(run: Run) -> list[dict[str, Any]]:
    """All steps as data: those that are made, with their manifests, and those that are to come."""
    return [*run.told, *(_data(run, number) for number in range(len(run.told), len(run.steps)))]


def _data(run: Run, number: int) -> dict[str, Any]:
    """A step as the manifest has it: relative paths as they are typed, of others what a manifest calls them."""
    step = run.steps[number]

    def named(text: str) -> str:
        if maker := run.outputs.maker(text, number):
            return f"${{{run.called(maker[0])}}}{maker[1]}"
        if Path(text).is_absolute():
            return kept_as(Path(text))
        found = None if os.path.lexists(run.recipe.folder / text) else find(text)
        return text if found is None else called(found)

    def told(kind: str, value: str) -> Any:
        return named(value) if kind == PATH else int(value) if kind == WHOLE else value

    values: dict[str, Any] = {}
    for name, value in sorted(step.values.items()):
        kind = step.command.fields[name].kind
        if isinstance(value, tuple):
            values[name] = [told(kind, text) for text in value]
        elif name != OUT:
            values[name] = told(kind, value) if isinstance(value, str) else value
    return {**({"name": run.called(number)} if step.command.writes else {}), step.command.name: values}


def _tell_manifest(told: dict[str, Any], out: Path) -> None:
    if store_of(out) is LOCAL and (out / MANIFEST).is_file():
        told["manifest"] = load_manifest(out)


def keys_of(run: Run) -> dict[int, str]:
    """What decides the bytes of each step, by number, from the inputs as they are now."""
    for number in range(len(run.steps)):
        run.keys[number] = _key(run, number)
    return run.keys


def _key(run: Run, number: int) -> str:
    step = run.steps[number]
    values, inputs = {name: value for name, value in step.values.items() if name != OUT}, []
    for _, text in step.paths():
        maker = run.outputs.maker(text, number)
        inputs.append((text, run.outputs.path(text, number, run.made) if maker is None else run.keys[maker[0]]))
    return key_of(step.command.name, values, inputs)


def require_free(run: Run, there: Collection[int]) -> None:
    """Refuse an OUT that is taken, before the first step is run. Raises OutputError."""
    for number, step in enumerate(run.steps):
        out = run.kept(number) if step.command.writes else None
        if out is None or run.how.force or number in there:
            continue
        path = as_path(out, "OUT")
        if store_of(path) is LOCAL and os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
            raise OutputError(f"{run.where(number)}: {path} exists; choose another OUT, or replace it with --force")
