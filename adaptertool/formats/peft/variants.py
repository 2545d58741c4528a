"""Variants of LoRA that a field of its config turns on, and that come down to LoRA. As in PEFT 0.21.2.

BD-LoRA: one of the factors is block-diagonal, and only its blocks are stored, one below the other.
KaSA: what it takes out of the base, and adds, is a kind of its own (kinds.kasa).
VeLoRA and MonteCLoRA: other gradients, and noise, in training; the layer is that of LoRA after it.

Sources: K. Wang et al., "Block-Diagonal LoRA for Eliminating Communication Overhead in Tensor Parallel LoRA Serving"
(arXiv:2510.23346); R. Miles et al., "VeLoRA" (arXiv:2405.17991); T. Chakraborty et al., MonteCLoRA
(arXiv:2411.04358). Checked against PEFT in the tests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made
from adaptertool.numerics.error_bound import Array
from adaptertool.records import dataclass
from adaptertool.spec.tensors import ReadRows, Ref

BLOCKS, TRUNCATED = "use_bdlora", "kasa_config"
_SAMPLER = ("expert_weights", "expert_weights_prior", "gaussian_var_prior", "std_prior")
# Field -> its name, and what follows the name of a module in the keys of tensors that play no part in the weight
STEERING = {
    "velora_config": ("VeLoRA", (".lora_velora_embed",)),
    "monteclora_config": ("MonteCLoRA", tuple(f".lora_monteclora_sampler.{name}" for name in _SAMPLER)),
}
_NOT_WITH = ("use_dora", "lora_bias", "target_parameters")
_TRUNCATED_NOT_WITH = ("use_dora", "target_parameters", "fan_in_fan_out", BLOCKS, *STEERING)


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which layers of BD-LoRA have which factor in blocks, by PEFT's rule: a pattern is any part of the path."""

    path: Path
    count: int
    patterns: Mapping[str, tuple[str, ...]]  # by role

    def whole(self, file: Path, module: str, factors: Mapping[str, Ref]) -> Mapping[str, Ref]:
        """The factors, with the one that is stored in blocks as the whole matrix. Raises InputError where that cannot
        be."""
        own = [role for role, patterns in self.patterns.items() if any(part in module for part in patterns)]
        if len(own) > 1:
            raise InputError(f"{self.path}: {BLOCKS} names {shown(module)} for both factors; PEFT takes one of them")
        if not own or own[0] not in factors or self.count == 1:
            return factors
        (role,) = own
        ref = factors[role]
        if len(ref.shape) != 2 or ref.shape[0] % self.count:
            raise InputError(f"{file}: {shown(ref.spec.name)} is {ref.spec}, which {self.count} blocks cannot make")
        return {**factors, role: _block_diagonal(ref, self.count)}


def blocks_of(path: Path, fields: Mapping[str, Any]) -> Blocks | None:
    """Raises InputError for what PEFT would not have written, UnsupportedError beside fields that it does not go
    with."""
    value = fields.get(BLOCKS)
    if not value:
        return None
    known = {"nblocks", "target_modules_bd_a", "target_modules_bd_b", "match_strict"}
    if not isinstance(value, dict) or not value.keys() <= known:
        raise InputError(f"{path}: {BLOCKS} must be an object with {', '.join(sorted(known))}, not {shown(value)[:80]}")
    if others := [name for name in _NOT_WITH if fields.get(name)]:
        raise UnsupportedError(f"{path}: {BLOCKS} together with {others[0]} has no agreed meaning")
    count = value.get("nblocks", 1)
    if type(count) is not int or count < 1:
        raise InputError(f"{path}: nblocks of {BLOCKS} must be a whole number from 1 on, not {shown(count)[:80]}")
    patterns = {}
    for role, name in ((A, "target_modules_bd_a"), (B, "target_modules_bd_b")):
        names = value.get(name) or []
        if not isinstance(names, list) or not all(isinstance(part, str) for part in names):
            raise InputError(f"{path}: {name} of {BLOCKS} must be a list of names, not {shown(names)[:80]}")
        patterns[role] = tuple(names)
    return Blocks(path, count, patterns)


def truncated(path: Path, fields: Mapping[str, Any]) -> bool:
    """Whether it is KaSA. Raises UnsupportedError beside fields that it does not go with."""
    if not fields.get(TRUNCATED):
        return False
    if others := [name for name in _TRUNCATED_NOT_WITH if fields.get(name)]:
        raise UnsupportedError(f"{path}: {TRUNCATED} together with {others[0]} has no agreed meaning")
    return True


def steering(fields: Mapping[str, Any], keys: Iterable[str]) -> dict[str, str]:
    """The keys of tensors that steered training, and play no part in the weight, each with the variant that it did
    for."""
    some = [STEERING[field] for field in STEERING if fields.get(field)]
    return {key: name for name, endings in some for key in keys if key.endswith(endings)}


def _block_diagonal(ref: Ref, count: int) -> Ref:
    """(rows, columns) as (rows, count·columns): the rows of block b have their numbers in the columns of block b."""
    (height, width), size = ref.shape, ref.shape[0] // count

    def rows(read: ReadRows, first: int, last: int) -> Array:
        own = read(ref, first, last).reshape(last - first, width)
        wide = np.zeros((last - first, count, width))
        wide[np.arange(last - first), np.arange(first, last) // size if size else 0] = own
        return wide.reshape(last - first, count * width)

    return made((ref,), (height, count * width), rows)
