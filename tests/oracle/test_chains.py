"""Chains of adapters of different kinds, every kind after every other, against the float64 of PEFT's and LyCORIS's own
layers, one after the other."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import load, write_checkpoint
from every_kind import ALL, NOT_HERE, PEFT, train
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from oracle import half_ulp_excess
from peft_doubles import in_doubles
from peft_doubles import quiet as quiet

import adaptertool
from adaptertool.formats.peft.refused import REFUSED
from adaptertool.kinds import SPELLED

SIZE = (8, 12)
DTYPES = [torch.bfloat16, torch.float32, torch.float16]


def test_all_kinds_are_here() -> None:
    own = {tag for name, tag in SPELLED if name == "peft"} - REFUSED.keys() - {"BONE"}
    assert own | {"LORA", "DORA"} == PEFT.keys() | NOT_HERE


def try_chains(
    folder: Path,
    kinds: Sequence[str],
    dtypes: Sequence[torch.dtype],
    weights: Sequence[float],
    patch: pytest.MonkeyPatch,
) -> None:
    """One merge of all of them, in this order, of a base that has a tensor for each two: these are what changes it.

    dtypes: of the tensors, in turn
    """
    pairs = {f"l{i}x{j}": (i, j) for i, j in itertools.combinations(range(len(kinds)), 2)}
    stored = {f"{name}.weight": torch.randn(SIZE).to(dtype) for name, dtype in zip(pairs, itertools.cycle(dtypes))}
    base = write_checkpoint(folder / "base", stored)
    (base / "config.json").write_text('{"tie_word_embeddings": false}')
    trained = [
        train(folder / f"{i}", kind, [name for name in pairs if i in pairs[name]], SIZE) for i, kind in enumerate(kinds)
    ]
    adaptertool.merge(base, [each.path for each in trained], folder / "out", weights=list(weights))
    found = load(folder / "out")
    with in_doubles(patch):
        for name, pair in pairs.items():
            exact = stored[f"{name}.weight"].double()
            for i in pair:
                exact = exact + weights[i] * (trained[i].merges[name](exact) - exact)
            # LyCORIS adds the smallest step of its dtype to the norms of DoRA
            excess = half_ulp_excess(found[f"{name}.weight"], exact).max()
            assert excess <= (2 if any("dora" in kinds[i] for i in pair) else 1 + 1e-5), [kinds[i] for i in pair]


@pytest.mark.slow
def test_every_kind_with_every_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [(1.0, 0.5, -0.3)[i % 3] for i in range(len(ALL))]
    try_chains(tmp_path, ALL, DTYPES, weights, monkeypatch)


@settings(max_examples=2, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
@given(st.data())
def test_some_kinds_in_any_order(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    kinds = random.Random(data.draw(st.integers(0, 2**16))).sample(ALL, 7)
    weights = data.draw(st.lists(st.sampled_from([1.0, 0.7, -1.5, 0.0]), min_size=7, max_size=7))
    with pytest.MonkeyPatch.context() as patch:
        try_chains(tmp_path_factory.mktemp("chains"), kinds, DTYPES, weights, patch)
