"""The methods of mergekit, against mergekit 0.1.5 itself in float64; or what it made, in test_mergekit.json:

pip install --no-deps mergekit==0.1.5 immutables; python tests/methods/test_mergekit.py
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blended import blended

mergekit: Any = None
with contextlib.suppress(ImportError):
    import mergekit.merge_methods as mergekit
needs_mergekit = pytest.mark.skipif(mergekit is None, reason="draws numbers of its own: mergekit is not installed")

RECORDING = __name__ == "__main__"
Parameters = Mapping[str, Any]
RECORD = Path(__file__).with_suffix(".json")
RECORDED: dict[str, list[float]] = json.loads(RECORD.read_text()) if RECORD.exists() else {}


def theirs(models: Sequence[np.ndarray], method: str, base: int | None, **parameters: Any) -> np.ndarray:
    """What mergekit makes of the models; where it is not installed, what it made of them when this was recorded."""
    key = f"{method} {json.dumps(parameters)} of {len(models)} {models[0].shape} from {models[0].flat[0]:.6f}, {base}"
    if mergekit is None:
        return np.array(RECORDED[key]).reshape(models[0].shape)
    tensors = [torch.from_numpy(model) for model in models]
    merged: np.ndarray = mergekit.merge_tensors(tensors, method, parameters=parameters, base_index=base).numpy()
    if RECORDING:
        RECORDED[key] = [float(f"{number:.12g}") for number in merged.flat]
    return merged


def models(seed: int, count: int, shape: tuple[int, ...] = (3, 8)) -> list[np.ndarray]:
    """A base and models tuned from it, float64."""
    draw = np.random.default_rng(seed).standard_normal
    base = draw(shape)
    return [base, *(base + 0.3 * draw(shape) for _ in range(count - 1))]


CASES = [
    ("mergekit_linear", "linear", {}, {}),
    ("mergekit_linear", "linear", {"normalize": False}, {"normalize": False}),
    ("task_arithmetic", "task_arithmetic", {}, {}),
    ("task_arithmetic", "task_arithmetic", {"normalize": True, "lambda": 0.7}, {"normalize": True, "lambda": 0.7}),
    ("mergekit_ties", "ties", {"density": 0.4}, {"density": 0.4}),
    ("mergekit_ties", "ties", {"density": (0.4, 0.9, 0.1)}, {"density": [0.4, 0.9, 0.1]}),
    ("mergekit_ties", "ties", {"density": 0.4, "normalize": False, "rescale": True, "lambda": 1.3},
     {"density": 0.4, "normalize": False, "rescale": True, "lambda": 1.3, "int8_mask": True}),
    ("breadcrumbs", "breadcrumbs", {"density": 0.5, "gamma": 0.1}, {"density": 0.5, "gamma": 0.1}),
    ("breadcrumbs", "breadcrumbs", {"density": 0.95, "gamma": 0.1}, {"density": 0.95, "gamma": 0.1}),
    ("breadcrumbs_ties", "breadcrumbs_ties", {"density": 0.5, "gamma": 0.1, "rescale": True},
     {"density": 0.5, "gamma": 0.1, "rescale": True}),
    ("mergekit_dare_linear", "dare_linear", {}, {}),
    ("mergekit_dare_ties", "dare_ties", {}, {}),
    ("della", "della", {}, {}),
    ("della_linear", "della_linear", {}, {}),
    ("model_stock", "model_stock", {}, {}),
    ("model_stock", "model_stock", {"filter_wise": True}, {"filter_wise": True}),
    ("sce", "sce", {}, {}),
    ("sce", "sce", {"select_topk": 0.3}, {"select_topk": 0.3}),
    ("karcher", "karcher", {"max_iter": 50, "tol": 1e-9}, {"max_iter": 50, "tol": 1e-9}),
    ("karcher", "karcher", {}, {}),
    ("multislerp", "multislerp", {}, {}),
    ("multislerp", "multislerp", {"normalize": False}, {"normalize_weights": False}),
]  # fmt: skip
UNWEIGHTED = {"model_stock", "sce", "karcher"}
WITH_BASE = {"linear": None, "karcher": None}


SHAPES = [(3, 8), (30,), (2, 3, 4)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("name", "their_name", "ours", "their_parameters"), CASES)
def test_three_models_and_a_base(
    name: str, their_name: str, ours: Parameters, their_parameters: dict[str, Any], shape: tuple[int, ...]
) -> None:
    base, *tuned = models(1, 4, shape)
    weights = [0.7, -0.2, 1.1]
    parameters = dict(their_parameters)
    whole = their_name in WITH_BASE
    if their_name not in UNWEIGHTED:
        parameters["weight"] = weights
    judged = tuned if whole else [base, *tuned]
    wanted = theirs(judged, their_name, None if whole else 0, **parameters)
    found = blended(name, base, tuned, weights, ours)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)
    assert not np.allclose(found, base)


ENDS: list[tuple[str, str, dict[str, Any], list[list[float]]]] = [
    ("mergekit_ties", "ties", {"density": 0.3}, [[0.5], [0.75], [-1.0]]),
    ("mergekit_ties", "ties", {"density": 1e-9}, [[0.5, 1, -2], [0.75, 3, -5], [1.0, 1.5, 2]]),
    ("breadcrumbs", "breadcrumbs", {"density": 0.5, "gamma": 0.01}, [[0.5, 1, -2], [0.75, 3, -5], [1.0, 1.5, 2]]),
    ("karcher", "karcher", {}, [[0.0], [-0.1], [1.4], [-0.7]]),
    ("karcher", "karcher", {"tol": 1e-9}, [[0.0], [-0.3], [0.4]]),
    ("model_stock", "model_stock", {}, [[1.0, 2, 3], [1.5, 1, 5], [0.5, 3, 1]]),
    ("model_stock", "model_stock", {}, [[1.25, 2, 3], [1.5, 1, 5], [1 + 1e-7, 3, 1]]),
    ("model_stock", "model_stock", {"filter_wise": True}, [[1.0, 2, 3], [1.5, 1, 5], [0.5, 3, 1]]),
    ("sce", "sce", {"select_topk": 0.6}, [[0.0, 0, 0, 0], *([[0.1, 0.3, -0.7, i]] for i in (0.1, 0.2, 0.7))]),
    ("sce", "sce", {"select_topk": 0.5}, [[0.0, 0, 0], *([[0.1 + i, 0.3 - i * i, 0.7 * i]] for i in (0.1, 0.2, 0.7))]),
]


@pytest.mark.parametrize(("name", "their_name", "settings", "numbers"), ENDS)
def test_vectors_of_few_numbers(
    name: str, their_name: str, settings: dict[str, Any], numbers: list[list[float]]
) -> None:
    """Where a share is less than one element, models are opposite, or the same."""
    base, *tuned = (np.array(model, dtype=np.float64).reshape(-1) for model in numbers)
    whole = their_name in WITH_BASE
    weights = {} if their_name in UNWEIGHTED else {"weight": [0.7] * len(tuned)}
    wanted = theirs(tuned if whole else [base, *tuned], their_name, None if whole else 0, **weights, **settings)
    found = blended(name, base, tuned, [0.7] * len(tuned), settings)
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


VECTORS: list[tuple[int, dict[str, Any]]] = [
    (0, {}),
    (1, {"nuslerp_flatten": False}),
    (2, {"nuslerp_flatten": False, "nuslerp_row_wise": True}),
]


@pytest.mark.parametrize("based", [True, False])
@pytest.mark.parametrize(("vectors", "parameters"), VECTORS)
def test_nuslerp(vectors: int, parameters: dict[str, Any], based: bool) -> None:
    base, *tuned = models(2, 3)
    weights = [0.3, 0.9]
    judged = [base, *tuned] if based else tuned
    wanted = theirs(judged, "nuslerp", 0 if based else None, weight=weights, **parameters)
    found = blended("nuslerp", base, tuned, weights, {"vectors": vectors, "around_zero": not based})
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


def test_multislerp_of_whole_models() -> None:
    base, *tuned = models(3, 4)
    wanted = theirs(tuned, "multislerp", None, weight=[0.2, 0.5, 0.9])
    found = blended("multislerp", base, tuned, [0.2, 0.5, 0.9], {"around_zero": True})
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-9)


TIMES = [0.0, 0.05, 0.5, 1.0, -0.3]


@pytest.mark.parametrize("t", TIMES)
def test_slerp_and_nearswap(t: float) -> None:
    base, tuned = models(4, 2)
    for name in ("slerp", "nearswap"):
        wanted = theirs([base, tuned], name, 0, t=t)
        tolerance = 1e-6 if name == "slerp" else 1e-10  # theirs is computed in float32
        np.testing.assert_allclose(blended(name, base, [tuned], [t], {}), wanted, rtol=tolerance, atol=tolerance)


def test_arcee_fusion() -> None:
    base, tuned = models(5, 2, (12, 10))
    wanted = theirs([base, tuned], "arcee_fusion", 0)
    found = blended("arcee_fusion", base, [tuned], [1.0], {})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-10)
    share = float((found != base).mean())
    assert 0 < share < 0.2


@needs_mergekit
def test_dare_and_della_draw_as_often() -> None:
    """Other numbers, the same distribution: how many elements stay, and what these are multiplied by."""
    base, *tuned = models(6, 2, (40, 500))
    for name, their_name in (("mergekit_dare_linear", "dare_linear"), ("della_linear", "della_linear")):
        torch.manual_seed(0)
        wanted = theirs([base, *tuned], their_name, 0, weight=[1.0], density=0.3) - base
        found = blended(name, base, tuned, [1.0], {"density": 0.3}) - base
        for change in (wanted, found):
            assert 0.28 < float((change != 0).mean()) < 0.32
            np.testing.assert_allclose(abs(change).sum(), abs(tuned[0] - base).sum(), rtol=1e-6)
        if their_name.startswith("della"):  # the larger stay more often
            large = abs(tuned[0] - base) > np.median(abs(tuned[0] - base))
            for change in (wanted, found):
                assert float((change != 0)[large].mean()) - float((change != 0)[~large].mean()) > 0.1


def record() -> None:
    """Write down what mergekit makes in the tests above."""
    for shape in SHAPES:
        for case in CASES:
            test_three_models_and_a_base(*case, shape)
    for end in ENDS:
        test_vectors_of_few_numbers(*end)
    for vectors in VECTORS:
        for based in (True, False):
            test_nuslerp(*vectors, based)
    for t in TIMES:
        test_slerp_and_nearswap(t)
    test_multislerp_of_whole_models()
    test_arcee_fusion()
    RECORD.write_text("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in RECORDED.items()) + "\n}\n")


if __name__ == "__main__":
    RECORDED.clear()
    record()
