"""Commands that read a quantised checkpoint and write none: its numbers are used, decoded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PREFIX, load, lora_factors, write_adapter, write_checkpoint
from oracle import fractions, round_fraction
from quantised_bases import FORMATS, Q, X

import adaptertool as library
from adaptertool.errors import UnsupportedError

CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
SHAPE = (20, 72)


class Place:
    """A quantised base, one in another format, the first as a dense one in float32, and adapters for them."""

    def __init__(self, folder: Path) -> None:
        self.folder, made = folder, FORMATS["FP8, blocks"]()
        self.exact = torch.tensor([[float(value) for value in row] for row in made.exact], dtype=torch.float64)
        self.plain = {f"{Q}.weight": torch.randn(8, 6).bfloat16()}
        self.base = self.checkpoint("base", "FP8, blocks", made.tensors, made.config)
        other = FORMATS["NF4"]()
        self.other = self.checkpoint("other", "NF4", other.tensors, other.config)
        self.numbers = torch.tensor([[float(value) for value in row] for row in other.exact], dtype=torch.float64)
        self.dense = write_checkpoint(folder / "dense", {**self.plain, f"{X}.weight": self.exact}, config=CONFIG)
        self.factors = lora_factors(X, SHAPE)
        self.lora = write_adapter(folder / "lora", self.factors)
        dora = {f"{X}.lora_magnitude_vector": torch.rand(20) + 1}
        self.dora = write_adapter(folder / "dora", self.factors | dora, use_dora=True)

    def checkpoint(self, name: str, _: str, tensors: object, config: object) -> Path:
        return write_checkpoint(
            self.folder / name,
            {**self.plain, **dict(tensors)},
            config=CONFIG | {"quantization_config": config},  # type: ignore[call-overload]
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    torch.manual_seed(0)
    return Place(tmp_path)


def test_extract(place: Place) -> None:
    """Between codes and floats, and between codes of two formats: B·A is the whole difference at full rank."""
    cases = (
        (place.base, place.other, place.numbers - place.exact),
        (place.other, place.dense, place.exact - place.numbers),
    )
    for number, (base, tuned, change) in enumerate(cases):
        out = place.folder / f"out-{number}"
        report = library.extract(base, tuned, out, rank=20, dtype="f64")
        found = {key.removeprefix(PREFIX): value for key, value in load(out).items()}
        product = found[f"{X}.lora_B.weight"] @ found[f"{X}.lora_A.weight"]
        assert (product - change).norm() <= 1e-12 * change.norm()
        assert any("is quantised: its numbers are used, decoded" in note for note in report.notes)
    assert any("what codes lose" in note for note in report.notes)


@pytest.mark.parametrize("what", ["truncate", "sum", "wise", "inspect"])
def test_as_for_the_dense_base(place: Place, what: str) -> None:
    """DoRA's norms are those of the base."""

    def made(base: Path, out: Path) -> object:
        if what == "inspect":
            report = library.inspect(place.dora, base)
            return report.fits, report.refusal, report.adapter and report.adapter.modules
        if what == "truncate":
            told = library.truncate(place.dora, out, rank=2, base=base)
            assert base != place.base or any("decoded" in note for note in told.notes)
            return told.layers
        if what == "sum":
            library.sum_adapters([place.dora, place.dora], out, method="svd", rank=3, base=base)
        else:
            library.wise(base, place.dora, out, 0.5, as_adapter=True)
        return (out / "adapter_model.safetensors").read_bytes()

    assert made(place.base, place.folder / "made-1") == made(place.dense, place.folder / "made-2")


BETWEEN: dict[str, Callable[..., object]] = {
    "wise": lambda base, tuned, out, **more: library.wise(base, tuned, out, 1, **more),
    "method": lambda base, tuned, out, **more: library.merge(base, [tuned], out, method="linear", **more),
}


@pytest.mark.parametrize("what", BETWEEN)
def test_between_codes_and_floats(place: Place, what: str) -> None:
    """A dense base needs no flag; a quantised one does, for what is written cannot have its codes."""
    BETWEEN[what](place.dense, place.other, place.folder / "out")
    assert (load(place.folder / "out")[f"{X}.weight"] - place.numbers).norm() <= 1e-14 * place.numbers.norm()
    with pytest.raises(UnsupportedError, match=r"is quantised, and .* is not: with --dtype bf16 it is decoded"):
        BETWEEN[what](place.base, place.dense, place.folder / "refused")
    report = BETWEEN[what](place.base, place.other, place.folder / "both", dtype="bf16")
    found = load(place.folder / "both")[f"{X}.weight"]
    assert fractions(found) == [round_fraction(value, torch.bfloat16) for value in fractions(place.numbers)]
    assert not any("F64" in note for note in report.notes)  # type: ignore[attr-defined]


def test_codes_that_nobody_decodes_are_refused_only_where_they_are_needed(place: Place) -> None:
    config = CONFIG | {"quantization_config": {"quant_method": "hqq"}}
    codes = {f"{X}.W_q": torch.ones(8, 8, dtype=torch.uint8)}
    base = write_checkpoint(place.folder / "hqq", place.plain | codes, config=config)
    adapter = write_adapter(place.folder / "q", lora_factors(Q, (8, 6)))
    assert library.truncate(adapter, place.folder / "out", rank=2, base=base).layers
    assert library.inspect(adapter, base).fits
    with pytest.raises(UnsupportedError, match="hqq"):
        library.truncate(place.lora, place.folder / "no", rank=2, base=base)
    assert json.loads((base / "config.json").read_text()) == config
