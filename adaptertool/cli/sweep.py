"""Sweeps over numbers of a recipe, by what a program says of what it makes."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.arguments import PathLike, as_local
from adaptertool.cli.apply import RecipeLike, opened, path_text
from adaptertool.cli.making import plan_all
from adaptertool.cli.steps import How, Run
from adaptertool.cli.sweep_asked import Asked
from adaptertool.cli.sweep_bench import Bench, fingerprint
from adaptertool.cli.sweeping import Sweeping
from adaptertool.errors import AdapterToolError, InputError, UsageError, argument, shown
from adaptertool.files import LOCAL, publish, store_of
from adaptertool.files.staging import Staging
from adaptertool.output.leftovers import Leftovers
from adaptertool.recipes.numbers import Point, Sweep, axes_of, require_few, start_of
from adaptertool.recipes.read import OUT, Recipe
from adaptertool.render.machine import to_json
from adaptertool.render.score_files import without_page
from adaptertool.reports.apply import StepReport
from adaptertool.reports.scores import ALL, BEST, NONE, SCORES
from adaptertool.reports.sweep import GRID, PAGE, SEARCHES, SweepPoint, SweepReport
from adaptertool.scoring.published import published_scores
from adaptertool.scoring.scorer import Score, scorer_of
from adaptertool.scoring.search import grid
from adaptertool.scoring.settings import ScoreSettings

_MOST_PLANNED = 16  # values of a number that are planned before the first is made; of more, the least and the largest
# Fields of steps that are of one OUT, or score by themselves
_FOREIGN = ("score", "html", "junit", "provenance", "fail_if_unchanged")


def apply_sweep(
    recipe: RecipeLike,
    out: PathLike | None = None,
    *,
    sweep: Sweep,
    score: Score,
    search: str = GRID,
    keep: str | None = None,
    target: str | None = None,
    reference: str | None = None,
    minimise: bool = False,
    results: PathLike | None = None,
    dry_run: bool = False,
    force: bool = False,
    clean: bool = False,
    threads: int | None = None,
    scratch: PathLike | None = None,
    progress: Callable[[SweepPoint], None] | None = None,
) -> SweepReport:
    """Run a recipe with other numbers, have a program score what each makes, and make the best of them as `out`.

    recipe, out, force, clean, threads, scratch: as for `apply`; force measures all anew, too
    sweep:    for each number, by its place in the recipe, its values: {"weights.0": "0:1:0.25", "density": [0.3, 0.5]}
    score, target, reference, minimise: as for `wise_curve`
    search:   "grid": every combination, at most 1,000; "coordinate": from the numbers that the recipe has, one number
              at a time is set to its best value, over and over, until none gets better
    keep:     "best" as OUT (as where there is an OUT), or "none"
    results:  the folder of scores.json, scores.csv and sweep.html; OUT-scores unless given
    dry_run:  name the points and plan the first, and write nothing
    progress: told each point that was measured

    A point that cannot be made or scored, or that a check of the recipe fails on, is in the report with the reason, and
    the others go on. What the same command measured is taken over as by `wise_curve`. OUT has the bytes and the
    manifest that `apply` gives it with these numbers. Raises AdapterToolError; `out` is then as it was before.

    >>> step = {"merge": {"base": "fixtures/base", "adapters": ["fixtures/lora"], "weights": [0.5]}}
    >>> changed = lambda path: len(adaptertool.diff(path, "fixtures/base").tensors)
    >>> adaptertool.apply_sweep(step, sweep={"weights.0": [0, 1]}, score=changed).best[0].at
    {'weights.0': '1'}
    """
    how = How(force=force, clean=clean, threads=threads, scratch=path_text(scratch), quiet=True, prints=False)
    wishes = {"keep": keep, "target": target, "reference": reference, "minimise": minimise}
    asked = asked_for(opened(recipe, {}), path_text(out), (sweep, search, score), wishes, how, results)
    return planned(asked) if dry_run else swept(asked, progress or (lambda _: None), lambda _: None, lambda: None)


def asked_for(
    recipe: object,
    out: str | None,
    search: tuple[Sweep, str, Score],
    wishes: Mapping[str, Any],
    how: How,
    results: PathLike | None,
) -> Asked:
    """All that is asked, checked before a byte is read. Raises UsageError and what planning raises."""
    if not isinstance(recipe, Recipe):
        raise UsageError("a sweep is over a recipe; a manifest is made again as it is")
    sweep, way, score = search
    if way not in SEARCHES:
        raise UsageError(f"{argument('search')} is {' or '.join(SEARCHES)}, not {way!r}")
    run = Run(recipe, out, how)
    if run.last is None:
        raise UsageError("a sweep scores what a recipe makes, and this one has checks alone")
    for step in recipe.steps:
        if field := next((name for name in _FOREIGN if step.values.get(name) not in (None, False)), None):
            raise InputError(f"{step.places[field]}: `{field}` is for one OUT, and not for a sweep: leave it out there")
    axes = axes_of(recipe, sweep)
    if way == GRID:
        require_few(axes)
    settings = _settings(wishes, target=run.target)
    place = None if results is None else as_local(results, "the folder of results")
    if settings.keep == BEST and run.target is not None:
        publish.require_local(Path(run.target))
        place = place or Path(run.target).with_name(f"{Path(run.target).name}-scores")
    asked = Asked(
        recipe=recipe, out=out, axes=axes, search=way, scorer=scorer_of(score), wishes=settings, how=how, results=place
    )
    _plan_each(asked)
    return asked


def _settings(wishes: Mapping[str, Any], target: str | None) -> ScoreSettings:
    """Raises UsageError."""
    keep = wishes["keep"] or (BEST if target is not None else NONE)
    if keep == ALL:
        raise UsageError(f"a sweep keeps the best, as OUT, or none: {argument('keep')} is {BEST} or {NONE}")
    return ScoreSettings.of(**{**wishes, "keep": keep}, published=target is not None)


def _plan_each(asked: Asked) -> None:
    """Refuse values that a command refuses, each beside what the recipe itself has in the other places. Raises what
    planning raises."""
    start = start_of(asked.axes)
    for place, axis in enumerate(asked.axes):
        ends = {min(axis.values, key=float), max(axis.values, key=float)}
        for value in axis.values:
            run = asked.run((*start[:place], value, *start[place + 1 :]), asked.out or "-", apart=True)
            try:
                run.require_sound()
                if len(axis.values) <= _MOST_PLANNED or value in ends:
                    plan_all(run, quiet=True)
            except AdapterToolError as error:
                raise type(error)(f"{shown(axis.name)} = {value}: {error.on_command_line}") from error


def planned(asked: Asked, *, steps: bool = True) -> SweepReport:
    """What a sweep would do: its points, as far as they are known, with the scores that are there already, and, with
    `steps`, the plan of the first. Raises as the sweep would for scores of another one."""
    start = start_of(asked.axes)
    points: Sequence[Point] = [*grid([axis.values for axis in asked.axes])] if asked.search == GRID else [start]
    steps_planned: tuple[StepReport, ...] = ()
    sweeping = Sweeping(asked, key := asked.key, lambda _: None, order=dict.fromkeys(points))
    place, known = asked.results, asked.scorer.lasting and not asked.how.force
    if place is not None and known and (earlier := published_scores(place, key)) is not None:
        sweeping.take(earlier, place / SCORES)
        _require_asked_for(asked, sweeping, place)
    if steps:
        run = asked.run(points[0], asked.out, apart=False)
        ours = asked.target is not None and fingerprint(asked.target) in sweeping.made.values()
        run.how = dataclasses.replace(
            asked.how, force=asked.how.force or ours
        )  # the run replaces it without being told
        plan_all(run, quiet=run.target is None or asked.wishes.keep == NONE)
        steps_planned = tuple(run.done)
    found = sweeping.report(())
    return dataclasses.replace(found, ok=True, dry_run=True, planned=steps_planned, out=None, results=None)


def swept(
    asked: Asked, progress: Callable[[SweepPoint], None], note: Callable[[str], None], before: Callable[[], None]
) -> SweepReport:
    """Run a sweep. note: told what is known before the first score; before: called just before the results are
    published. Raises AdapterToolError."""
    key, force = asked.key, asked.how.force
    sweeping, earlier, more = Sweeping(asked, key, progress), None, list[str]()
    notes = without_page(PAGE) if asked.results is not None else ()
    place = asked.results or Path(f"sweep-{key}")
    _require_out(asked)
    if asked.results is not None:
        earlier = published_scores(place, key) if asked.scorer.lasting and not force else None
        _require_place(asked, place, force=force or earlier is not None)
    with Staging(place, key) as stage:
        bench, others = Bench(asked, stage), Leftovers(place, stage.folder, clean=asked.how.clean)
        for text in others.at_start():
            note(text)
        if force or not asked.scorer.lasting:
            bench.forget()
        if earlier is not None:
            sweeping.take(earlier, place / SCORES)
            _require_asked_for(asked, sweeping, place)
        bench.take_notes(sweeping.take)
        ours = bench.require_free(start_of(asked.axes), sweeping.made.values())
        sweeping.search(bench)
        report, best = sweeping.report(notes), sweeping.best()
        if asked.key != key:
            raise InputError("an input of the recipe changed while its points were scored; run again")
        if best is not None and asked.target is not None:
            bench.make_best(best, sweeping.made.get(best), ours=ours)
        if report.results is not None and (earlier is None or json.loads(to_json(report)) != earlier):
            before()
            bench.publish(report, force=force or earlier is not None)
        elif report.results is None and asked.scorer.lasting and sweeping.known and not report.ok and not stage.alone:
            stage.stays = True
            hint = f"the same command goes on from there; `adaptertool clean {place}` removes it"
            more.append(f"the scores so far are kept in {stage.folder}: {hint}")
        more += [*stage.notes, *others.at_end()]
    return dataclasses.replace(report, notes=(*report.notes, *more))


def _inputs(asked: Asked) -> list[Path]:
    paths = [Path(text) for step in asked.recipe.steps for _, text in step.paths() if "${" not in text]
    own = {str(step.values.get(OUT)) for step in asked.recipe.steps}
    return [asked.recipe.folder / path for path in paths if store_of(path) is LOCAL and str(path) not in own]


def _require_out(asked: Asked) -> None:
    """Refuse an OUT that cannot be: what is there without --force is looked at once it is known what is ours."""
    out = asked.target
    if out is not None and (asked.how.force or not os.path.lexists(out)):
        publish.check_target(out, _inputs(asked), as_file=out.is_file(), force=True)


def _require_place(asked: Asked, place: Path, *, force: bool) -> None:
    """Refuse a place for the results that is taken, or in the way of others. Raises UsageError and OutputError."""
    publish.check_target(place, _inputs(asked), as_file=False, force=force)
    out = asked.target
    if out is not None and (out.resolve() == place.resolve() or out.resolve() in place.resolve().parents):
        raise UsageError(f"the results cannot lie in OUT, {out}: choose another folder for them")
    if out is not None and place.resolve() in out.resolve().parents:
        raise UsageError(f"OUT {out} cannot lie among the results in {place}: choose another folder for them")


def _require_asked_for(asked: Asked, sweeping: Sweeping, place: Path) -> None:
    """Raise UsageError where points would be lost that are not asked for now."""
    values = [{*axis.values, start} for axis, start in zip(asked.axes, start_of(asked.axes), strict=True)]
    for point in sweeping.known:
        if not all(text in own for text, own in zip(point, values, strict=True)):
            at = ", ".join(f"{name} {text}" for name, text in sweeping.point(point).at.items())
            raise UsageError(
                f"{place} has {at} too, which is not asked for now; choose another folder for the results, or --force"
            )
