"""`apply`."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from adaptertool.arguments import PathLike, as_path
from adaptertool.cli.bar import bar
from adaptertool.cli.fields import commands
from adaptertool.cli.making import make_all, plan_all
from adaptertool.cli.options import CLEAN, DEBUG, FORCE, JSON, QUIET, THREADS, failed, tell, with_options
from adaptertool.cli.scores import SCORES
from adaptertool.cli.steps import How, Run
from adaptertool.cli.table import load
from adaptertool.errors import InputError, OutputError, StorageError, UsageError
from adaptertool.files import LOCAL, store_of
from adaptertool.files.checkpoint import MANIFEST, load_manifest
from adaptertool.files.jsonfile import load_json
from adaptertool.files.publish import check_target
from adaptertool.files.reader import exists, is_folder
from adaptertool.files.yamlfile import load_yaml
from adaptertool.mergekit_yaml.config import is_mergekit
from adaptertool.recipes.given import node_of
from adaptertool.recipes.read import Recipe, load_recipe, read_recipe
from adaptertool.recipes.replay import Replay, check_inputs, differing, is_manifest, replay_of
from adaptertool.render.apply import apply_text
from adaptertool.render.machine import Report, to_json
from adaptertool.reports.apply import ApplyReport
from adaptertool.reports.sweep import GRID, SEARCHES

RecipeLike = PathLike | Mapping[str, Any]


def apply(
    recipe: RecipeLike,
    out: PathLike | None = None,
    *,
    inputs: Mapping[str, PathLike] | None = None,
    check: bool = False,
    dry_run: bool = False,
    force: bool = False,
    clean: bool = False,
    threads: int | None = None,
    scratch: PathLike | None = None,
) -> ApplyReport:
    """Run the steps of a recipe, or make again what a manifest was written for.

    recipe:  the path of a YAML or JSON file, or the same as a dict; or of an `adaptertool.manifest.json`, or of a
             configuration of mergekit
    out:     where the last step that writes does so, in the place of what the recipe says
    inputs:  of a manifest, where inputs are that are elsewhere now: {"base": path, "adapters.0": path}
    check:   read the recipe, and run nothing
    dry_run: plan all steps, and write nothing; as the option of each command says
    force, clean, threads, scratch: as for `merge`, of every step

    Each step is the command that it names, with its bytes; so a recipe can do what the command line can, and nothing
    else: of what is run as a program that is `score` of `wise` alone. A step without `out` is temporary. A run that was
    killed goes on where it was. Raises AdapterToolError; `out` is then as it was before.

    >>> step = {"merge": {"base": "fixtures/base", "adapters": ["fixtures/lora"], "weights": [0.5]}}
    >>> adaptertool.apply(step, "merged").ok
    True
    """
    how = How(force=force, clean=clean, threads=threads, scratch=path_text(scratch), quiet=True, prints=False)
    found = {name: os.fspath(path) for name, path in (inputs or {}).items()}
    return _apply(recipe, path_text(out), found, how, check=check, dry_run=dry_run)


def path_text(path: PathLike | None) -> str | None:
    return None if path is None else os.fspath(path)


def opened(recipe: RecipeLike, inputs: Mapping[str, str]) -> Recipe | Replay:
    """The recipe, or what a manifest makes of one. Raises InputError, and UsageError for places of inputs where there
    is no manifest."""
    if not isinstance(recipe, Mapping):
        path = as_path(recipe, "RECIPE")
        if is_folder(path) and exists(path / MANIFEST):
            raise InputError(f"{path} is a folder; what it was made by stands in {path / MANIFEST}")
        if path.name == MANIFEST or (path.suffix == ".json" and is_manifest(load_json(path))):
            return replay_of(load_json(path), path, commands(), inputs)
    if inputs:
        raise UsageError("--input is for manifests; a recipe names its inputs itself")
    if isinstance(recipe, Mapping):
        return read_recipe(node_of(recipe), "recipe", Path(), commands())
    if any(map(is_mergekit, load_yaml(path))):
        step = {"mergekit": {"config": os.fspath(path)}}
        return read_recipe(node_of(step), os.fspath(path), Path(), commands())
    return load_recipe(path, commands())


def _apply(
    recipe: RecipeLike, out: str | None, inputs: Mapping[str, str], how: How, *, check: bool, dry_run: bool
) -> ApplyReport:
    began, found = time.perf_counter(), opened(recipe, inputs)
    replay = found if isinstance(found, Replay) else None
    run = Run(found.recipe if isinstance(found, Replay) else found, out, how)
    if replay is not None and out is None and not check:
        raise UsageError(f"-o is missing: where what {run.recipe.file} tells of is to be made again")
    if not (check and replay is not None and out is None):
        run.require_sound()
    if replay is not None:
        with bar("inputs", None, quiet=how.quiet) as progress:
            check_inputs(replay, progress)
    if not check:
        if dry_run:
            plan_all(run, quiet=False)
        else:
            make_all(run)
    other: tuple[str, ...] | None = None
    if replay is not None and not check and not dry_run and all(one.ok for one in run.done):
        other = _compared(replay, Path(run.target or ""))
    return ApplyReport(
        ok=all(one.ok for one in run.done) and not other,
        recipe=run.recipe.file,
        out=run.target,
        steps=tuple(run.done),
        same=None if other is None else not other,
        differing=other or (),
        seconds=time.perf_counter() - began,
        dry_run=dry_run or check,
        notes=() if replay is None else replay.notes,
    )


def _compared(replay: Replay, out: Path) -> tuple[str, ...] | None:
    """What differs from the manifest; None where OUT has none."""
    if store_of(out) is LOCAL and (out / MANIFEST).is_file():
        return differing(replay, load_manifest(out))
    return None


def _require_report(file: str | None, *, force: bool) -> None:
    """Refuse a FILE for the report that is taken. Raises OutputError, UsageError and StorageError."""
    if file is not None:
        path = as_path(file, "the file for the report")
        if path.is_file() and not force:
            raise OutputError(f"{path} exists; choose another file for the report, or replace it with --force")
        if not path.is_file():
            check_target(path, (), as_file=True, force=False)


@click.command("apply")
@click.argument("recipe", type=click.Path(), metavar="RECIPE")
@click.option("-o", "--out", type=click.Path(), help="Where the last step writes, in the place of what RECIPE says.")
@with_options(
    click.option(
        "--sweep",
        "sweeps",
        multiple=True,
        metavar="PLACE=VALUES",
        help="Numbers to try in RECIPE: weights.0=0:1:0.25, or density=0.3,0.5. With --score.",
    ),
    click.option(
        "--search",
        type=click.Choice(SEARCHES),
        help="Every combination (grid, as where it is not given), or one number at a time (coordinate).",
    ),
    SCORES,
    click.option("--results", type=click.Path(), metavar="DIR", help="Where the scores go (default: OUT-scores)."),
    click.option("--input", "inputs", multiple=True, metavar="NAME=PATH", help="Of a manifest: where an input is now."),
    click.option("--check", is_flag=True, help="Read RECIPE, or compare the inputs of a manifest, and run nothing."),
    click.option("--report", type=click.Path(), metavar="FILE", help="Also write the report of all steps, as JSON."),
    click.option("--scratch", type=click.Path(), metavar="DIR", help="As for merge."),
    FORCE,
    CLEAN,
    click.option("--dry-run", is_flag=True, help="Plan every step, before there is a byte of data; write nothing."),
    THREADS,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="As for each command."),
    DEBUG,
)
def apply_command(
    recipe: str,
    out: str | None,
    sweeps: tuple[str, ...],
    search: str | None,
    score: str | None,
    keep: str | None,
    target: str | None,
    reference: str | None,
    minimise: bool,
    results: str | None,
    inputs: tuple[str, ...],
    check: bool,
    report: str | None,
    scratch: str | None,
    force: bool,
    clean: bool,
    dry_run: bool,
    threads: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Run the steps of RECIPE: merges, sums, checks and all other commands, as YAML under version control.

    RECIPE is YAML or JSON: a command with its arguments and options, or `steps`, a list of them, where a later one
    takes what an earlier one makes. Paths are relative to it. Or it is an adaptertool.manifest.json: the same is made
    again, to the same bytes, or what has changed is said (exit code 3 for inputs, 1 for the output). Or a configuration
    of mergekit.

    With --sweep the recipe is run with other numbers, CMD of --score is run on what each makes, and OUT is the best.
    \f
    Raises UsageError where options of a sweep are given without one.
    """
    places = dict(_place(text) for text in inputs)
    how = How(
        force=force,
        clean=clean,
        threads=threads,
        scratch=scratch,
        quiet=quiet,
        verbose=verbose,
        prints=not as_json,
    )
    _require_report(report, force=force)
    wishes = {"keep": keep, "target": target, "reference": reference, "minimise": minimise}
    if sweeps and score is not None:
        if places:
            raise UsageError("--input is for manifests, which are made again as they are, without --sweep")
        write = None if report is None else functools.partial(_write, as_path(report, "the file for the report"))
        more = {"results": results, "check": check, "dry_run": dry_run, "write": write, "as_json": as_json}
        sweep_and_tell = load("sweep_told", "sweep_and_tell")
        code: int = sweep_and_tell(recipe, out, (sweeps, search or GRID, score), wishes, how, **more)
        return code
    if sweeps:
        raise UsageError("--sweep makes several, of which --score 'CMD {}' says which is best: give it too")
    if score is not None or search is not None or results is not None or any(wishes.values()):
        raise UsageError("--score, --search, --results, --keep, --target, --reference and --minimise are for --sweep")
    done = _apply(recipe, out, places, how, check=check, dry_run=dry_run)
    if report is not None:
        _write(as_path(report, "the file for the report"), done)
    tell(done, lambda: apply_text(done), as_json=as_json, quiet=quiet)
    return 0 if done.ok else failed(apply_text(done).splitlines()[0], quiet=quiet)


def _place(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise UsageError(f"--input {text}: it is NAME=PATH, such as base=models/base")
    return name, path


def _write(path: Path, report: Report) -> None:
    try:
        path.write_text(to_json(report, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"writing {path} failed: {error.strerror}") from error
