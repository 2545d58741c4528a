"""`inspect`: what an adapter or a checkpoint is, before anything is done with it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptertool.algebra.kronecker import as_layer
from adaptertool.architectures.decoded_beside import as_numbers
from adaptertool.arguments import PathLike, as_input
from adaptertool.engine.resources import thread_count
from adaptertool.errors import InputError, UsageError, argument
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.hub import called
from adaptertool.files.parsed import Parsed
from adaptertool.formats import is_adapter, read_alone
from adaptertool.formats.checkpoints import open_checkpoint, require_merged
from adaptertool.inspection.capacity import BITS_PER_EPISODE, bits_of_tokens
from adaptertool.inspection.checkpoints import checkpoint_facts
from adaptertool.inspection.coverage import places_of
from adaptertool.inspection.described import Described, describe
from adaptertool.inspection.facts import adapter_facts, modules_of
from adaptertool.inspection.findings import findings, rules
from adaptertool.inspection.spectra import measure
from adaptertool.kinds import kind_of
from adaptertool.planning.merge import plan_merge
from adaptertool.planning.wise import plan_wise
from adaptertool.reports.inspect import InspectedModule, InspectReport
from adaptertool.resolution.renaming import Renames, renaming
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.choices import RankChoice
from adaptertool.spec.plan import Plan
from adaptertool.spec.tensors import Stamp

if TYPE_CHECKING:  # numpy is loaded only where tensors are touched
    from adaptertool.inspection.spectra import Measured

# What of a spectrum is needed: as for `truncate --energy` and `--max-error`.
ENERGY, MAX_ERROR = RankChoice(energy=Decimal("0.99")), RankChoice(max_error=Decimal("0.01"))


def inspect(
    path: PathLike,
    base: PathLike | None = None,
    *,
    tokens: float | None = None,
    nats_per_token: float | None = None,
    episodes: float | None = None,
    spectra: bool = True,
    renames: Sequence[str] = (),
    expert_layout: str | None = None,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> InspectReport:
    """Describe the adapter or checkpoint at `path`; nothing is written.

    An adapter that a merge refuses is described too, with what the merge says in `refusal`.

    base:     the checkpoint that it is for: `fits` then tells whether a merge (of a checkpoint: `wise`) would run, made
              from headers alone; norms are related to its weights, which are read for that
    tokens, nats_per_token: of the training data, nats being the mean log loss in the first epoch; their product is the
              description length that the capacity is held against
    episodes: of reinforcement learning, each of about 1 bit
    spectra:  compute the singular values of each low-rank change scale·B·A, by QR of both factors and the SVD of the
              core: entropy rank exp(−Σ p·ln p) with p = σ/Σσ, stable rank Σσ²/max σ²; and norms of base weights
    renames, expert_layout: as for `merge`
    threads:  the available cores, up to 8, where None; the result does not depend on it
    progress: called with the number of bytes of factors that were just read, from several threads

    Sources of the rules: adaptertool.inspection.capacity. Raises UsageError for numbers that make no sense, InputError
    for files that are missing or malformed.

    >>> adaptertool.inspect("fixtures/lora").adapter.peft_type
    'LORA'
    """
    start, needed = time.perf_counter(), _needed(tokens, nats_per_token, episodes)
    target, count = as_input(path, "PATH"), thread_count(threads)
    beside = None if base is None else as_input(base, "BASE")
    checkpoint = None if beside is None else as_numbers(open_checkpoint(beside))
    if is_adapter(target):
        told = progress or (lambda _: None)
        has = Renames(renames).holder(checkpoint) if checkpoint else lambda _: True
        described = describe(target, has, checkpoint, expert_layout)
        found = _adapter(described, checkpoint, needed, renames, count if spectra else 0, told)
    elif needed is None and not renames and expert_layout is None:
        found = _checkpoint(target, checkpoint)
    else:
        raise UsageError(f"{target} is no adapter; tokens, episodes, renamings and layouts are for adapters")
    fits = None if base is None else found["refusal"] is None
    seconds, named = time.perf_counter() - start, None if beside is None else called(beside)
    return InspectReport(path=called(target), base=named, fits=fits, threads=count, seconds=seconds, **found)


def _needed(tokens: float | None, nats_per_token: float | None, episodes: float | None) -> float | None:
    """Bits of the training data."""
    for name, number in (("tokens", tokens), ("nats_per_token", nats_per_token), ("episodes", episodes)):
        if number is not None and not (math.isfinite(number) and number > 0):
            raise UsageError(f"{argument(name)} must be a number above 0, not {number}")
    if (tokens is None) != (nats_per_token is None):
        raise UsageError(
            f"{argument('tokens')} and {argument('nats_per_token')} go together: their product is the description "
            "length of the data"
        )
    if tokens is not None and episodes is not None:
        raise UsageError(
            f"give {argument('tokens')} (supervised) or {argument('episodes')} (reinforcement learning), not both"
        )
    if tokens is not None and nats_per_token is not None:
        return bits_of_tokens(tokens, nats_per_token)
    return None if episodes is None else BITS_PER_EPISODE * episodes


def _checkpoint(path: Path, base: Checkpoint | None) -> dict[str, Any]:
    opened, refusal = open_checkpoint(path), None
    if base is not None:
        try:
            plan_wise(require_merged(base), require_merged(as_numbers(opened)), [Decimal("0.5")])
        except InputError as error:
            refusal = str(error)
    factors = [name for name in opened.tensors if ".lora_" in name]
    remarks = ["its tensors are those of an adapter: give the directory with its config"] if factors else []
    return {
        "what": "checkpoint",
        "refusal": refusal,
        "adapter": None,
        "checkpoint": checkpoint_facts(opened),
        "findings": tuple(remarks),
        "rules": (),
        "notes": opened.notes,
    }


def _adapter(
    described: Described,
    base: Checkpoint | None,
    needed: float | None,
    renames: Sequence[str],
    threads: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    refusal, plan = described.refusal, None
    if base is not None and described.adapter is not None:
        try:
            with renaming(renames) as own:
                adapter = own.adapter(described.adapter)
            plan = plan_merge(open_base(base), [adapter], [1.0])
        except InputError as error:
            refusal = refusal or str(error)
    measured = _measured(described, base, plan, threads, progress) if threads else None
    modules = modules_of(described, measured)
    facts = adapter_facts(described, modules, base, plan, needed)
    refusal = refusal or next((module.problem for module in modules if module.problem), None)
    return {
        "what": "adapter",
        "refusal": refusal,
        "adapter": facts,
        "checkpoint": None,
        "findings": tuple(findings(str(described.files.path), facts, truncates=_truncates(described.files))),
        "rules": tuple(rules(facts, described.format.facts(described.fields))),
        "notes": (*(plan.notes if plan else described.adapter.notes if described.adapter else ()), *_said(modules)),
    }


def _truncates(files: Parsed) -> bool:
    """Whether `truncate` takes the adapter."""
    try:
        layered = read_alone(files)
    except InputError:
        return False
    return all(layer.unpaired is None or as_layer(layer) is not None for layer in layered.layers.values())


def _said(modules: Sequence[InspectedModule]) -> Iterator[str]:
    if any(module.spectrum and kind_of(module).norms for module in modules):
        yield "DoRA: spectra and |Δ| are those of scale·B·A alone, before the magnitudes set the norms of W + scale·B·A"


def _measured(
    described: Described, base: Checkpoint | None, plan: Plan | None, threads: int, progress: Callable[[int], None]
) -> list[Measured]:

    files: dict[Path, Stamp] = {described.header.path: described.header.stamp}
    files |= {header.path: header.stamp for header in (base.headers if base else ())}
    places = places_of(described.modules, plan) if plan else {}
    return measure(described.modules, places, files, (ENERGY, MAX_ERROR), threads, progress)
