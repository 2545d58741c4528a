"""What the tasks share before any of them computes: a check of OUT, and the part of a report that plan and run have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool.engine.budget import bytes_to_read, bytes_to_write, count_tensors
from adaptertool.engine.forms import Forms
from adaptertool.errors import UsageError, shown
from adaptertool.files.hub import called
from adaptertool.files.publish import check_target
from adaptertool.formats import is_adapter
from adaptertool.spec.plan import Plan

SAFETENSORS, GGUF = ".safetensors", ".gguf"  # what the names of single files end in


def makes_file(plan: Plan, out: Path) -> bool:
    """A base that is one file makes one file, where OUT is named like one of that format."""
    suffix = SAFETENSORS if plan.base.suffix == SAFETENSORS else GGUF
    return plan.single_file and [output.folder for output in plan.outputs] == [""] and out.suffix == suffix


def check_output(plan: Plan, out: Path, *, force: bool, sha256: bool = False) -> None:
    """Refuse an OUT that the run would have to refuse, before anything is read or computed. Raises what
    `publish.check_target` raises, and UsageError."""
    as_file = makes_file(plan, out)
    check_target(out, (plan.base, *plan.sources), plan.inputs, as_file=as_file, force=force, is_adapter=is_adapter)
    if out.suffix in (SAFETENSORS, GGUF) and not as_file:
        raise UsageError(
            f"OUT {out} is named like a file, but this run makes a directory, or a file of the base's format; give a "
            f"name without {out.suffix}"
        )
    if as_file and sha256:
        raise UsageError(f"OUT {out} is one file, without a place for SHA256SUMS; use --provenance, or sha256sum")


def summary(plan: Plan, out: Path, threads: int, forms: Forms | None = None) -> dict[str, Any]:
    """The fields that every Report has. forms: of the plan, where they are known"""
    count, edited, cast = count_tensors(plan, forms)
    return {
        "command": plan.command,
        "base": called(plan.base),
        "sources": tuple(map(called, plan.sources)),
        "weights": plan.weights,
        "weight_rules": plan.weight_rules,
        "alphas": tuple(output.alpha for output in plan.outputs),
        "out": str(out),
        "outputs": tuple(str(out / output.folder) for output in plan.outputs),
        "tensors_edited": edited,
        "tensors_copied": count - edited - cast,
        "tensors_cast": cast,
        "bytes_read": bytes_to_read(plan),
        "bytes_written": bytes_to_write(plan),
        "threads": threads,
        "precision": plan.precision,
        "method": plan.method,
        "notes": plan.notes,
    }


def config_notes(name: str, one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> Iterator[str]:
    """Which keys differ, where there are two configs."""
    if one is not None and other is not None and one != other:
        keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        yield f"{name} differs: {', '.join(map(shown, keys))}"
