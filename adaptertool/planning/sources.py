"""Opens what is merged into a base, whatever format it came in."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from adaptertool.architectures.decoded_beside import same_numbers
from adaptertool.arguments import PathLike, as_input
from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.parsed import Parsed
from adaptertool.formats import format_at, is_adapter
from adaptertool.formats.checkpoints import open_checkpoint, require_merged
from adaptertool.planning.schedules import Choice
from adaptertool.resolution.components import without
from adaptertool.resolution.renaming import Renames
from adaptertool.resolution.resolve import Base
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Plan

COMPOSITIONS = ("sequential", "mixed")


class Prepared(NamedTuple):
    """A plan with what it was made of, so that nobody opens that again."""

    plan: Plan
    base: Checkpoint
    subject: Base | None  # the base with the table of its names, where adapters were resolved against it
    sources: Sequence[Adapter | Checkpoint]


class Reading(NamedTuple):
    """How sources are read."""

    renames: Sequence[str] | Renames = ()  # on the names of their tensors
    leave_out: Sequence[str] = ()  # files beside adapters, or models of pipelines, that play no part
    expert_layout: str | None = None  # of lora_B of fused experts, where a config does not say
    only: Sequence[str] = ()  # patterns: tensors of the base that are edited, the others not
    exclude: Sequence[str] = ()  # patterns: tensors of the base that are not edited

    @property
    def choice(self) -> Choice:
        return Choice(self.only, self.exclude)

    @property
    def chosen(self) -> dict[str, object]:
        """The layout of experts, and which tensors are edited, for the manifest, where they are given."""
        layout = {} if self.expert_layout is None else {"expert_layout": self.expert_layout}
        return {**layout, **self.choice.said}


def check_compose(compose: str) -> None:
    """Refuse any other composition than COMPOSITIONS. Raises UsageError."""
    if compose not in COMPOSITIONS:
        raise UsageError(f"compose is {' or '.join(COMPOSITIONS)}, not {compose!r}")


def open_adapter(source: Path | Parsed, base: Checkpoint, reading: Reading, renames: Renames) -> Adapter:
    """The adapter, with the names that it has in the base after all renamings; what was parsed is not read again."""
    files = source if isinstance(source, Parsed) else Parsed(source)
    read, has = format_at(files.path).read, renames.holder(base)
    found = read(files, has, base=base, leave_out=reading.leave_out, expert_layout=reading.expert_layout)
    return without(renames.adapter(found), reading.leave_out)


def base_of(
    base: PathLike | Checkpoint, dtype: str | None, quantise: str | None = None, as_trained: str | None = None
) -> Checkpoint:
    """The base, read as it is asked for; one that is open already is taken as it is. Raises as `open_checkpoint` and
    `require_merged` do."""
    if not isinstance(base, Checkpoint):
        base = open_checkpoint(as_input(base, "BASE"), dtype, quantise, as_trained)
    return require_merged(base)


def open_source(
    path: Path, base: Checkpoint, reading: Reading, renames: Renames, dtype: str | None = None
) -> Adapter | Checkpoint:
    """An adapter, or else a fine-tuned checkpoint, with the names that it has in the base after all renamings.

    dtype: as of the base, of which the codes are decoded then
    """
    if is_adapter(path):
        return open_adapter(path, base, reading, renames)
    return renames.checkpoint(same_numbers(base, require_merged(open_checkpoint(path, dtype))), base)


def with_storage(plan: Plan, **asked: str | None) -> Plan:
    """The plan, with what was asked for of the numbers of the base (dtype, quantise, as_trained) among its choices."""
    said = {name: value for name, value in asked.items() if value is not None}
    return dataclasses.replace(plan, choices={**plan.choices, **said}) if said else plan
