"""Keys of adapters that PEFT did not write so: a wrapper's prefix, none at all, the adapter's name inside."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import PREFIX, load, lora_factors, same_bits, write_adapter, write_checkpoint
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import InputError, MismatchError, UnsupportedError

Q, E = "model.layers.0.self_attn.q_proj", "model.embed_tokens"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tensors = {f"{Q}.weight": torch.randn(8, 6), f"{Q}.bias": torch.randn(8), f"{E}.weight": torch.randn(10, 6)}
    return write_checkpoint(tmp_path / "base", tensors | {"score.weight": torch.randn(3, 6)})


def factors() -> dict[str, torch.Tensor]:
    embedding = {f"{E}.lora_embedding_A": torch.randn(4, 10), f"{E}.lora_embedding_B": torch.randn(6, 4)}
    return {**lora_factors(Q, (8, 6)), **embedding, "score.weight": torch.randn(3, 6)}


def named(key: str) -> str:
    key = re.sub(r"(lora_[AB])\.weight", r"\1.default.weight", key)
    return re.sub(r"(lora_embedding_[AB])$", r"\1.default", key).replace("score.", "score.modules_to_save.default.")


# what was done to the keys, and what the note says of it
WAYS: dict[str, tuple[Callable[[str], str], str]] = {
    "compiled": (lambda key: f"_orig_mod.{key}", "without _orig_mod"),
    "compiled inside": (lambda key: key.replace("layers.0.", "layers.0._orig_mod."), "without _orig_mod"),
    "DDP": (lambda key: f"module.{key}", "without module"),
    "DDP and compiled": (lambda key: f"module._orig_mod.{key}", "without _orig_mod, without module"),
    "FSDP": (lambda key: key.replace(".layers.", "._fsdp_wrapped_module.layers."), "without _fsdp_wrapped_module"),
    "a wrapper that is not known": (lambda key: f"pretrained_model.{key}", "without pretrained_model"),
    "no prefix": (lambda key: key.removeprefix(PREFIX), "with base_model.model before them"),
    "DDP, and no prefix": (lambda key: f"module.{key.removeprefix(PREFIX)}", "without module, with base_model.model"),
    "the adapter's name": (named, "without the adapter's name, default"),
    "all of that": (lambda key: f"module.{named(key).removeprefix(PREFIX)}", "before them, without the adapter's name"),
}


def rekeyed(folder: Path, change: Callable[[str], str]) -> Path:
    """An adapter with the same numbers under other keys."""
    adapter = write_adapter(folder, factors())
    save_file({change(key): tensor for key, tensor in load(adapter).items()}, adapter / WEIGHTS)
    return adapter


@pytest.mark.parametrize("way", WAYS)
def test_keys_are_read(base: Path, tmp_path: Path, way: str) -> None:
    change, said = WAYS[way]
    torch.manual_seed(1)
    plain = write_adapter(tmp_path / "plain", factors())
    torch.manual_seed(1)
    other = rekeyed(tmp_path / "other", change)
    assert load(plain).keys() != load(other).keys()
    adaptertool.merge(base, [plain], tmp_path / "right")
    report = adaptertool.merge(base, [other], tmp_path / "out")
    (note,) = report.notes
    assert note.startswith(f"{other / WEIGHTS}: its keys are not as PEFT saves them") and said in note
    right, out = load(tmp_path / "right"), load(tmp_path / "out")
    assert all(same_bits(out[name], right[name]) for name in right)
    assert adaptertool.verify(tmp_path / "out", base, [other]).ok
    # What is made of it has PEFT's keys.
    adaptertool.sum_adapters([other], tmp_path / "sum")
    adaptertool.truncate(other, tmp_path / "cut", rank=2)
    adaptertool.wise(base, other, tmp_path / "lighter", 0.5, as_adapter=True)
    for place in ("sum", "cut", "lighter"):
        assert load(tmp_path / place).keys() == load(plain).keys()
    assert adaptertool.inspect(other, base).fits


def test_magnitudes_and_token_rows(base: Path, tmp_path: Path) -> None:
    dora = {f"{Q}.lora_magnitude_vector": torch.rand(8) + 1}
    rows = {f"{E}.token_adapter.trainable_tokens_delta": torch.ones(1, 6)}
    plain = write_adapter(
        tmp_path / "a", {**lora_factors(Q, (8, 6)), **dora, **rows}, use_dora=True, trainable_token_indices={E: [3]}
    )
    adaptertool.merge(base, [plain], tmp_path / "right")
    tensors = {
        re.sub(r"(lora_[AB]|lora_magnitude_vector|tokens_delta)", r"\1.mine", k): t for k, t in load(plain).items()
    }
    save_file(tensors, plain / WEIGHTS)
    adaptertool.merge(base, [plain], tmp_path / "out")
    right, out = load(tmp_path / "right"), load(tmp_path / "out")
    assert all(same_bits(out[name], right[name]) for name in right)


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        (["a.lora_A.x.weight", "a.lora_B.y.weight"], UnsupportedError, "holds several adapters, x, y"),
        (["a.lora_A.x.weight", "a.lora_B.weight"], UnsupportedError, "has an adapter's name in it, and"),
        (["a.lora_A.weight", "_orig_mod.a.lora_A.weight"], InputError, "two tensors for base_model.model.a.lora_A"),
    ],
)
def test_what_is_not_clear_is_refused(
    base: Path, tmp_path: Path, keys: list[str], error: type[Exception], said: str
) -> None:
    adapter = write_adapter(tmp_path / "a", {key: torch.ones(4, 6) for key in keys})
    with pytest.raises(error, match=said):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_fronts_that_differ(base: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", factors())
    save_file({("x." if "score" in key else "") + key: t for key, t in load(adapter).items()}, adapter / WEIGHTS)
    with pytest.raises(UnsupportedError, match=r"some keys have x before base_model\.model, and others have not"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_a_prefix_that_is_not_known_is_mended_by_a_renaming(base: Path, tmp_path: Path) -> None:
    """Without PEFT's prefix: what stands there is part of the names."""
    adapter = write_adapter(tmp_path / "a", lora_factors(Q, (8, 6)))
    adaptertool.merge(base, [adapter], tmp_path / "right")
    save_file({f"policy.net.{k.removeprefix(PREFIX)}": t for k, t in load(adapter).items()}, adapter / WEIGHTS)
    with pytest.raises(MismatchError, match=r"policy\.net\.model\.layers\.0.*\n.*--rename"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    adaptertool.merge(base, [adapter], tmp_path / "out", renames=[r"^policy\.net\.=>"])
    right, out = load(tmp_path / "right"), load(tmp_path / "out")
    assert all(same_bits(out[name], right[name]) for name in right)


def test_a_renaming_may_change_names_of_one_of_several_adapters(base: Path, tmp_path: Path) -> None:
    one = write_adapter(tmp_path / "one", lora_factors(Q, (8, 6)))
    other = write_adapter(tmp_path / "other", lora_factors(f"net.{Q}", (8, 6)))
    adaptertool.merge(base, [one, other], tmp_path / "out", renames=[r"^net\.=>"])
    assert json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())["recipe"]["renames"] == [
        "^net\\.=>"
    ]


@pytest.mark.parametrize("head", ["model.unembed_tokens", "model.language_model.unembed_tokens"])
def test_the_head_as_tinker_names_it(tmp_path: Path, head: str) -> None:
    base = write_checkpoint(tmp_path / "base", {"lm_head.weight": torch.randn(8, 6), f"{E}.weight": torch.randn(8, 6)})
    torch.manual_seed(1)
    plain = write_adapter(tmp_path / "plain", lora_factors("lm_head", (8, 6)))
    torch.manual_seed(1)
    other = write_adapter(tmp_path / "other", lora_factors(head, (8, 6)))
    adaptertool.merge(base, [plain], tmp_path / "right")
    (note,) = adaptertool.merge(base, [other], tmp_path / "out").notes
    assert note.endswith("with lm_head for unembed_tokens")
    assert all(same_bits(tensor, load(tmp_path / "right")[name]) for name, tensor in load(tmp_path / "out").items())
