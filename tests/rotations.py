"""Rotations as edits of a merge, before a format has such: in the place of what the n-th adapter holds, they lie in the
base, under names that begin with n. And what they make, in rationals."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import load, write_adapter, write_checkpoint
from rationals import Matrix

from adaptertool.kinds.rotation import HIGH, LOW, ORDER, ROWS
from adaptertool.planning import edits, merge, wise
from adaptertool.spec.tensors import View

LAYER = "h.0.attn.c_attn"
GPT2 = {"model_type": "gpt2", "tie_word_embeddings": False}


class Rotation(NamedTuple):
    high: np.ndarray  # (M, blocks, b, b)
    low: np.ndarray
    order: np.ndarray  # (M, in)
    rows: np.ndarray | None = None  # (out, 1)

    @classmethod
    def of(cls, high: np.ndarray, order: np.ndarray | None = None, low: np.ndarray | None = None) -> Rotation:
        stages, columns = len(high), high.shape[1] * high.shape[2]
        straight = np.tile(np.arange(columns), (stages, 1))
        return cls(high, np.zeros_like(high) if low is None else low, straight if order is None else order)

    def tensors(self, number: int) -> dict[str, torch.Tensor]:
        wide = self.high.shape[-1]
        arrays = {HIGH: self.high.reshape(-1, wide), LOW: self.low.reshape(-1, wide), ORDER: self.order}
        if self.rows is not None:
            arrays[ROWS] = self.rows
        return {f"{number}.{role}": torch.tensor(array, dtype=torch.float64) for role, array in arrays.items()}


def random(
    seed: int,
    columns: int,
    wide: int,
    stages: int = 1,
    *,
    mixed: bool = False,
    near: float | None = None,
    rows: int = 0,
) -> Rotation:
    """Blocks of random numbers of 106 bits; mixed: in any order of columns; near: the identity, to within that; rows:
    with a number for each of so many."""
    rng = np.random.default_rng(seed)
    high = rng.standard_normal((stages, columns // wide, wide, wide)) / wide**0.5
    if near is not None:
        high = np.eye(wide) + near * high
    low = np.spacing(abs(high)) / 2 * rng.uniform(-1, 1, high.shape)
    order = np.stack([rng.permutation(columns) for _ in range(stages)]) if mixed else None
    found = Rotation.of(high, order, low)
    return found._replace(rows=rng.standard_normal((rows, 1))) if rows else found


def rotated(rows: Matrix, rotation: Rotation, weight: float = 1.0) -> Matrix:
    """W + w·(W·R − W)"""
    blocks, wide = rotation.high.shape[1:3]
    made = [list(row) for row in rows]
    for high, low, order in zip(*rotation[:3], strict=True):
        exact = [
            Fraction(one) + Fraction(rest)
            for one, rest in zip(high.ravel().tolist(), low.ravel().tolist(), strict=True)
        ]
        for row in made:
            taken = [row[place] for place in order.tolist()]
            for k in range(blocks):
                for j in range(wide):
                    terms = (taken[k * wide + i] * exact[(k * wide + i) * wide + j] for i in range(wide))
                    row[int(order[k * wide + j])] = sum(terms, Fraction())
    if rotation.rows is not None:
        made = [[Fraction(g) * x for x in row] for g, row in zip(rotation.rows[:, 0].tolist(), made, strict=True)]
    w = Fraction(weight)
    return [[old + w * (new - old) for old, new in zip(*both, strict=True)] for both in zip(rows, made, strict=True)]


def use_rotations(monkeypatch: pytest.MonkeyPatch, view: View | None = None) -> None:
    """From now on an adapter in whose place the base has a rotation is that; of a part of the tensor."""

    def replaced(subject: Any, *given: Any, **named: Any) -> Any:
        found, *rest = edits.adapter_edits(subject, *given, **named)
        for chain in found.values():
            for place, edit in enumerate(chain):
                own = {role: subject.tensors.get(f"{edit.adapter}.{role}") for role in (HIGH, LOW, ORDER)}
                if None not in own.values():
                    rows = subject.tensors.get(f"{edit.adapter}.{ROWS}")
                    own |= {} if rows is None else {ROWS: rows}
                    chain[place] = edit._replace(kind="rotation", factors=own, view=view)
        return found, *rest

    for module in (merge, wise):
        monkeypatch.setattr(module, "adapter_edits", replaced)


def placed(
    folder: Path, base: torch.Tensor, *factors: Rotation | dict[str, torch.Tensor], transposed: bool = False
) -> tuple[Path, list[Path]]:
    """A checkpoint with one layer, and an adapter for each of `factors`: rotations, or what follows the name of the
    layer -> tensors of LoRA and DoRA. transposed: the layer is stored (in, out); `base` is (out, in) all the same."""
    tensors, adapters = {f"{LAYER}.weight": base.T.contiguous() if transposed else base}, []
    for number, own in enumerate(factors):
        held = own
        if isinstance(own, Rotation):
            tensors |= own.tensors(number)
            held = {"lora_A.weight": torch.ones(1, base.shape[1]), "lora_B.weight": torch.ones(len(base), 1)}
        assert isinstance(held, dict)
        settings = {"r": len(held["lora_A.weight"]), "use_dora": "lora_magnitude_vector" in held}
        named = {f"{LAYER}.{role}": tensor for role, tensor in held.items()}
        adapters.append(write_adapter(folder / f"{number}", named, lora_alpha=settings["r"], **settings))
    return write_checkpoint(folder / "base", tensors, config=GPT2 if transposed else None), adapters


def result(folder: Path, *, transposed: bool = False) -> torch.Tensor:
    """The layer of a checkpoint, (out, in)."""
    found = load(folder)[f"{LAYER}.weight"]
    return found.T if transposed else found


def interpolated(before: Matrix, after: Matrix, alpha: float) -> Matrix:
    return [
        [old + Fraction(alpha) * (new - old) for old, new in zip(*rows, strict=True)]
        for rows in zip(before, after, strict=True)
    ]
