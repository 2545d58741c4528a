"""sum: what PEFT makes of the written adapter, against Σ wᵢ·Δᵢ of what it makes of each, in float64."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, lora_factors, same_bits, snapshot, write_adapter
from deltas import best, close, deltas, expected
from expert_models import MODELS
from expert_models import train as train_experts
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import LAYERS, Attention, Zoo, make_adapter
from long_tests import share
from models import build
from peft import LoraConfig, PeftModel
from torch import nn

from adaptertool.errors import AdapterToolError, MismatchError, UnsupportedError
from adaptertool.formats.peft.patterns import by_pattern
from adaptertool.tasks.sum import sum_adapters

PATTERNS: list[dict[str, Any]] = [
    {"rank_pattern": {"conv2": 5, "linear": 6}, "alpha_pattern": {"embedding": 9, "conv1": 2.5}, "r": 4},
    {"target_modules": ["linear", "embedding", "conv2"], "use_rslora": True, "lora_alpha": 11, "r": 2},
    {"target_modules": ["turned", "conv3", "linear"], "lora_alpha": -0.3, "r": 3},
]


def config_of(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads((folder / "adapter_config.json").read_text())
    return fields


def three(tmp_path: Path, zoo: nn.Module) -> list[Path]:
    return [
        make_adapter(tmp_path / str(number), zoo, **{"target_modules": LAYERS} | options)
        for number, options in enumerate(PATTERNS)
    ]


@pytest.mark.parametrize("weights", [None, ["0.7", "-1.3", "2"], ["1", "0", "0.5"]])
def test_every_layer_with_ranks_alphas_and_patterns(tmp_path: Path, weights: list[str] | None) -> None:
    zoo = Zoo()
    adapters = three(tmp_path, zoo)
    report = sum_adapters(adapters, tmp_path / "out", weights=weights)
    wanted = expected(zoo, adapters, [1.0] * 3 if weights is None else [float(weight) for weight in weights])
    assert close(deltas(zoo, tmp_path / "out"), wanted, 2**-23)
    assert {one.layer: one.rank for one in report.layers} == {
        "conv1": 4, "conv2": 7, "conv3": 7, "embedding": 6, "linear": 11, "turned": 7,
    }  # fmt: skip
    assert config_of(tmp_path / "out")["use_rslora"] is False


def test_powers_of_two_between_scales_lose_nothing(tmp_path: Path) -> None:
    """w·alpha/r of 1.5·2, -3·8 and 0.75·1 differ by powers of two: the stored factors are those of the inputs."""
    pairs = [lora_factors("a.x", (9, 7), rank, torch.bfloat16) for rank in (2, 3, 4)]
    adapters = [
        write_adapter(tmp_path / str(number), pair, r=rank, lora_alpha=alpha)
        for number, (pair, rank, alpha) in enumerate(zip(pairs, (2, 3, 4), (4, 24, 4), strict=True))
    ]
    report = sum_adapters(adapters, tmp_path / "out", weights=["1.5", "-3", "0.75"])
    (layer,) = report.layers
    assert (layer.exact, layer.rounded, layer.dtype, layer.rank) == (True, 0, "BF16", 9)
    fields, stored = config_of(tmp_path / "out"), load(tmp_path / "out")
    scale = Fraction(fields["lora_alpha"] / fields["r"])
    a = torch.cat([pair["a.x.lora_A.weight"] for pair in pairs])
    assert same_bits(stored[f"{PREFIX}a.x.lora_A.weight"], a)
    found = stored[f"{PREFIX}a.x.lora_B.weight"].double() * float(scale)
    wanted = torch.cat(
        [times * pair["a.x.lora_B.weight"].double() for times, pair in zip((3, -24, 0.75), pairs, strict=True)], dim=1
    )
    assert found.equal(wanted)


@pytest.mark.parametrize(
    ("dtypes", "weights", "stored"),
    [
        (("bfloat16", "float16"), ("1", "1"), "F32"),
        (("bfloat16", "bfloat16"), ("1", "1"), "BF16"),
        (("bfloat16", "bfloat16"), ("0.3", "0.3"), "BF16"),
        (("bfloat16", "bfloat16"), ("0.7", "0.3"), "F32"),
        (("float16", "float64"), ("1", "0.1"), "F64"),
        (("float32", "bfloat16"), ("0", "0.1"), "F32"),
    ],
)
def test_the_stored_dtype(tmp_path: Path, dtypes: tuple[str, str], weights: tuple[str, str], stored: str) -> None:
    pairs = [lora_factors("a.x", (9, 7), 2, getattr(torch, dtype)) for dtype in dtypes]
    adapters = [write_adapter(tmp_path / str(n), pair, r=2, lora_alpha=3) for n, pair in enumerate(pairs)]
    report = sum_adapters(adapters, tmp_path / "out", weights=weights)
    (layer,) = report.layers
    assert layer.dtype == stored
    assert layer.exact == (weights != ("0.7", "0.3") and stored != "F64")
    tensors = load(tmp_path / "out")
    assert len({tensor.dtype for tensor in tensors.values()}) == 1
    found = tensors[f"{PREFIX}a.x.lora_B.weight"].double() @ tensors[f"{PREFIX}a.x.lora_A.weight"].double()
    wanted = sum(
        float(weight) * 1.5 * pair["a.x.lora_B.weight"].double() @ pair["a.x.lora_A.weight"].double()
        for pair, weight in zip(pairs, weights, strict=True)
    )
    assert (found * layer.scale - wanted).norm() <= 2**-22 * wanted.norm()


def test_one_adapter_minus_itself_is_nothing(tmp_path: Path) -> None:
    zoo = Zoo()
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, use_rslora=True, r=3)
    report = sum_adapters([adapter, adapter], tmp_path / "out", weights=["0.3", "-0.3"])
    assert all(one.exact for one in report.layers)
    stored = load(tmp_path / "out")
    for key, b in stored.items():
        if "lora_B" in key or "embedding_B" in key:
            half = b.shape[1] // 2
            assert b[:, :half].equal(-b[:, half:])
    report = sum_adapters([adapter, adapter], tmp_path / "cut", weights=["0.3", "-0.3"], energy=1)
    assert all((one.rank, one.error) == (1, 0) for one in report.layers)
    assert not any(delta.any() for delta in deltas(zoo, tmp_path / "cut").values())


@given(data=st.data())
@settings(max_examples=share(25), deadline=None)
def test_a_sum_is_commutative_and_associative(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("sum")
    adapters, weights = [], []
    for number in range(3):
        names = data.draw(st.sets(st.sampled_from(["a.x", "a.y", "b.x"]), min_size=1))
        rank = data.draw(st.integers(1, 4))
        factors = {key: t for name in sorted(names) for key, t in lora_factors(name, (6, 5), rank).items()}
        alpha = data.draw(st.floats(0.01, 64))
        adapters.append(write_adapter(folder / str(number), factors, r=rank, lora_alpha=alpha))
        weights.append(data.draw(st.decimals(-2, 2, places=2)))

    def change(path: Path) -> dict[str, torch.Tensor]:
        tensors, fields, found = load(path), config_of(path), {}
        for key, b in tensors.items():
            if key.endswith(".lora_B.weight"):
                name = key.removeprefix(PREFIX).removesuffix(".lora_B.weight")
                alpha = by_pattern("", fields.get("alpha_pattern", {}), name, fields["lora_alpha"])
                rank = by_pattern("", fields.get("rank_pattern", {}), name, fields["r"])
                a = tensors[key.replace("lora_B", "lora_A")]
                assert a.shape[0] == rank
                found[name] = alpha / rank * (b.double() @ a.double())
        return found

    sum_adapters(adapters, folder / "all", weights=weights)
    sum_adapters(adapters[::-1], folder / "back", weights=weights[::-1])
    sum_adapters(adapters[:2], folder / "two", weights=weights[:2])
    sum_adapters([folder / "two", adapters[2]], folder / "later", weights=[1, weights[2]])
    whole, back, later = (change(folder / name) for name in ("all", "back", "later"))
    size: dict[str, float] = {}
    for adapter, weight in zip(adapters, weights, strict=True):
        for name, delta in change(adapter).items():
            size[name] = size.get(name, 0.0) + abs(float(weight)) * float(delta.norm())
    assert whole.keys() == back.keys() == later.keys() == size.keys()
    for name, delta in whole.items():
        assert (delta - back[name]).norm() <= 2**-20 * size[name]
        assert (delta - later[name]).norm() <= 2**-20 * size[name]


@pytest.mark.parametrize("cut", [{"rank": 3}, {"energy": "0.95"}])
def test_a_cut_after_the_sum(tmp_path: Path, cut: dict[str, Any]) -> None:
    zoo = Zoo()
    adapters = three(tmp_path, zoo)
    weights = ["0.7", "-1.3", "2"]
    report = sum_adapters(adapters, tmp_path / "out", weights=weights, **cut)
    wanted, found = expected(zoo, adapters, [float(w) for w in weights]), deltas(zoo, tmp_path / "out")
    for one in report.layers:
        delta = wanted[f"{one.layer}.weight"]
        assert (found[f"{one.layer}.weight"] - best(delta, one.rank)).norm() <= 1e-5 * delta.norm()
        tail = float((delta - best(delta, one.rank)).norm() / delta.norm())
        assert one.error == pytest.approx(tail, abs=1e-6)
        assert one.rank == 3 if "rank" in cut else tail**2 <= 0.05 + 1e-9


def test_multihead_attention(tmp_path: Path) -> None:
    model, x = Attention(), torch.randn(2, 5, 16)
    adapters = [
        make_adapter(tmp_path / str(n), model, target_modules=["attn", "head"], r=n + 2, lora_alpha=n + 3)
        for n in range(2)
    ]
    sum_adapters(adapters, tmp_path / "out", weights=["0.5", "-2"])
    found, parts = deltas(model, tmp_path / "out"), [deltas(model, adapter) for adapter in adapters]
    for name, delta in found.items():
        assert (delta - 0.5 * parts[0][name] + 2 * parts[1][name]).norm() <= 1e-6 * (1 + delta.norm()), name
    assert PeftModel.from_pretrained(model, tmp_path / "out")(x).isfinite().all()


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("name", ["Qwen3MoeForCausalLM", "GptOssForCausalLM"])
def test_experts(tmp_path: Path, name: str, rank: int | None) -> None:
    fields, parameters = MODELS[name]
    model = build(name, fields).float()
    options = [
        {"r": 2, "rank_pattern": {".*experts.down_proj": 3}, "lora_alpha": 3},
        {"r": 4, "alpha_pattern": {".*experts.gate_up_proj": 7}, "target_modules": ["q_proj"]},
    ]
    adapters = [
        train_experts(model, tmp_path / str(n), target_parameters=parameters, **own) for n, own in enumerate(options)
    ]
    sum_adapters(adapters, tmp_path / "out", weights=["1", "-0.7"], rank=rank)
    wanted, found = expected(model, adapters, [1, -0.7]), deltas(model, tmp_path / "out")
    if rank is not None:
        for key, delta in wanted.items():
            if delta.any():
                parts = [best(part, rank) for part in delta] if delta.dim() == 3 else [best(delta, rank)]
                wanted[key] = torch.stack(parts).reshape(delta.shape)
    assert close(found, wanted, 1e-5)
    assert sum(bool(delta.any()) for delta in found.values()) == 2 * len(parameters) + 2


def test_biases_of_the_second_factor(tmp_path: Path) -> None:
    model = nn.ModuleDict({"x": nn.Linear(5, 6), "y": nn.Linear(6, 3)})
    adapters = [
        make_adapter(tmp_path / "0", model, target_modules=["x", "y"], lora_bias=True, lora_alpha=7),
        make_adapter(tmp_path / "1", model, target_modules=["x"], lora_bias=True, r=2),
        make_adapter(tmp_path / "2", model, target_modules=["y"], r=2),
    ]
    weights = ["0.3", "2", "-1"]
    sum_adapters(adapters, tmp_path / "out", weights=weights)
    wanted = expected(model, adapters, [float(weight) for weight in weights])
    assert wanted["x.bias"].any()
    assert close(deltas(model, tmp_path / "out"), wanted, 2**-22)
    zoo = Zoo()
    other = make_adapter(tmp_path / "3", zoo, target_modules=["embedding"])
    with pytest.raises(UnsupportedError, match="embedding can have no lora_bias"):
        sum_adapters([adapters[0], other], tmp_path / "no")


def test_saved_tensors_are_kept_where_their_weight_is_one(tmp_path: Path) -> None:
    head = torch.randn(5, 3)
    first = write_adapter(
        tmp_path / "a", {**lora_factors("l.x", (9, 7)), "head.weight": head}, modules_to_save=["head"]
    )
    second = write_adapter(tmp_path / "b", {**lora_factors("l.y", (9, 7)), "norm.weight": torch.randn(4).double()},
                           modules_to_save=["norm"], bias="all")  # fmt: skip
    report = sum_adapters([first, second], tmp_path / "out")
    assert report.saved == (f"{PREFIX}head.weight", f"{PREFIX}norm.weight")
    before, after = {**load(first), **load(second)}, load(tmp_path / "out")
    assert same_bits(after[f"{PREFIX}head.weight"], head)
    assert before.keys() == after.keys()
    fields = config_of(tmp_path / "out")
    assert (fields["modules_to_save"], fields["bias"]) == (["head", "norm"], "all")
    with pytest.raises(UnsupportedError, match=r"a: the saved tensor .*head\.weight takes .* has weight 0\.5, not 1"):
        sum_adapters([first, second], tmp_path / "no", weights=["0.5", "1"])
    for weights in (["0.1", "0.9"], ["0.5", "0.5"], ["0", "0"], ["2", "-1"]):
        with pytest.raises(UnsupportedError, match=rf"has weight {weights[0]} and {weights[1]}, not 1"):
            sum_adapters([first, first], tmp_path / "no", weights=weights)
    report = sum_adapters([first, first], tmp_path / "same", weights=["0.5", "1"])
    assert len(report.saved) == 1
    other = write_adapter(tmp_path / "c", {"head.weight": head + 1})
    with pytest.raises(UnsupportedError, match="is another in"):
        sum_adapters([first, other], tmp_path / "no")
    low = write_adapter(tmp_path / "d", lora_factors("head", (5, 3)))
    with pytest.raises(UnsupportedError, match=r"head in .* change the same module"):
        sum_adapters([first, low], tmp_path / "no")
    inside = write_adapter(tmp_path / "e", lora_factors("head.inner", (5, 3)))
    with pytest.raises(UnsupportedError, match="change the same module"):
        sum_adapters([inside, first], tmp_path / "no")


def test_token_rows(tmp_path: Path) -> None:
    rows = {"embed.token_adapter.trainable_tokens_delta": torch.randn(2, 4)}
    first = write_adapter(tmp_path / "a", {**rows, **lora_factors("l.x", (9, 7))},
                          trainable_token_indices={"embed": [3, 5]})  # fmt: skip
    second = write_adapter(tmp_path / "b", lora_factors("l.x", (9, 7)))
    sum_adapters([first, second], tmp_path / "out", weights=["1", "0.5"])
    assert config_of(tmp_path / "out")["trainable_token_indices"] == {"embed": [3, 5]}
    with pytest.raises(UnsupportedError, match=r"trainable_tokens_delta .* has weight 2\b"):
        sum_adapters([first, second], tmp_path / "no", weights=[2, 1])
    third = write_adapter(tmp_path / "c", rows, trainable_token_indices={"embed": [3, 6]})
    with pytest.raises(UnsupportedError, match="is another in"):
        sum_adapters([first, third], tmp_path / "no", weights=["0.5", "0.5"])


def test_the_same_bytes_by_any_number_of_threads_and_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = Zoo()
    adapters = three(tmp_path, zoo)
    sum_adapters(adapters, tmp_path / "one", threads=1)
    monkeypatch.setattr("adaptertool.algebra.sum._BLOCK", 13)
    sum_adapters(adapters, tmp_path / "two", threads=3)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    dry = sum_adapters(adapters, tmp_path / "dry", dry_run=True)
    assert (dry.bytes_written, (tmp_path / "dry").exists()) == (0, False)


def test_bases_and_fields_that_differ(tmp_path: Path) -> None:
    fields = [
        {"base_model_name_or_path": "org/one", "task_type": "CAUSAL_LM", "lora_dropout": 0.1, "peft_version": "0.9.0"},
        {"base_model_name_or_path": "org/two", "task_type": "CAUSAL_LM", "lora_dropout": 0.2, "peft_version": "0.19.1"},
    ]
    adapters = [write_adapter(tmp_path / str(n), lora_factors("a.x", (6, 5)), **own) for n, own in enumerate(fields)]
    (adapters[1] / "README.md").touch()
    report = sum_adapters(adapters, tmp_path / "out")
    assert "org/one, org/two" in report.notes[0]
    assert report.notes[1].endswith("one adapter: README.md")
    found = config_of(tmp_path / "out")
    assert (found["base_model_name_or_path"], found["task_type"], "lora_dropout" in found) == (None, "CAUSAL_LM", False)
    assert found["peft_version"] == "0.19.1"
    assert LoraConfig.from_pretrained(tmp_path / "out").r == 8
    tied = write_adapter(tmp_path / "t", lora_factors("a.x", (6, 5)), ensure_weight_tying=True)
    with pytest.raises(MismatchError, match="ensure_weight_tying is set in some"):
        sum_adapters([adapters[0], tied], tmp_path / "no")


def test_square_experts_of_two_versions_are_refused(tmp_path: Path) -> None:
    factors = lora_factors("m.experts", (5, 5), 6)
    adapters = [
        write_adapter(tmp_path / version, factors, r=2, peft_version=version, target_parameters=["experts.down_proj"])
        for version in ("0.18.0", "0.19.1")
    ]
    with pytest.raises(MismatchError, match="differ in which dimension of square experts"):
        sum_adapters(adapters, tmp_path / "out")


def test_experts_whose_parameters_only_a_base_could_tell(tmp_path: Path) -> None:
    names = ["gate_up_proj", "up_proj", "down_proj"]
    factors = {**lora_factors("m.experts", (5, 6), 6), **lora_factors("m.experts.base_layer", (5, 6), 6)}
    adapter = write_adapter(tmp_path / "a", factors, r=2, target_parameters=names)
    with pytest.raises(UnsupportedError, match="which of them the base has is not known"):
        sum_adapters([adapter], tmp_path / "out")


def test_refusals_are_errors_of_ours(tmp_path: Path) -> None:
    with pytest.raises(AdapterToolError, match="does not exist"):
        sum_adapters([tmp_path / "none"], tmp_path / "out")


def test_a_bias_that_float64_does_not_hold_is_rounded(tmp_path: Path) -> None:
    adapters = []
    for number, values in enumerate(([1.0, 1.0, 0.5], [2.0**-60, 1.0, -0.5])):
        factors = {**lora_factors("m.q", (3, 5)), "m.q.lora_B.bias": torch.tensor(values)}
        adapters.append(write_adapter(tmp_path / str(number), factors, lora_bias=True))
    (told,) = sum_adapters(adapters, tmp_path / "out").layers
    assert (told.rounded, told.exact) == (1, False)
    assert load(tmp_path / "out")[f"{PREFIX}m.q.lora_B.bias"].tolist() == [1, 2, 0]


def test_what_is_too_small_for_float64_is_rounded(tmp_path: Path) -> None:
    plain = lora_factors("m.q", (3, 5), dtype=torch.float64)
    small = {key: factor * (1e-300 if "lora_B" in key else 1e300) for key, factor in plain.items()}
    adapters = [write_adapter(tmp_path / "0", plain), write_adapter(tmp_path / "1", small, lora_alpha=8 * 2.0**-100)]
    (told,) = sum_adapters(adapters, tmp_path / "out").layers
    assert (told.rounded, told.exact) == (12, False)


def test_a_bias_of_another_length_is_refused(tmp_path: Path) -> None:
    factors = {**lora_factors("m.q", (3, 5)), "m.q.lora_B.bias": torch.ones(4)}
    adapter = write_adapter(tmp_path / "a", factors, lora_bias=True)
    with pytest.raises(MismatchError, match=r"lora_B\.bias is F32 4, but the layer has 3 outputs"):
        sum_adapters([adapter], tmp_path / "out")
