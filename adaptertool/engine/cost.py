"""A model of what a run costs, from the plan and a rate: bytes, seconds, requests. No weights are read.

    transfer = (bytes read + bytes written of the node that has most) / rate
    cpu      = (Σ bytes written · COPY + Σ elements computed · (EDIT + Σ rank · RANK)) / threads
    seconds  = planning + max(transfer, cpu) + finishing

Each node makes whole shards, dealt out by size as `run --part I/N` deals them. The constants for the processor are
measurements of this program (docs/measured.md, the tables that are named below); they fit those within a fifth, and
another processor may take half or twice as long.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from adaptertool.arithmetic.verbatim import verbatim
from adaptertool.engine.budget import bytes_to_read, bytes_to_write, predicted_memory
from adaptertool.errors import UsageError, argument
from adaptertool.kinds import kind_of
from adaptertool.planning.deal import deal
from adaptertool.reports.cost import CostReport
from adaptertool.spec.plan import Plan, Shard, Step

SOURCE = "measured on an AMD EPYC (docs/measured.md); others take half to twice as long"
# Seconds of the processor. "kinds_1b": 1.1 B in bf16, copied (attention only), rank 16, rank 128, five alphas
COPY = 1.13e-9  # for each byte that is written: read, hashed twice, written
EDIT = 3.6e-9  # for each element that is computed, beside that
RANK = 0.041e-9  # for each element and each rank
# "quantised": FP8 and INT4 decoded, decoded and merged, and merged into FP8 again
DECODE, DECODE_EDIT, KEEP = 10e-9, 20e-9, 55e-9
SHA256 = 0.77e-9  # for each byte that is read or written; "hashing_1b"
VERIFY = 1.9  # times what the merge itself takes; "verify_1b"
START, TENSOR = 0.4, 70e-6  # a process, and each tensor of its plan; "plans"

REQUEST = 32_000_000  # bytes of a request to an object store, as they are mostly cut
_MEASURED = frozenset({"lora", "dora", "full", "offset"})
_SMALL = 100_000  # elements; below them it is calls that take the time


class Extra(NamedTuple):
    """What a run does beside the merge."""

    sha256: bool = False
    verify: bool = False


NOTHING_MORE = Extra()


class _Load(NamedTuple):
    """What one node does."""

    shards: int
    read: int
    written: int
    cpu: float


def cost_of(plan: Plan, rate: int, nodes: int, threads: int, extra: Extra) -> CostReport:
    """The estimate for so many nodes, each of which reads and writes `rate` bytes a second. Raises UsageError for a
    number of nodes below 1."""
    if type(nodes) is not int or nodes < 1:
        raise UsageError(f"{argument('nodes')} must be a whole number from 1 on, not {nodes!r}")
    parts = (deal(plan.shards, part, nodes) for part in range(min(nodes, len(plan.shards)) or 1))
    loads = [_load(plan, shards, extra) for shards in parts if shards] or [_Load(0, 0, 0, 0.0)]
    # Once, when all shards are there: config and tokenizer, and of several nodes the hashes of the adapters
    assets = sum(asset.size for asset in plan.assets)
    small = bytes_to_write(plan) - sum(shard.size for shard in plan.shards) * len(plan.outputs)
    hashed = sum(_sources(plan)) if len(loads) > 1 else 0
    others = assets + hashed + small
    planning = START + TENSOR * sum(len(shard.steps) for shard in plan.shards)
    longest = max(loads, key=lambda load: load.read + load.written)
    transfer, cpu = (longest.read + longest.written) / rate, max(load.cpu for load in loads) / threads
    finishing = others / rate + (planning if len(loads) > 1 else 0)
    read, written = (sum(own) for own in zip(*[(load.read, load.written) for load in loads], strict=True))
    return CostReport(
        nodes=nodes,
        nodes_busy=len(loads),
        rate=rate,
        threads=threads,
        bytes_read=read + assets + hashed,
        bytes_written=written + small,
        shards_of_one=longest.shards,
        bytes_of_one=longest.read + longest.written,
        seconds_planning=planning,
        seconds_transfer=transfer,
        seconds_shared=(read + written + others) / rate,
        seconds_cpu=cpu,
        cpu_seconds=sum(load.cpu for load in loads) + planning * len(loads),
        cpu_source=SOURCE,
        seconds=planning + max(transfer, cpu) + finishing,
        bound="cpu" if cpu > transfer else "transfer",
        memory_of_one=predicted_memory(plan, threads),
        requests_read=_requests(plan, read) + len(loads) * (1 + 2 * len(plan.shards) + len(plan.assets)),
        requests_written=_requests(plan, written) + len(plan.assets) * len(plan.outputs),
        unknown=tuple(_unknown(plan)),
    )


def _load(plan: Plan, shards: Sequence[Shard], extra: Extra) -> _Load:
    """What making these shards takes."""
    own = dataclasses.replace(plan, shards=tuple(shards), assets=())
    read, written = bytes_to_read(own), sum(shard.size for shard in shards) * len(plan.outputs)
    cpu = sum(_seconds(step, step.at(output.alpha)) for step in own.steps() for output in plan.outputs)
    if extra.verify:  # all is read again, and so is what was written
        read, cpu = 2 * read + written, cpu * (1 + VERIFY)
    if extra.sha256:
        cpu += SHA256 * (read + written)
    return _Load(len(shards), read, written, cpu)


def _seconds(step: Step, alpha: float) -> float:
    """Seconds of the processor for one tensor of one output."""
    copied = COPY * step.spec.nbytes
    if verbatim(step, alpha) is not None:
        return copied
    if step.keeps is not None:
        # Its codes are computed, and then their scales, each a step
        return copied + KEEP * step.base.spec.numel / 2
    ranks = sum(_rank(step))
    if step.base.made is not None:
        return copied + (DECODE_EDIT if step.edits else DECODE) * step.spec.numel + RANK * ranks * step.spec.numel
    return copied + (EDIT + RANK * ranks) * step.spec.numel


def _rank(step: Step) -> Iterator[int]:
    """The ranks of the products that are added, those of other kinds as far as their factors tell."""
    for edit in step.edits:
        kind = kind_of(edit)
        sizes = [min(ref.shape) for ref in edit.factors.values() if len(ref.shape) > 1]
        yield 0 if kind.replaces else min(sizes, default=0)


def _sources(plan: Plan) -> Iterator[int]:
    """The sizes of the files of adapters, which are hashed whole."""
    for files in plan.files[1:] if not plan.tuned_is_checkpoint else ():
        yield from (plan.inputs[path][2] for path in files.values())


def _requests(plan: Plan, size: int) -> int:
    """Requests for so many bytes, of which each file takes its own."""
    return -(-size // REQUEST) + len(plan.shards)


def _unknown(plan: Plan) -> Iterator[str]:
    """What the figures leave out."""
    yield "delays of the store, other users of it, and how far threads share cores are not in it"
    kinds = sorted({edit.kind for step in plan.steps() for edit in step.edits} - _MEASURED)
    if kinds:
        yield f"the arithmetic of {', '.join(kinds)} has not been measured, and is taken for that of lora"
    dtypes = {step.spec.dtype for step in plan.steps() if step.edits and step.spec.dtype not in ("BF16", "F16")}
    if dtypes:
        yield f"changes of {', '.join(sorted(dtypes))} have not been measured, and are taken for those of BF16"
    if any(step.blend or step.fisher for step in plan.steps()):
        yield "methods and Fisher weights have not been measured, and are taken for a sum"
    steps = [step for step in plan.steps() if step.edits]
    if steps and sum(step.spec.numel for step in steps) < _SMALL * len(steps):
        yield "tensors are so small that calls take the time, and not what is counted here"
    if len(plan.shards) == 1:
        yield "there is one shard, which one node makes: more nodes gain nothing"
