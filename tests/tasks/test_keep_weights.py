"""`--quantise keep` with weights by tensor: each coded tensor as a merge with its own weight makes it, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import load, same_bits, write_adapter
from kept import FORMATS, base_of, factors_of
from quantised_bases import X

import adaptertool as library
from adaptertool.errors import UsageError

OTHER = X.replace("layers.0", "layers.1")


def two_layers(folder: Path, name: str) -> tuple[Path, Path]:
    """The base has the coded tensors twice, in two layers, and the adapter changes both."""
    made = FORMATS[name][0]()
    factors = factors_of(made, 0.1)
    again = {key.replace(X, OTHER): tensor.clone() for key, tensor in made.tensors.items()}
    base = base_of(folder / "base", made._replace(tensors=made.tensors | again))
    more = {key.replace(X, OTHER): tensor.flip(0).contiguous() for key, tensor in factors.items()}
    return base, write_adapter(folder / "adapter", factors | more, r=2, lora_alpha=2)


def of(folder: Path, layer: str) -> Mapping[str, torch.Tensor]:
    found = {key.replace(layer, "l"): tensor for key, tensor in load(folder).items() if key.startswith(layer)}
    assert found
    return found


def alike(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        same_bits(tensor.reshape(-1), other[key].reshape(-1)) for key, tensor in one.items()
    )


@pytest.mark.long("name")
@pytest.mark.parametrize("name", FORMATS)
def test_each_tensor_as_with_its_own_weight(tmp_path: Path, name: str) -> None:
    base, adapter = two_layers(tmp_path, name)
    rule = ["-1", "layers.0=0.5"]
    given = {"rules": rule, "half": ["0.5"], "minus": ["-1"], "none": ["layers.0=0"], "whole": ["1"]}
    for out, weights in given.items():
        report = library.merge(base, [adapter], tmp_path / out, weights=weights, quantise="keep", verify=True)
        assert report.verified
    rules, half, minus, none, whole = (tmp_path / out for out in given)
    assert alike(of(rules, X), of(half, X)) and alike(of(rules, OTHER), of(minus, OTHER))
    assert not alike(of(rules, X), of(minus, X)) and not alike(of(rules, OTHER), of(half, OTHER))
    assert alike(of(none, X), of(base, X)) and alike(of(none, OTHER), of(whole, OTHER))
    assert not alike(of(none, OTHER), of(base, OTHER))
    assert library.verify(rules, base, [adapter], weights=rule).ok
    for wrong in (["0.5", "layers.0=-1"], ["0.5"], ["-1"]):
        assert not library.verify(rules, base, [adapter], weights=wrong).ok


def test_what_is_told_is_of_the_tensors_that_are_made_anew(tmp_path: Path) -> None:
    base, adapter = two_layers(tmp_path, "FP8, blocks")
    report = library.merge(base, [adapter], tmp_path / "out", weights=["0", "layers.0=0.5"], quantise="keep")
    assert report.kept is not None and report.kept[-1].elements == load(base)[f"{X}.weight"].numel()


def test_a_pattern_of_nothing_is_refused(tmp_path: Path) -> None:
    base, adapter = two_layers(tmp_path, "INT4")
    with pytest.raises(UsageError, match=r"layers\.7"):
        library.merge(base, [adapter], tmp_path / "out", weights=["layers.7=0.5"], quantise="keep")
    assert not (tmp_path / "out").exists()
