"""Over all modules: what `drift` says in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from adaptertool.reports.drift import Distance, ModuleDrift, PathSummary

SUSPECT, EXPECTED = "suspect", "expected"


def summary(modules: Sequence[ModuleDrift], fail_above: float | None) -> dict[str, Any]:
    """The fields of a DriftReport that follow from its modules."""
    worst = max((module.drift for module in modules if module.drift is not None), default=0.0)
    suspect = any(module.verdict == SUSPECT for module in modules)
    return {
        "verdict": SUSPECT if suspect else EXPECTED,
        "ok": not suspect and (fail_above is None or worst <= fail_above),
        "drift": worst,
        "fail_above": fail_above,
        "paths": _paths(modules),
        "modules": tuple(sorted(modules, key=lambda m: (m.verdict != SUSPECT, -(m.drift or 0.0), m.name))),
        **_weights(modules, suspect=suspect),
    }


def _paths(modules: Iterable[ModuleDrift]) -> tuple[PathSummary, ...]:
    by_pair: dict[tuple[str, str], list[tuple[float, Distance]]] = {}
    for module in modules:
        for distance in module.outputs:
            if distance.rel_error is not None:
                by_pair.setdefault((distance.path, distance.against), []).append((distance.rel_error, distance))
    return tuple(
        PathSummary(
            path=path,
            against=against,
            rel_error=math.sqrt(sum(error**2 for error, _ in found) / len(found)),
            worst=max(error for error, _ in found),
            max_abs=max(distance.max_abs for _, distance in found),
            cosine=min((distance.cosine for _, distance in found if distance.cosine is not None), default=None),
            modules=len(found),
        )
        for (path, against), found in by_pair.items()
    )


def _weights(modules: Sequence[ModuleDrift], *, suspect: bool) -> dict[str, Any]:
    """The figures of all weights together: as if they were one."""
    weights = [module.weight for module in modules]
    length = math.sqrt(sum(w.delta_norm**2 for w in weights))
    norm = math.sqrt(sum(w.norm**2 for w in weights))
    error = math.sqrt(sum(((w.rel_error or 0.0) * w.norm) ** 2 for w in weights))
    touched = sum(w.touched for w in weights)
    survival = sum((w.survival or 0.0) * (w.delta_norm / length) ** 2 for w in weights) if length else None
    noise = error / length if length else None
    return {
        "rel_error": error / norm if norm else None,
        "survival": survival,
        "noise": noise,
        "unchanged": sum((w.unchanged or 0.0) * w.touched for w in weights) / touched if touched else None,
        "advice": tuple(_advice(survival, noise, suspect=suspect)),
    }


def _advice(survival: float | None, noise: float | None, *, suspect: bool) -> Iterator[str]:
    if suspect:
        yield "this points to a fault and not to floating point; `adaptertool verify` names it"
        return
    keep = "keep the adapter unmerged, or merge it into a float32 copy of the base"
    if survival is not None and survival < 0.9:
        yield f"rounding takes {1 - survival:.0%} of the update away: {keep}"
    elif noise is not None and noise > 0.5:
        yield f"rounding adds noise of {noise:.0%} of the update: where that matters, {keep}"
