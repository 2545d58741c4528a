"""`merge` and `wise`."""

from __future__ import annotations

from typing import Any

import click

from adaptertool.cli.options import execute, writes
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.tasks.merge import COMPOSITIONS, prepare_merge
from adaptertool.tasks.wise import prepare_wise


@click.command()
@click.argument("base", type=click.Path())
@click.argument("adapters", nargs=-1, required=True, type=click.Path(), metavar="ADAPTER...")
@click.option("-w", "--weight", "weights", multiple=True, help="Weight of an adapter; by order, one for each.")
@click.option(
    "--compose",
    type=click.Choice(COMPOSITIONS),
    default="sequential",
    help="Several adapters one after the other, or together as at inference (differs for DoRA).",
)
@click.option(
    "--method",
    type=click.Choice(sorted(METHOD_BY_NAME)),
    help="Combine the changes in another way; ADAPTERs may then be tuned checkpoints too.",
)
@click.option("--density", help="The share of each change that stays: ties, dare, magnitude_prune.")
@click.option("--seed", type=click.IntRange(min=0), help="Of what dare drops by chance.")
@writes
def merge(
    base: str,
    adapters: tuple[str, ...],
    weights: tuple[str, ...],
    compose: str,
    method: str | None,
    density: str | None,
    seed: int | None,
    renames: tuple[str, ...],
    precision: str,
    **options: Any,
) -> None:
    """Merge ADAPTERs into BASE: W + w·(alpha/r)·B·A, in order, rounded once.

    Saved modules and biases replace the base's (with a weight w: W + w·(T - W)).
    """
    plan = prepare_merge(
        base,
        adapters,
        weights or None,
        compose=compose,
        renames=renames,
        precision=precision,
        method=method,
        density=density,
        seed=seed,
    )
    execute(plan, **options)


@click.command()
@click.argument("base", type=click.Path())
@click.argument("tuned", type=click.Path())
@click.option("--alpha", required=True, help="A number, a list 0,0.3,1 or a sweep START:STOP:STEP.")
@click.option("--as-adapter", is_flag=True, help="Write an adapter that, merged into BASE, gives the same.")
@click.option(
    "--fisher",
    nargs=2,
    type=click.Path(),
    metavar="F0 F1",
    help="Weigh each element by these: checkpoints of Fisher information, of BASE and of TUNED.",
)
@writes
def wise(
    base: str,
    tuned: str,
    alpha: str,
    as_adapter: bool,
    fisher: tuple[str, str] | None,
    renames: tuple[str, ...],
    precision: str,
    **options: Any,
) -> None:
    """Interpolate BASE towards TUNED: W + alpha·(T - W), for one alpha or many (Wise-FT).

    TUNED is an adapter or a fine-tuned checkpoint. Several alphas are written to OUT/alpha-0.300 and so on,
    with one read of the base.
    """
    plan = prepare_wise(base, tuned, alpha, renames=renames, precision=precision, as_adapter=as_adapter, fisher=fisher)
    execute(plan, **options)
