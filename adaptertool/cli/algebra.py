"""`sum`, `truncate` and `extract`: what makes adapters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from adaptertool.cli import pages
from adaptertool.cli.bar import bar
from adaptertool.cli.boundary import ignore_signals
from adaptertool.cli.options import (
    CLEAN,
    DEBUG,
    EXPERT_LAYOUT,
    FORCE,
    HTML,
    JSON,
    LEAVE_OUT,
    QUIET,
    RENAME,
    THREADS,
    tell,
    with_options,
)
from adaptertool.cli.settings import OneForAll, method_option, setting_options
from adaptertool.cli.weights import WEIGHT
from adaptertool.methods import ON_FACTORS
from adaptertool.render.adapters import convert_text, extract_text, sum_text, truncate_text
from adaptertool.reports.adapters import AdapterReport
from adaptertool.tasks import convert as convert_task
from adaptertool.tasks import extract as extract_task
from adaptertool.tasks import truncate as truncate_task
from adaptertool.tasks.convert import FORMATS
from adaptertool.tasks.extract import DTYPES
from adaptertool.tasks.sum import sum_adapters
from adaptertool.tasks.sum_methods import METHODS, SETTINGS

DEVICE = click.option(
    "--device", default="cpu", metavar="DEVICE", help="cpu, or one of torch, in float64: cuda, cuda:1."
)
Report = TypeVar("Report", bound=AdapterReport)
RANK = click.option("--rank", type=click.IntRange(min=1), metavar="N", help="At most this rank.")
TO = click.option("--to", type=click.Choice(FORMATS), help="Write another format, as `adaptertool convert` does.")
EXTRACT_TO = click.option("--to", type=click.Choice(FORMATS), default=FORMATS[0], help="The format to write.")
MAX_ERROR = click.option(
    "--max-error", metavar="NUMBER", help="The smallest rank with at most this error, relative in Frobenius norm."
)
ENERGY = click.option(
    "--energy", metavar="SHARE", help="The smallest rank that keeps this share of the squared spectrum, such as 0.99."
)
makes_adapter = with_options(
    click.option("-o", "--out", required=True, type=click.Path(), help="Where to write."),
    FORCE,
    CLEAN,
    click.option("--dry-run", is_flag=True, help="Compute the report and write nothing."),
    THREADS,
    JSON,
    QUIET,
    click.option("-v", "--verbose", is_flag=True, help="Every layer, or tensor, on a line of its own."),
    DEBUG,
)


@click.command("sum", cls=OneForAll)
@click.argument("adapters", nargs=-1, required=True, type=click.Path(), metavar="ADAPTER...")
@WEIGHT
@method_option(METHODS, "By PEFT's names:", METHODS[0])
@click.option("--base", type=click.Path(), help="Needed for all but LoRA, cut at --rank or --energy; tells names.")
@with_options(*setting_options(SETTINGS, ON_FACTORS, in_sum=True))
@with_options(RANK, ENERGY, TO, LEAVE_OUT, EXPERT_LAYOUT, RENAME)
@makes_adapter
def sum_command(adapters: tuple[str, ...], weights: tuple[str, ...], verbose: bool, **options: Any) -> None:
    """Add ADAPTERs into one: Σ w·(alpha/r)·B·A, exact by concatenation; no base is needed.

    A negative weight subtracts. The rank of a layer is the sum of its ranks; --rank or --energy cut it down after that,
    by the factored SVD.

    Other methods: svd cuts the sum to the largest rank. linear, ties, dare_linear, dare_ties and magnitude_prune
    combine A and B apart, as PEFT does: that has cross terms, and is not the sum. With _svd at their end they combine
    the changes.
    """

    _run(sum_adapters, sum_text, [adapters], weights=weights or None, verbose=verbose, **options)


@click.command()
@click.argument("adapter", type=click.Path())
@with_options(
    RANK,
    ENERGY,
    MAX_ERROR,
    click.option(
        "--ratio", metavar="NUMBER", help="Singular values of at least the largest over this; --rank may limit them."
    ),
    TO,
    click.option("--balance", is_flag=True, help="Share the singular values between A and B."),
    click.option("--base", type=click.Path(), help="Tell how far the merged weights move: of DoRA its norms count."),
    RENAME,
    LEAVE_OUT,
    EXPERT_LAYOUT,
    DEVICE,
    HTML,
)
@makes_adapter
def truncate(adapter: str, verbose: bool, html: str | None, **options: Any) -> None:
    """Reduce the rank of ADAPTER: of each layer the best approximation of B·A, by QR and a small SVD.

    One of --rank, --energy, --max-error and --ratio is needed. Layers that lose nothing keep their bytes.
    """
    pages.require(html)
    report = _run(
        truncate_task.truncate, truncate_text, [adapter], verbose=verbose, spectra=html is not None, **options
    )
    pages.save(html, "truncate", report, [adapter, report.base])


@click.command()
@click.argument("base", type=click.Path())
@click.argument("tuned", type=click.Path())
@with_options(
    RANK,
    ENERGY,
    MAX_ERROR,
    EXTRACT_TO,
    click.option("--dtype", type=click.Choice(list(DTYPES)), default="f32", help="Of the factors; f32 unless given."),
    click.option(
        "--leave-out", multiple=True, metavar="REGEX", help="Lose what changed in tensors of such names; it is said."
    ),
    click.option("--rename", "renames", multiple=True, metavar="REGEX=>NEW", help="Change names of TUNED."),
    DEVICE,
)
@makes_adapter
def extract(base: str, tuned: str, verbose: bool, **options: Any) -> None:
    """Make an adapter of what a fine-tuned checkpoint, TUNED, has changed in BASE.

    One of --rank, --energy and --max-error is needed. Linear layers become factors, by the SVD of T - W; norms,
    biases, embeddings and the like are saved whole. What was not changed is not in it.
    """

    _run(extract_task.extract, extract_text, [base, tuned], verbose=verbose, **options)


@click.command()
@click.argument("adapter", type=click.Path())
@with_options(
    click.option("--to", required=True, type=click.Choice(FORMATS), help="The format to write."),
    click.option("--base", type=click.Path(), help="What ADAPTER is for: tells what its layers are called."),
    click.option("--part", "parts", multiple=True, metavar="NAME", help="Of a pipeline, as unet: no others."),
    click.option("--prefix", metavar="NAME", help="What names begin with, instead of what is usual, as lora_unet_."),
    RENAME,
    LEAVE_OUT,
    EXPERT_LAYOUT,
)
@makes_adapter
def convert(adapter: str, verbose: bool, **options: Any) -> None:
    """Write ADAPTER in another format: PEFT's, kohya's, diffusers', ComfyUI's, ...

    Factors keep their bits, and scales are said as they are, where the format can; what is rounded is counted, and what
    it cannot hold is refused. Names as kohya's tools have them only a base can tell (--base).
    """

    _run(convert_task.convert, convert_text, [adapter], verbose=verbose, **options)


def _run(
    task: Callable[..., Report],
    text: Callable[..., str],
    sources: Sequence[Any],
    *,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    out: str,
    **options: Any,
) -> Report:
    with bar(task.__name__, None, quiet=quiet) as progress:
        report = task(*sources, out, progress=progress, before_publish=ignore_signals, **options)
    tell(report, lambda: text(report, one_by_one=verbose), as_json=as_json, quiet=quiet)
    return report
