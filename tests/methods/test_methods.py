"""`merge --method`: against PEFT's functions and dense float64; the same bytes for any threads and blocks."""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES, load, lora_factors, main_here, same_bits, write_adapter, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from peft.utils import merge_utils

import adaptertool
from adaptertool.arithmetic import blend, tiling
from adaptertool.arithmetic.together import Together
from adaptertool.engine.pool import all_done
from adaptertool.errors import AdapterToolError, Interrupted, MismatchError, UnsupportedError, UsageError
from adaptertool.methods import METHODS, Method
from adaptertool.numerics import lazy, strips
from adaptertool.numerics.counter_random import uniform
from adaptertool.numerics.top_k import largest

Tensors = dict[str, torch.Tensor]
SHAPES = {"a.weight": (24, 16), "b.weight": (16, 16), "norm.weight": (16,)}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base, and three checkpoints that were tuned from it."""
    torch.manual_seed(1)
    base = {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}
    write_checkpoint(tmp_path / "base", base)
    for number in range(3):
        tuned = {name: (tensor.float() + 0.1 * torch.randn(tensor.shape)).bfloat16() for name, tensor in base.items()}
        write_checkpoint(tmp_path / str(number), tuned)
    return tmp_path


def merged(place: Path, sources: list[str], **options: Any) -> Tensors:
    out = place / f"out-{len(list(place.iterdir()))}"
    adaptertool.merge(place / "base", [place / source for source in sources], out, **options)
    return load(out)


def changes(place: Path, sources: list[str], name: str) -> list[torch.Tensor]:
    base = load(place / "base")[name].double()
    return [load(place / source)[name].double() - base for source in sources]


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Rounded once to bf16, from a float64 that may differ in its last bits."""
    return bool(((found.double() - expected).abs() <= expected.abs() * 2.0**-8).all())


PEFT = {
    "linear": lambda deltas, weights, _: merge_utils.task_arithmetic(deltas, weights),
    "ties": lambda deltas, weights, density: merge_utils.ties(deltas, weights, density),
    "magnitude_prune": lambda deltas, weights, density: merge_utils.magnitude_prune(deltas, weights, density),
}


@pytest.mark.parametrize("method", PEFT)
@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [[1, 1, 1], [0.7, -0.2, 1.5]])
def test_as_peft_computes_it(place: Path, method: str, density: float, weights: list[float]) -> None:
    sources = ["0", "1", "2"]
    given_density = {} if method == "linear" else {"density": density}
    ours = merged(place, sources, method=method, weights=weights, **given_density)
    base = load(place / "base")
    for name in SHAPES:
        deltas = changes(place, sources, name)
        expected = base[name].double() + PEFT[method](deltas, torch.tensor(weights, dtype=torch.float64), density)
        if method == "linear" or density == 1:
            assert near(ours[name], expected)
        else:  # of equal magnitudes PEFT keeps any
            off = (ours[name].double() - expected).abs() > expected.abs() * 2.0**-8
            assert off.double().mean() < 0.1


def test_of_equal_magnitudes_the_first_stay(tmp_path: Path) -> None:
    base = {"w": torch.zeros(8)}
    write_checkpoint(tmp_path / "base", base)
    write_checkpoint(tmp_path / "0", {"w": torch.tensor([1.0, -1, 1, 1, -2, 1, 1, 0])})
    ours = merged(tmp_path, ["0"], method="magnitude_prune", density=0.5)
    assert ours["w"].tolist() == [1, -1, 1, 0, -2, 0, 0, 0]


def test_slerp(place: Path) -> None:
    base, tuned = load(place / "base"), load(place / "0")
    for t in (0.0, 0.25, 1.0, 1.5):
        ours = merged(place, ["0"], method="slerp", weights=[t])
        for name in SHAPES:
            one, other = base[name].double(), tuned[name].double()
            angle = math.acos(float((one * other).sum() / (one.norm() * other.norm())))
            expected = (math.sin((1 - t) * angle) * one + math.sin(t * angle) * other) / math.sin(angle)
            if math.cos(angle) > 0.9995:
                expected = one + t * (other - one)
            assert near(ours[name], expected)


@pytest.mark.parametrize("scale", [2.0**-300, 2.0**300])
def test_slerp_does_not_depend_on_the_scale(tmp_path: Path, scale: float) -> None:
    """Also where the product of two sums of squares is no float64."""
    pair = [torch.randn(6, 5, dtype=torch.float64) for _ in range(2)]
    found = []
    for factor in (1.0, scale):
        for name, tensor in zip(("base", "0"), pair, strict=True):
            write_checkpoint(tmp_path / str(factor) / name, {"w": tensor * factor})
        found.append(merged(tmp_path / str(factor), ["0"], method="slerp", weights=[0.25])["w"] / factor)
    torch.testing.assert_close(*found, rtol=1e-13, atol=0)


def test_dare_keeps_a_share_and_its_mean(tmp_path: Path) -> None:
    torch.manual_seed(2)
    write_checkpoint(tmp_path / "base", {"w": torch.zeros(200, 100)})
    write_checkpoint(tmp_path / "0", {"w": torch.rand(200, 100) + 1})
    tuned = load(tmp_path / "0")["w"]
    ours = merged(tmp_path, ["0"], method="dare_linear", density="0.3", seed=7)["w"]
    kept = ours != 0
    assert abs(float(kept.double().mean()) - 0.3) < 0.015
    assert torch.equal(ours[kept], (tuned.double() / 0.3)[kept].float())
    assert torch.equal(ours, merged(tmp_path, ["0"], method="dare_linear", density="0.3", seed=7)["w"])
    assert not torch.equal(ours, merged(tmp_path, ["0"], method="dare_linear", density="0.3", seed=8)["w"])
    assert torch.equal(merged(tmp_path, ["0"], method="dare_ties", density="0.3", seed=7)["w"], ours)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties", "magnitude_prune", "slerp", "linear"])
def test_threads_and_blocks_do_not_matter(place: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = ["0"] if method == "slerp" else ["0", "1"]
    options: dict[str, Any] = {"method": method} | ({} if method in ("slerp", "linear") else {"density": 0.4})
    whole = merged(place, sources, threads=1, **options)
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 37)
    cut = merged(place, sources, threads=3, **options)
    assert all(torch.equal(whole[name], cut[name]) for name in SHAPES)


def test_adapters_and_checkpoints_together(tmp_path: Path) -> None:
    torch.manual_seed(3)
    base = {"a.weight": torch.randn(12, 8), "norm.weight": torch.randn(8)}
    write_checkpoint(tmp_path / "base", base)
    tuned = {name: tensor + 0.1 * torch.randn(tensor.shape) for name, tensor in base.items()}
    write_checkpoint(tmp_path / "tuned", tuned)
    factors = lora_factors("a", (12, 8))
    write_adapter(tmp_path / "lora", factors)
    ours = merged(tmp_path, ["lora", "tuned"], method="ties", density=1)
    low = 2.0 * factors["a.lora_B.weight"].double() @ factors["a.lora_A.weight"].double()
    full = tuned["a.weight"].double() - base["a.weight"].double()
    expected = base["a.weight"].double() + merge_utils.ties([low, full], torch.ones(2, dtype=torch.float64), 1.0)
    assert torch.allclose(ours["a.weight"].double(), expected, rtol=1e-6, atol=1e-7)
    assert torch.allclose(ours["norm.weight"], tuned["norm.weight"], rtol=1e-6)


def test_linear_is_the_plain_merge(tmp_path: Path) -> None:
    """Of LoRA adapters; but for what lies near the middle of two values."""
    adaptertool.merge(FIXTURES / "base", [FIXTURES / "lora"], tmp_path / "plain", weights=[0.5])
    report = adaptertool.merge(
        FIXTURES / "base", [FIXTURES / "lora"], tmp_path / "linear", weights=[0.5], method="linear"
    )
    assert any("float64" in note for note in report.notes)
    plain, linear = load(tmp_path / "plain"), load(tmp_path / "linear")
    assert sum(int((plain[name] != linear[name]).sum()) for name in plain) <= 2


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"method": "ties"}, UsageError, "needs density"),
        ({"method": "linear", "density": 0.5}, UsageError, "has no density"),
        ({"method": "ties", "density": 0}, UsageError, "share over 0"),
        ({"method": "ties", "density": "1.5"}, UsageError, "share over 0"),
        ({"method": "ties", "density": 0.5, "seed": 3}, UsageError, "no seed"),
        ({"method": "magic", "density": 0.5}, UsageError, "method is"),
        ({"method": "slerp"}, UsageError, "between BASE and one"),
        ({"density": 0.5}, UsageError, "density belongs to a method"),
        ({"method": "linear", "compose": "mixed"}, UsageError, "leave out --compose"),
        ({"method": "linear", "precision": "fast"}, UsageError, "one precision"),
    ],
)
def test_wrong_settings(place: Path, options: Any, error: type[AdapterToolError], said: str) -> None:
    with pytest.raises(error, match=said):
        merged(place, ["0", "1"], **options)


def test_other_checkpoints_are_refused(place: Path) -> None:
    write_checkpoint(place / "other", {"a.weight": torch.zeros(24, 16)})
    with pytest.raises(MismatchError, match="tensors are in"):
        merged(place, ["0", "other"], method="linear")
    write_checkpoint(place / "nan", {name: torch.full(shape, math.nan) for name, shape in SHAPES.items()})
    with pytest.raises(AdapterToolError, match="no number"):
        merged(place, ["0", "nan"], method="linear")


def test_ends_that_come_apart_beside_a_checkpoint(tmp_path: Path) -> None:
    names = {"model.embed_tokens.weight": torch.randn(32, 16), "model.norm.weight": torch.ones(16)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    write_checkpoint(tmp_path / "base", names, config=config)
    write_checkpoint(tmp_path / "tuned", names, config=config)
    write_adapter(tmp_path / "head", lora_factors("lm_head", (32, 16)), target_modules=["lm_head"])
    with pytest.raises(UnsupportedError, match="tied ends"):
        merged(tmp_path, ["head", "tuned"], method="linear")


def test_on_the_command_line(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(place / name) for name in ("base", "0", "1")]
    assert (
        main_here(["merge", *paths, "-o", str(place / "out"), "--method", "ties", "--density", "0.5"], monkeypatch) == 0
    )
    assert main_here(["merge", *paths, "-o", str(place / "more"), "--method", "ties"], monkeypatch) == 2


@given(
    vector=arrays.arrays(
        np.float64,
        st.integers(1, 60),
        elements=st.one_of(st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-1074, 1e300]), st.floats(allow_nan=False)),
    ),
    cut=st.integers(1, 60),
    share=st.floats(0, 1),
)
def test_the_largest(vector: np.ndarray, cut: int, share: float) -> None:
    parts = [vector[first : first + cut] for first in range(0, len(vector), cut)]
    count = int(share * len(vector))
    found = largest(lambda function: map(function, parts), count)
    mask = np.concatenate([found.mask(part, number) for number, part in enumerate(parts)])
    order = sorted(range(len(vector)), key=lambda place: (-abs(vector[place]), place))
    assert sorted(np.flatnonzero(mask)) == sorted(order[:count])


def test_the_largest_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """In several passes, where too many begin alike to be sorted at once."""
    monkeypatch.setattr("adaptertool.numerics.top_k._COLLECTED", 10)
    vector = np.random.default_rng(1).standard_normal(5000)
    vector[::7] = vector[3]
    test = largest(lambda function: map(function, [vector[:2500], vector[2500:]]), 1700)
    mask = np.concatenate([test.mask(vector[:2500], 0), test.mask(vector[2500:], 1)])
    order = sorted(range(5000), key=lambda place: (-abs(vector[place]), place))
    assert sorted(np.flatnonzero(mask)) == sorted(order[:1700])


@given(first=st.integers(0, 1000), size=st.integers(1, 50))
def test_chance_depends_on_the_place_alone(first: int, size: int) -> None:
    assert np.array_equal(uniform("name", 0, 1100)[first : first + size], uniform("name", first, size))
    assert not np.array_equal(uniform("other", first, size), uniform("name", first, size))


def test_what_a_method_combines_is_not_verified(place: Path) -> None:
    with pytest.raises(UsageError, match="not for methods"):
        merged(place, ["0", "1"], method="ties", density=0.5, verify=True)


def test_the_error_is_told_and_not_who_stopped_because_of_it() -> None:
    stopped, failed = Future[None](), Future[None]()
    stopped.set_exception(Interrupted("interrupted"))
    failed.set_exception(MismatchError("what went wrong"))
    with pytest.raises(MismatchError, match="what went wrong"):
        all_done(threading.Event(), [stopped, failed])
    with pytest.raises(Interrupted):
        all_done(threading.Event(), [stopped])


@pytest.mark.parametrize("method", ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune", "slerp"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_where_nothing_is_added_to_a_negative_zero_it_stays(tmp_path: Path, method: str, dtype: torch.dtype) -> None:
    weight = torch.randn(8, 6).to(dtype)
    weight[0], weight[1] = -0.0, 0.0
    base = write_checkpoint(tmp_path / "base", {"x.weight": weight, "norm.weight": -torch.zeros(6, dtype=dtype)})
    tuned = weight.clone()
    tuned[2:] += 1
    same = write_checkpoint(tmp_path / "tuned", {"x.weight": tuned, "norm.weight": -torch.zeros(6, dtype=dtype)})
    factors = dict(lora_factors("x", (8, 6)))
    factors["x.lora_B.weight"][:2] = 0
    sources = [write_adapter(tmp_path / "a", factors), same][: 1 if method == "slerp" else 2]
    thinned = {} if method in ("linear", "slerp") else {"density": 0.5}
    adaptertool.merge(base, sources, tmp_path / "out", method=method, weights=[0.7, -0.3][: len(sources)], **thinned)
    out = load(tmp_path / "out")
    assert same_bits(out["x.weight"][:2], weight[:2])
    assert same_bits(out["norm.weight"], -torch.zeros(6, dtype=dtype))
    assert not out["x.weight"][2:].equal(weight[2:])


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_kernel_and_numpy_make_the_same(method: Method, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of 100 elements, with many equal magnitudes, and an adapter among the sources; and the tallies too."""
    write_adapter(place / "lora", lora_factors("a", (24, 16)), r=4, lora_alpha=2, target_modules=["a"])
    sources = ["0", "lora", "2"][: method.only or 3]
    options = {"method": method.name, "weights": [0.5, 0.25, 0.3][: len(sources)]} | dict.fromkeys(
        [name for name in ("density", "select_topk", "rescale") if name in method.settings], 0.4
    )
    options |= {"rescale": True} if "rescale" in method.settings else {}
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 100)
    reports = []
    for functions in (lazy.FUNCTIONS, {}):
        for module in (lazy, strips):
            monkeypatch.setattr(module, "FUNCTIONS", functions)
        out = place / f"out-{len(reports)}"
        reports.append(adaptertool.merge(place / "base", [place / source for source in sources], out, **options))
    assert (place / "out-0/model.safetensors").read_bytes() == (place / "out-1/model.safetensors").read_bytes()
    assert reports[0].survival == reports[1].survival


def test_what_is_found_in_blocks_is_not_held_of_all(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tensor of many long rows it may be more than the tensor itself: the sums of each column, block by block."""
    held, each = list[int](), Together.each

    def counted(self: Together[Any], function: Any, items: Any) -> list[Any]:
        held.append(len(items))
        return each(self, function, items)

    expected = merged(place, ["0", "1"], method="nuslerp", weights=[1, 1], vectors=2)
    monkeypatch.setattr(Together, "each", counted)
    monkeypatch.setattr(blend, "HELD", 3)
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 16)
    found = merged(place, ["0", "1"], method="nuslerp", weights=[1, 1], vectors=2)
    assert max(held) == 3
    assert sum(held) == 24 + 16 + 1  # rows of all tensors
    for name in SHAPES:
        assert near(found[name], expected[name].double())
