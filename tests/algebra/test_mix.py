"""sum --method: against PEFT's add_weighted_adapter; where chance plays a part, against its laws."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PREFIX, adaptertool, load, lora_factors, snapshot, write_adapter
from deltas import best, close, deltas, expected
from expert_models import MODELS
from expert_models import train as train_experts
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import LAYERS, Zoo, make_adapter
from models import build
from peft import PeftModel

from adaptertool.algebra.mix import Mixture
from adaptertool.errors import AdapterToolError, MismatchError, NonFiniteError, UnsupportedError, UsageError
from adaptertool.numerics.held import Held, Room
from adaptertool.spec.choices import Mix
from adaptertool.tasks.sum import sum_adapters
from adaptertool.tasks.sum_methods import METHODS

ALIKE: list[dict[str, Any]] = [{"r": 3, "lora_alpha": 5}, {"r": 3, "lora_alpha": 2, "use_rslora": True}]
Tensors = dict[str, torch.Tensor]


def two(tmp_path: Path, zoo: Zoo, **both: Any) -> list[Path]:
    """Of one rank, on other scales; the second is not on all layers."""
    targets = [LAYERS, ["linear", "conv2", "embedding", "turned"]]
    return [
        make_adapter(tmp_path / str(number), zoo, **(options | {"target_modules": layers} | both))
        for number, (options, layers) in enumerate(zip(ALIKE, targets, strict=True))
    ]


def by_peft(
    tmp_path: Path, zoo: Zoo, adapters: list[Path], weights: list[float], method: str, **options: Any
) -> Tensors:
    model: Any = PeftModel.from_pretrained(copy.deepcopy(zoo).float(), adapters[0], adapter_name="0")
    model.load_adapter(adapters[1], adapter_name="1")
    model.add_weighted_adapter(["0", "1"], weights, "mixed", combination_type=method, **options)
    model.save_pretrained(tmp_path / "peft", selected_adapters=["mixed"], save_embedding_layers=False)
    return deltas(zoo, tmp_path / "peft" / "mixed")


@pytest.mark.long("method")
@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.7, -1.5]])
@pytest.mark.parametrize("method", ["linear", "svd", "ties", "magnitude_prune", "ties_svd", "magnitude_prune_svd"])
def test_as_peft_makes_it(tmp_path: Path, method: str, weights: list[float]) -> None:
    zoo = Zoo()
    # PEFT's own cut fails on most convolutions
    adapters = two(tmp_path, zoo, **({"target_modules": ["linear", "turned", "embedding"]} if "svd" in method else {}))
    density = {} if method in ("linear", "svd") else {"density": 0.4}
    wanted = by_peft(tmp_path, zoo, adapters, weights, method, **density)
    report = sum_adapters(adapters, tmp_path / "out", method=method, weights=weights, **density)
    found = deltas(zoo, tmp_path / "out")
    assert close(found, wanted, 1e-5)
    assert {one.rank for one in report.layers} == {3}
    assert (report.method, report.density) == (method, 0.4 if density else 1.0 if method == "linear" else None)


def test_linear_is_not_the_sum(tmp_path: Path) -> None:
    """Half of an adapter and half of it again makes twice the adapter; and the report says how far that is off."""
    zoo = Zoo()
    adapters = two(tmp_path, zoo)
    report = sum_adapters([adapters[0]] * 2, tmp_path / "twice", method="linear", weights=["0.5", "0.5"])
    assert close(deltas(zoo, tmp_path / "twice"), expected(zoo, adapters[:1], [2]), 2**-22)
    assert all(one.error == pytest.approx(1) for one in report.layers)
    report = sum_adapters(adapters, tmp_path / "out", method="linear", weights=["0.3", "-2"])
    found, wanted = deltas(zoo, tmp_path / "out"), expected(zoo, adapters, [0.3, -2])
    for one in report.layers:
        sum_of, made = wanted[f"{one.layer}.weight"], found[f"{one.layer}.weight"]
        assert one.error == pytest.approx(((made - sum_of).norm() / sum_of.norm()).item(), rel=1e-5, abs=1e-6), (
            one.layer
        )
    alone = sum_adapters(adapters[:1], tmp_path / "alone", method="linear", weights=["0.3"])
    assert max(one.error for one in alone.layers) < 1e-7


def test_chance(tmp_path: Path) -> None:
    """Each element is dropped, or divided by the density; which, is a matter of seed and name alone."""
    factors = lora_factors("x", (40, 50))
    adapter = write_adapter(tmp_path / "a", factors, lora_alpha=4)
    common: dict[str, Any] = {"method": "dare_linear", "density": "0.25"}
    for name, more in {"one": {}, "again": {"threads": 2}, "other": {"seed": 7}}.items():
        sum_adapters([adapter], tmp_path / name, **common, **more)
    weights = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("one", "again", "other")]
    assert weights[0] == weights[1] != weights[2]
    found = load(tmp_path / "one" / "adapter_model.safetensors")
    for name, factor in factors.items():
        thinned = found[PREFIX + name]
        kept = thinned != 0
        assert 0.1 < kept.float().mean() < 0.4
        assert torch.equal(thinned[kept], factor[kept] / 0.25)
    sum_adapters([adapter], tmp_path / "all", method="dare_ties", density=1)
    sum_adapters([adapter], tmp_path / "plain", method="linear")
    whole = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("all", "plain")]
    assert whole[0] == whole[1]


@pytest.mark.parametrize("rank", [3, 100])
@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_experts(tmp_path: Path, name: str, rank: int) -> None:
    """Where nothing is dropped it is the sum, of each expert apart."""
    fields, parameters = MODELS[name]
    model = build(name, fields).float()
    adapters = [
        train_experts(model, tmp_path / str(n), target_parameters=parameters, r=2 + n, lora_alpha=3 + n)
        for n in range(2)
    ]
    sum_adapters(adapters, tmp_path / "out", weights=["1", "-0.7"], method="dare_linear_svd", density=1, rank=rank)
    wanted, found = expected(model, adapters, [1, -0.7]), deltas(model, tmp_path / "out")
    for key, delta in wanted.items():
        if delta.any():
            parts = [best(part, rank) for part in delta] if delta.dim() == 3 else [best(delta, rank)]
            wanted[key] = torch.stack(parts).reshape(delta.shape)
    assert close(found, wanted, 1e-5)


def test_energy_and_ranks_that_differ(tmp_path: Path) -> None:
    zoo = Zoo()
    adapters = two(tmp_path, zoo, rank_pattern={"linear": 2}, target_modules=["linear", "turned"])
    adapters.append(make_adapter(tmp_path / "2", zoo, target_modules=["linear"], r=5))
    report = sum_adapters(adapters, tmp_path / "out", method="ties_svd", density="0.6", energy="0.9")
    for one in report.layers:
        assert one.energy >= 0.9 and 1 - one.error**2 == pytest.approx(one.energy)
    assert json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())["recipe"] == {
        "command": "sum",
        "sources": [{"name": str(number)} for number in range(3)],
        "weights": ["1", "1", "1"],
        "method": "ties_svd",
        "cut": {"energy": "0.9"},
        "density": 0.6,
        "seed": 0,
    }
    PeftModel.from_pretrained(copy.deepcopy(zoo), tmp_path / "out")
    again = sum_adapters(adapters, tmp_path / "again", method="ties_svd", density="0.6", energy="0.9", threads=1)
    assert snapshot(tmp_path / "again") == snapshot(tmp_path / "out")
    assert again.layers == report.layers


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3))


@settings(max_examples=50)
@given(shapes, st.sampled_from(["ties", "magnitude_prune", "dare_ties"]), st.floats(0.1, 1), st.integers(0, 99))
def test_blocks_of_rows_do_not_matter(shape: tuple[int, int, int], method: str, density: float, seed: int) -> None:
    high, wide, rank = shape
    random = np.random.default_rng(seed)
    factors = [(random.normal(size=(high, rank)), random.normal(size=(rank, wide))) for _ in range(2)]
    mix = Mix(method, on_factors=False, settings={"density": density, "seed": seed})
    whole = Mixture(factors, [0.5, -2], mix, "name")
    ((_, rows),) = whole.blocks()
    parts = Mixture(factors, [0.5, -2], mix, "name")
    parts._step = 2
    for first, some in parts.blocks():
        np.testing.assert_allclose(some, rows[first : first + 2], rtol=1e-12, atol=1e-12)
    zero = np.zeros((high, 1)), np.zeros((1, wide))
    with Held(parts, Room()) as held:
        rest, norm = held.left_over(zero)
    assert rest == pytest.approx(norm) == pytest.approx(math.sqrt(float(np.square(rows).sum())))


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    zoo = Zoo()
    adapters = two(tmp_path, zoo, target_modules=["linear"])
    other = make_adapter(tmp_path / "r5", zoo, target_modules=["linear"], r=5)
    dora = make_adapter(tmp_path / "dora", zoo, target_modules=["linear"], use_dora=True)
    biased = make_adapter(tmp_path / "bias", zoo, target_modules=["linear"], lora_bias=True)
    cases: list[tuple[list[Path], dict[str, Any], type[AdapterToolError], str]] = [
        ([*adapters, other], {"method": "linear"}, MismatchError, "on factors they must be the same"),
        ([dora], {"method": "linear"}, UnsupportedError, "DoRA"),
        ([biased], {"method": "ties_svd", "density": 1}, UnsupportedError, "lora_bias"),
        (adapters, {"method": "ties"}, UsageError, "needs density"),
        (adapters, {"method": "linear", "density": 1}, UsageError, "has no density"),
        (adapters, {"method": "cat", "density": 1}, UsageError, "no density"),
        (adapters, {"method": "ties", "density": 1, "seed": 1}, UsageError, "no seed"),
        (adapters, {"method": "ties", "density": 0}, UsageError, "over 0, up to 1"),
        (adapters, {"method": "linear", "rank": 2}, UsageError, "keeps the rank"),
        (adapters, {"method": "slerp"}, UsageError, "method is cat or svd"),
    ]
    for given_, options, error, message in cases:
        with pytest.raises(error, match=message):
            sum_adapters(given_, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


def test_on_the_command_line(tmp_path: Path) -> None:
    """All methods; the help names them."""
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (12, 10)))
    done = adaptertool("sum", adapter, adapter, "--method", "ties", "--density", "0.5", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "by ties at density 0.5" in done.stdout
    assert "of the sum, at most: factors were mixed" in done.stdout
    text = adaptertool("sum", "--help").stdout
    assert all(method in text for method in METHODS)


@pytest.mark.parametrize("method", ["linear", "dare_ties", "ties_svd"])
def test_numbers_beyond_float64_are_refused(tmp_path: Path, method: str) -> None:
    density = {} if method == "linear" else {"density": 0.5}
    plain = write_adapter(tmp_path / "plain", lora_factors("m.q", (6, 5)), lora_alpha=1e300)
    with pytest.raises(UsageError, match="too far apart, or beyond"):
        sum_adapters([plain], tmp_path / "out", weights=["1e300"], method=method, **density)
    huge = {key: 1e100 * factor for key, factor in lora_factors("m.q", (6, 5), dtype=torch.float64).items()}
    if method == "ties_svd":
        with pytest.raises(NonFiniteError, match=r"the mixture for m\.q: the square of what it changes"):
            sum_adapters([write_adapter(tmp_path / "huge", huge)], tmp_path / "out", method=method, **density)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("weight", [1e-60, 1e-70])
def test_the_error_on_factors_is_that_of_what_is_stored(tmp_path: Path, weight: float) -> None:
    factors = {key: factor * 1e-8 for key, factor in lora_factors("m.q", (6, 5)).items()}
    adapter = write_adapter(tmp_path / "a", factors, lora_alpha=4)
    (told,) = sum_adapters([adapter], tmp_path / "out", weights=[weight], method="linear").layers
    stored = load(tmp_path / "out")
    b, a = (stored[f"{PREFIX}m.q.lora_{end}.weight"].double() for end in "BA")
    wanted = weight * factors["m.q.lora_B.weight"].double() @ factors["m.q.lora_A.weight"].double()
    assert told.error == pytest.approx(float((b @ a - wanted).norm() / wanted.norm()), rel=1e-6)
    assert told.error > 0
