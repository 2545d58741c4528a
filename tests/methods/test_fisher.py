"""wise --fisher: against exact rationals; what is known of no model is plain Wise-FT."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FIXTURES, load, main_here, same_bits, snapshot, write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from oracle import fractions, half_ulp_excess, round_fraction

import adaptertool
from adaptertool.arithmetic import fisher
from adaptertool.errors import AdapterToolError, InputError, MismatchError, NonFiniteError, UsageError
from adaptertool.methods.fisher import between

SHAPES = {"a.weight": (24, 16), "norm.weight": (16,), "s": ()}


@pytest.fixture
def four(tmp_path: Path) -> tuple[Path, Path, Path, Path]:
    """Base, tuned, and their Fisher weights: squares of gradients over many orders of magnitude, some of them 0."""
    base = {name: torch.randn(shape).bfloat16() for name, shape in SHAPES.items()}
    tuned = {name: (tensor.float() + 0.1 * torch.randn(tensor.shape)).bfloat16() for name, tensor in base.items()}
    paths = [
        write_checkpoint(tmp_path / name, {**tensors, "ids": torch.arange(5)}, shards=2)
        for name, tensors in (("base", base), ("tuned", tuned))
    ]
    for name in ("f0", "f1"):
        weights = {key: (torch.randn(shape) * 10 ** (3 * torch.randn(shape) - 4)) ** 2 for key, shape in SHAPES.items()}
        weights["a.weight"][torch.rand(24, 16) < 0.3] = 0
        paths.append(write_checkpoint(tmp_path / name, weights))
    return paths[0], paths[1], paths[2], paths[3]


def exact(base: Fraction, tuned: Fraction, ours: Fraction, theirs: Fraction, alpha: Fraction) -> Fraction:
    """The formula as it stands."""
    total = (1 - alpha) * ours + alpha * theirs
    if not total:
        return (1 - alpha) * base + alpha * tuned
    return ((1 - alpha) * ours * base + alpha * theirs * tuned) / total


@pytest.mark.parametrize("alpha", ["0.5", "0.3", "0.001"])
def test_against_rationals(four: tuple[Path, Path, Path, Path], tmp_path: Path, alpha: str) -> None:
    base, tuned, *weights = four
    adaptertool.wise(base, tuned, tmp_path / "out", alpha, fisher=(weights[0], weights[1]))
    found = load(tmp_path / "out")
    for name in SHAPES:
        numbers = [fractions(load(path)[name]) for path in four]
        for have, *given_ in zip(found[name].reshape(-1), *numbers, strict=True):
            wanted = exact(*given_, Fraction(float(alpha)))
            assert have.item() == pytest.approx(float(wanted), rel=2**-8, abs=1e-30)
            if have.item() != round_fraction(wanted, torch.bfloat16):  # next to the middle of two numbers
                assert half_ulp_excess(have, torch.tensor(float(wanted), dtype=torch.float64)) < 1 + 1e-12
    assert same_bits(found["ids"], torch.arange(5))


numbers = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
weights_of = st.floats(min_value=0, allow_infinity=False, allow_nan=False)


@given(numbers, numbers, weights_of, weights_of, st.floats(1e-6, 1 - 1e-6))
def test_the_formula_over_all_of_float64(base: float, tuned: float, ours: float, theirs: float, alpha: float) -> None:
    found = between(*(np.array([x]) for x in (base, tuned, ours, theirs)), alpha)[0]
    wanted = exact(*map(Fraction, (base, tuned, ours, theirs, alpha)))
    size = max(abs(wanted), abs(Fraction(base)) * (ours > 0), abs(Fraction(tuned)) * (theirs > 0))
    assert abs(Fraction(float(found)) - wanted) <= 16 * Fraction(2) ** -53 * size + Fraction(2) ** -1020


def test_the_ends_are_the_checkpoints(four: tuple[Path, Path, Path, Path], tmp_path: Path) -> None:
    base, tuned, *weights = four
    adaptertool.wise(base, tuned, tmp_path / "out", "0:1:0.25", fisher=(weights[0], weights[1]))
    for path, alpha in ((base, "0.000"), (tuned, "1.000")):
        for name, tensor in load(tmp_path / "out" / f"alpha-{alpha}").items():
            assert same_bits(tensor.reshape(-1), load(path)[name].reshape(-1))
    adaptertool.wise(base, tuned, tmp_path / "one", "0.25", fisher=(weights[0], weights[1]))
    assert load(tmp_path / "one").keys() == load(base).keys()
    for name, tensor in load(tmp_path / "one").items():
        assert tensor.equal(load(tmp_path / "out" / "alpha-0.250")[name])


def test_special_weights(tmp_path: Path) -> None:
    base = torch.tensor([1.0, 1, 1, 1, -0.0, 3])
    tuned = torch.tensor([2.0, 2, 2, 2, 0.0, 3])
    ours, theirs = torch.tensor([1.0, 0, 0, -0.0, 5, 1e-45]), torch.tensor([0.0, 1, 0, 0, 7, 1e38])
    paths = [
        write_checkpoint(tmp_path / name, {"x": tensor})
        for name, tensor in (("base", base), ("tuned", tuned), ("f0", ours), ("f1", theirs))
    ]
    adaptertool.wise(paths[0], paths[1], tmp_path / "out", "0.25", fisher=(paths[2], paths[3]))
    assert same_bits(load(tmp_path / "out")["x"], torch.tensor([1, 2, 1.25, 1.25, -0.0, 3]))


def test_a_tuned_checkpoint_of_another_dtype(tmp_path: Path) -> None:
    base, tuned = torch.randn(9), torch.randn(9)
    pairs = (("base", base.bfloat16()), ("tuned", tuned), ("f", torch.rand(9)))
    paths = [write_checkpoint(tmp_path / name, {"x": tensor}) for name, tensor in pairs]
    adaptertool.wise(paths[0], paths[1], tmp_path / "out", "1", fisher=(paths[2], paths[2]))
    assert same_bits(load(tmp_path / "out")["x"], tuned.bfloat16())


def test_equal_weights_are_plain_interpolation(tmp_path: Path) -> None:
    ones = {
        name: torch.full_like(tensor, 0.25, dtype=torch.float32) for name, tensor in load(FIXTURES / "base").items()
    }
    weights = write_checkpoint(tmp_path / "f", ones)
    adaptertool.wise(FIXTURES / "base", FIXTURES / "tuned", tmp_path / "a", "0.5")
    adaptertool.wise(FIXTURES / "base", FIXTURES / "tuned", tmp_path / "b", "0.5", fisher=(weights, weights))
    plain, weighted = load(tmp_path / "a"), load(tmp_path / "b")
    assert all(same_bits(weighted[name], tensor) for name, tensor in plain.items())


def test_the_same_bytes_whatever_threads_and_blocks(
    four: tuple[Path, Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, tuned, *weights = four
    made = []
    for threads, elements in ((1, 1 << 19), (3, 7)):
        monkeypatch.setattr(fisher, "_ELEMENTS", elements)
        out = tmp_path / str(threads)
        adaptertool.wise(base, tuned, out, [0.2, 0.9], fisher=(weights[0], weights[1]), threads=threads)
        made.append(snapshot(out))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("place", "change", "error", "text"),
    [
        ("f0", {"s": torch.tensor(-1.0)}, InputError, "f0.*: s holds -1.0 at element 0; a weight of --fisher"),
        ("f1", {"s": torch.tensor(math.nan)}, NonFiniteError, "f1.*: s holds nan"),
        ("f1", {"s": torch.tensor(math.inf)}, NonFiniteError, "f1.*: s holds inf"),
        ("f0", {"s": torch.ones(1)}, MismatchError, "s is BF16 scalar in .*base, but its Fisher weights in .* F32 1"),
        ("f0", {"s": torch.tensor(1)}, MismatchError, "they must be floats"),
        ("f0", {"more": torch.tensor(1)}, MismatchError, "f0 has weights for more, which .*base does not hold"),
        ("f1", {"s": None}, MismatchError, "f1 has no Fisher weights for s"),
        ("tuned", {"s": torch.tensor(math.nan).bfloat16()}, NonFiniteError, "tuned.*: s: it, or the base, holds"),
    ],
)
def test_refused_by_name(
    four: tuple[Path, Path, Path, Path], tmp_path: Path, place: str, change: dict[str, Any],
    error: type[AdapterToolError], text: str,
) -> None:  # fmt: skip
    path = tmp_path / place
    tensors = {name: tensor for name, tensor in {**load(path), **change}.items() if tensor is not None}
    for file in path.iterdir():
        file.unlink()
    write_checkpoint(path, tensors)
    with pytest.raises(error, match=text):
        adaptertool.wise(four[0], four[1], tmp_path / "out", "0.5", fisher=(four[2], four[3]))
    assert not (tmp_path / "out").exists()


def test_what_does_not_go_together(four: tuple[Path, Path, Path, Path], tmp_path: Path) -> None:
    base, tuned, *rest = four
    weights = (rest[0], rest[1])
    for options in ({"as_adapter": True}, {"precision": "fast"}, {"verify": True}):
        with pytest.raises(UsageError, match="Fisher weights"):
            adaptertool.wise(base, tuned, tmp_path / "out", "0.5", fisher=weights, **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="alpha lies in"):
        adaptertool.wise(base, tuned, tmp_path / "out", "1.5", fisher=weights)
    with pytest.raises(UsageError, match="merge it first"):
        adaptertool.wise(base, FIXTURES / "lora", tmp_path / "out", "0.5", fisher=weights)
    with pytest.raises(UsageError, match="two checkpoints of weights"):
        adaptertool.wise(base, tuned, tmp_path / "out", "0.5", fisher=str(rest[0]))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="overlap"):
        adaptertool.wise(base, tuned, rest[0], "0.5", fisher=weights, force=True)


def test_the_command(
    four: tuple[Path, Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base, tuned, *weights = map(str, four)
    arguments = ["wise", base, tuned, "--alpha", "0.5", "--fisher", *weights, "-o", str(tmp_path / "out")]
    assert main_here([*arguments, "--dry-run"], monkeypatch) == 0
    assert main_here(arguments, monkeypatch) == 0
    told = capsys.readouterr()
    assert f"wise --fisher {base} + {tuned} + {weights[0]} + {weights[1]} at alpha 0.5" in told.out
    assert "where both Fisher weights are 0 it is plain Wise-FT" in told.err
    assert told.out.count("  method   fisher, in float64 and rounded once") == 2 and "settled" not in told.out
    assert main_here(arguments[:-1], monkeypatch) == 2


def test_where_nothing_is_added_to_a_negative_zero_it_stays(tmp_path: Path) -> None:
    zero, one = -torch.zeros(2), torch.ones(2)
    checkpoints = ({"x": zero}, {"x": torch.tensor([1.0, -0.0])}, {"x": one}, {"x": 0 * one})
    base, tuned, *weights = (write_checkpoint(tmp_path / str(n), tensors) for n, tensors in enumerate(checkpoints))
    adaptertool.wise(base, tuned, tmp_path / "out", "0.5", fisher=(weights[0], weights[1]))
    assert same_bits(load(tmp_path / "out")["x"], zero)
