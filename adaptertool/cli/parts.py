"""`plan`, `run` and `finish`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from adaptertool.cli import merge as merge_file
from adaptertool.cli import wise as wise_file
from adaptertool.cli.bar import bar
from adaptertool.cli.boundary import ignore_signals
from adaptertool.cli.options import DEBUG, JSON, QUIET, THREADS, tell, with_options
from adaptertool.render.parts import part_text, parts_text, published_text
from adaptertool.render.run import run_text
from adaptertool.reports.parts import PartsReport, PublishedReport
from adaptertool.tasks import parts as task

# Options of `merge` and `wise` that belong to a run on one machine
_ALONE = {
    *("dry_run", "verbose", "html", "threads", "verify", "scratch"),
    *("score", "keep", "target", "reference", "minimise", "dask"),
}
_WHOLE = ("sum", "truncate", "extract", "convert")  # commands that make one file
_ONE_MACHINE = ("mergekit", "layers", "apply")
_LONG = 20  # digits: more are no number of parts, and Python reads no more than some thousand
_OUT = click.Option(["-o", "--out"], required=True, type=click.Path(), help="Where `finish` publishes.")
_PLAN = click.Option(["--plan", "file"], required=True, type=click.Path(), metavar="FILE", help="Where to write it.")
_VERIFY = click.option("--verify", is_flag=True, help="Read back what was written, and judge it, before it counts.")
_how = with_options(_VERIFY, THREADS, JSON, QUIET, DEBUG)


class _Plan(click.Group):
    """It says why other commands are not planned."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises click.UsageError for what makes one file, or is planned from a file of another tool."""
        if args and args[0] in _WHOLE:
            raise click.UsageError(
                f"`{args[0]}` makes an adapter, which is one file, on one machine; in parts are made checkpoints, by "
                "`plan merge` and `plan wise`",
                ctx,
            )
        if args and args[0] in _ONE_MACHINE:
            raise click.UsageError(
                f"`{args[0]}` is made by one machine; a run that was killed goes on with the same command. In parts "
                "are made checkpoints, by `plan merge` (its --method has the methods of mergekit) and `plan wise`",
                ctx,
            )
        return super().resolve_command(ctx, args)


@click.group(cls=_Plan)
def plan() -> None:
    """Write down a merge or an interpolation that is to be made in parts, on any number of machines.

    Each of them calls `run`, and when all have, one calls `finish`. FILE holds the call, with absolute paths, and a key
    of its inputs: it is good in any directory, and on each machine that sees the same files at the same place.
    """


def _written(command: click.Command, write: Callable[..., PartsReport], said: str) -> click.Command:
    """The command of the same options that only plans."""

    def call(as_json: bool, quiet: bool, **options: Any) -> None:
        report = write(options)
        tell(report, lambda: parts_text(report), as_json=as_json, quiet=quiet)

    params = [_OUT if one.name == "out" else one for one in command.params if one.name not in _ALONE]
    return click.Command(command.name, params=[*params, _PLAN], callback=call, help=said)


def _merge(options: dict[str, Any]) -> PartsReport:
    base, adapters, out, file = (options.pop(name) for name in ("base", "adapters", "out", "file"))
    settings = merge_file.given_options(options)
    return task.plan_merge(base, adapters, out, file, **{**options, **settings, "weights": options["weights"] or None})


def _wise(options: dict[str, Any]) -> PartsReport:
    base, tuned, alpha, out, file = (options.pop(name) for name in ("base", "tuned", "alpha", "out", "file"))
    return task.plan_wise(base, tuned, out, alpha, file, **options)


plan.add_command(_written(merge_file.merge, _merge, "Plan what `adaptertool merge` with these options would make."))
plan.add_command(_written(wise_file.wise, _wise, "Plan what `adaptertool wise` with these options would make."))


def _part_of(context: click.Context, param: click.Parameter, value: str) -> tuple[int, int]:
    """I/N, as numbers."""
    first, slash, second = value.partition("/")
    if not (slash and all(one.isascii() and one.isdigit() and len(one) < _LONG for one in (first, second))):
        raise click.BadParameter(f"{value!r} is not I/N, such as 0/16: part 0 of 16", context, param)
    return int(first), int(second)


@click.command()
@click.argument("file", type=click.Path())
@click.option("--part", callback=_part_of, required=True, metavar="I/N", help="Which part of how many, counted from 0.")
@_how
def run(file: str, part: tuple[int, int], as_json: bool, quiet: bool, **how: Any) -> None:
    """Make one part of a plan: those of its shards that are not made yet.

    A part may be run again, or twice at once, and in other numbers: --part 0/1 makes whatever is missing. Write N out:
    what a scheduler counts may be the tasks of this submission only. Where OUT is published already, as FILE makes it,
    there is nothing to do, and that is no error.
    """
    with bar(f"part {part[0]}/{part[1]}", None, quiet=quiet) as progress:
        report = task.run_part(file, *part, progress=progress, **how)
    tell(report, lambda: part_text(report), as_json=as_json, quiet=quiet)


@click.command()
@click.argument("file", type=click.Path())
@click.option("--check", is_flag=True, help="Read all shards, and compare their hashes with those of their makers.")
@_how
def finish(file: str, as_json: bool, quiet: bool, **how: Any) -> None:
    """Publish what the parts of a plan have made. Where shards are missing it names them, and exits with 4.

    Of each shard the size is compared with that which its maker noted. --check reads them and compares their hashes;
    --verify computes all of it again. Where OUT is published already, as FILE makes it, there is nothing to do.
    """
    with bar("finish", None, quiet=quiet) as progress:
        report = task.finish(file, progress=progress, before_publish=ignore_signals, **how)
    said = published_text(report) if isinstance(report, PublishedReport) else run_text(report)
    tell(report, lambda: said, as_json=as_json, quiet=quiet)
