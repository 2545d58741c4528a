"""The names of the ways in which `sum` combines adapters, and the settings that go with each."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from adaptertool.arguments import Number, PathLike, cut_of, settings_for
from adaptertool.errors import UsageError, argument, shown
from adaptertool.methods import LINEAR, METHOD_BY_NAME, ON_FACTORS, settings_of
from adaptertool.spec.choices import Mix, RankChoice
from adaptertool.spec.layers import Layered

CAT, SVD, _ON_CHANGES = "cat", "svd", "_svd"
METHODS = (
    CAT,
    SVD,
    *ON_FACTORS,
    *(name + _ON_CHANGES for name in ON_FACTORS if name != LINEAR.name),
)  # the names of PEFT
SETTINGS = settings_of(ON_FACTORS)


def check_adapters(adapters: Sequence[PathLike], method: str) -> None:
    """Refuse adapters that are no list, and a method that is not there. Raises UsageError."""
    if isinstance(adapters, str | os.PathLike) or not adapters:
        raise UsageError("adapters must be a list of one or more paths")
    if method not in METHODS:
        raise UsageError(f"method is {' or '.join(METHODS)}, not {method!r}")


def cut_for(method: str, rank: int | None, energy: Number | None, adapters: Sequence[Layered]) -> RankChoice | None:
    """What is cut off, by the rank or energy that is given, or by the method. Raises UsageError where that has no
    rank to go by."""
    if rank is None and energy is None:
        if not method.endswith(SVD):
            return None
        layers = [layer for adapter in adapters for layer in adapter.layers.values()]
        if (some := next((layer for layer in layers if layer.is_open), None)) is not None:
            raise UsageError(
                f"{method} needs {argument('rank')} or {argument('energy')}: what {shown(some.path)} changes is of no "
                "rank that is known"
            )
        rank = max((layer.rank for layer in layers), default=1)
    return cut_of(rank=rank, energy=energy, names=("rank", "energy"))


def mix_for(method: str, settings: Mapping[str, Number]) -> Mix | None:
    """How a method combines factors or changes; None where adapters are concatenated or cut. Raises UsageError for
    settings, of those that are given, which the method does not have."""
    if method in (CAT, SVD):
        if settings:
            raise UsageError(f"{method} has {' and '.join(f'no {name}' for name in SETTINGS)}")
        return None
    for name, value in settings.items():
        if isinstance(value, str) and {"=", ":"} & {*value}:
            raise UsageError(
                f"{argument(name)} {value!r}: a sum has one number for all layers and adapters; rules by tensor and "
                "gradients are for `merge --method`"
            )
    chosen = METHOD_BY_NAME[method.removesuffix(_ON_CHANGES)]
    return Mix(chosen.name, chosen.name == method, settings_for(chosen, settings))
