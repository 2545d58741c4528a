"""`evaluate`."""

from __future__ import annotations

import click

from adaptertool import evaluation as task
from adaptertool.cli.options import (
    COMPOSE,
    DEBUG,
    EXPERT_LAYOUT,
    JSON,
    LEAVE_OUT,
    QUIET,
    RENAME,
    WEIGHT,
    failed,
    tell,
    with_options,
)
from adaptertool.cli.terminal import room
from adaptertool.evaluation.prompts import LOSSES
from adaptertool.render.evaluation import evaluation_text


@click.command()
@click.argument("base", type=click.Path())
@click.argument("adapters", nargs=-1, type=click.Path(), metavar="[ADAPTER]...")
@click.option("--merged", multiple=True, type=click.Path(), help="A merged or fine-tuned checkpoint; any number.")
@click.option("--prompts", required=True, type=click.Path(), help="JSONL: a prompt, or a fact to be known, a line.")
@WEIGHT
@COMPOSE
@click.option("--each", is_flag=True, help="Each ADAPTER is a model of its own, not all of them one.")
@click.option("--loss", type=click.Choice(LOSSES), help="Of the answers to facts; both unless given.")
@click.option(
    "--generate", type=click.IntRange(0, task.MAX_GENERATED), default=16, metavar="N", help="Tokens after each prompt."
)
@click.option("--device", default="cpu", metavar="DEVICE", help="cpu, cuda, cuda:1, mps.")
@click.option("--fail-above", metavar="KL", help="Exit code 1 where the mean KL is above it (nats per token).")
@with_options(RENAME, LEAVE_OUT, EXPERT_LAYOUT, JSON, QUIET, DEBUG)
def evaluate(
    base: str,
    adapters: tuple[str, ...],
    merged: tuple[str, ...],
    prompts: str,
    weights: tuple[str, ...],
    compose: str,
    each: bool,
    loss: str | None,
    generate: int,
    device: str,
    fail_above: str | None,
    renames: tuple[str, ...],
    leave_out: tuple[str, ...],
    expert_layout: str | None,
    as_json: bool,
    quiet: bool,
) -> int:
    """Run BASE with its ADAPTERs unmerged, and merged checkpoints, on prompts, and compare their logits and texts.

    Lines with "target_new" are facts to be known, as EasyEdit has them: also says how well each model knows them, in
    one table, answers of one token and of several apart. Needs the extra `model` (torch and transformers).
    """
    report = task.evaluate(
        base,
        adapters,
        prompts=prompts,
        merged=merged,
        weights=weights or None,
        compose=compose,
        renames=renames,
        leave_out=leave_out,
        expert_layout=expert_layout,
        each=each,
        loss=loss,
        generate=generate,
        device=device,
        fail_above=fail_above,
    )
    tell(report, lambda: evaluation_text(report, room()), as_json=as_json, quiet=quiet)
    if report.ok:
        return 0
    above = [
        f"{model.name} {model.drift.mean_kl:.2e}"
        for model in report.models
        if model.role != "base" and model.drift is not None and not model.drift.mean_kl <= float(fail_above or 0)
    ]
    return failed(f"evaluate {report.base}: KL per token is above {fail_above}: {', '.join(above)}", quiet=quiet)
