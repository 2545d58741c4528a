"""Every kind of layer that a LoRA or DoRA adapter can sit on, against PEFT's own merge in float64."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adaptertool as command
from conftest import load, lora_factors, snapshot, write_adapter, write_checkpoint
from layers import DTYPES, LAYERS, Attention, check, make_adapter, make_base, peft_merge
from oracle import half_ulp_excess
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import adaptertool
from adaptertool.arithmetic import tiling
from adaptertool.errors import InputError, MismatchError, NonFiniteError, UnsupportedError, UsageError
from adaptertool.files.parsed import Parsed
from adaptertool.formats import read_alone


@pytest.mark.long("layer")
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer(tmp_path: Path, dtype: torch.dtype, layer: str, dora: bool) -> None:
    zoo, base = make_base(tmp_path / "base", dtype)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=[layer], use_dora=dora)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", peft_merge(zoo, adapter), 1)


@pytest.mark.parametrize("dora", [False, True])
def test_all_layers_at_once(tmp_path: Path, dora: bool) -> None:
    zoo, base = make_base(tmp_path / "base")
    patterns = {"rank_pattern": {"conv2": 2, "linear": 5}, "alpha_pattern": {"embedding": 9}, "use_rslora": True}
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=LAYERS, use_dora=dora, bias="all", **patterns)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", peft_merge(zoo, adapter), len(LAYERS) + 6)


@pytest.mark.parametrize("layer", ["linear", "turned", "embedding", "conv2"])
def test_weighted_dora_moves_part_of_the_way(tmp_path: Path, layer: str) -> None:
    """W + w·(W' − W), not a smaller B·A: for merge -w and for wise --alpha alike."""
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=[layer], use_dora=True)
    whole, name = peft_merge(zoo, adapter), f"{layer}.weight"
    before = load(base)[name].double()
    adaptertool.merge(base, [adapter], tmp_path / "weighted", weights=[0.25])
    adaptertool.wise(base, adapter, tmp_path / "wise", [0.25])
    for out in ("weighted", "wise"):
        exact = before + 0.25 * (whole[name] - before)
        assert half_ulp_excess(load(tmp_path / out)[name], exact).max() <= 1 + 1e-6


@pytest.mark.parametrize("compose", ["sequential", "mixed"])
@pytest.mark.parametrize("kinds", [(True, True), (True, False), (False, True), (False, False)])
def test_two_adapters(tmp_path: Path, kinds: tuple[bool, bool], compose: str) -> None:
    layers = ["linear", "turned", "conv2"]
    zoo, base = make_base(tmp_path / "base")
    adapters = [
        make_adapter(tmp_path / str(number), zoo, target_modules=layers, use_dora=dora, r=number + 2)
        for number, dora in enumerate(kinds)
    ]
    adaptertool.merge(base, adapters, tmp_path / "out", compose=compose)
    check(base, tmp_path / "out", peft_merge(zoo, *adapters, together=compose == "mixed"), len(layers))
    other = "mixed" if compose == "sequential" else "sequential"
    adaptertool.merge(base, adapters, tmp_path / "other", compose=other)
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "other"))
    assert (ours == theirs) == (not kinds[1])


def test_mixed_refuses_what_has_no_agreed_meaning(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    pair = [make_adapter(tmp_path / name, zoo, target_modules=["linear"], use_dora=True) for name in "ab"]
    saved = make_adapter(tmp_path / "s", zoo, target_modules=["conv1"], modules_to_save=["linear"])
    with pytest.raises(UnsupportedError, match=r"linear\.weight: weights other than 1 with DoRA"):
        adaptertool.merge(base, pair, tmp_path / "out", weights=[1, 0.5], compose="mixed")
    with pytest.raises(UnsupportedError, match=r"linear\.weight: a replaced weight and another adapter"):
        adaptertool.merge(base, [saved, pair[0]], tmp_path / "out", compose="mixed")
    with pytest.raises(UsageError, match="sequential or mixed"):
        adaptertool.merge(base, pair, tmp_path / "out", compose="both")
    assert command("merge", base, *pair, "-o", tmp_path / "out", "--compose", "mixed").returncode == 0


@pytest.mark.parametrize("layer", ["linear", "turned", "embedding", "conv3"])
def test_dora_does_not_depend_on_blocks_and_threads(tmp_path: Path, layer: str) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapters = [make_adapter(tmp_path / name, zoo, target_modules=[layer], use_dora=True) for name in "ab"]
    adaptertool.merge(base, adapters, tmp_path / "1", threads=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "BLOCK_ELEMENTS", 17)
        adaptertool.merge(base, adapters, tmp_path / "2", threads=3)
    assert snapshot(tmp_path / "1") == snapshot(tmp_path / "2")


def test_lora_bias(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear", "conv2"], lora_bias=True, r=4)
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", peft_merge(zoo, adapter), 4)
    adaptertool.merge(base, [adapter], tmp_path / "half", weights=[0.5])
    before, exact = load(base)["linear.bias"].double(), peft_merge(zoo, adapter)["linear.bias"]
    assert half_ulp_excess(load(tmp_path / "half")["linear.bias"], before + (exact - before) / 2).max() <= 1 + 1e-6


def test_base_layer_weight_replaces_and_the_delta_comes_on_top(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base", torch.float32)
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"])
    factors = load(adapter)
    prefix, weight = "base_model.model.linear", torch.randn(20, 12)
    tensors = factors | {f"{prefix}.base_layer.weight": weight}
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file(tensors, adapter / "adapter_model.safetensors")
    adaptertool.merge(base, [adapter], tmp_path / "out")
    a, b = (factors[f"{prefix}.lora_{role}.weight"].double() for role in "AB")
    exact = weight.double() + 5 / 3 * (b @ a)
    assert half_ulp_excess(load(tmp_path / "out")["linear.weight"], exact).max() <= 1 + 1e-6


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.y = nn.Linear(7, 9), nn.Linear(9, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.y(self.x(inputs))
        return result


@pytest.mark.parametrize(
    ("key", "named"),
    [("x.base_layer.weight", False), ("x.weight", False), ("x.modules_to_save.weight", False), ("x.weight", True)],
)
def test_what_peft_makes_of_a_saved_weight_beside_factors(tmp_path: Path, key: str, named: bool) -> None:
    """Only base_layer.weight counts beside the factors; else PEFT leaves out one or the other, and we refuse."""
    model, saved = Two(), torch.randn(9, 7)
    factors = {**lora_factors("x", (9, 7)), **lora_factors("y", (5, 9))}
    tensors = {**factors, key: saved} | ({"x.bias": model.x.bias.detach().clone()} if named else {})
    delta = 2 * factors["x.lora_B.weight"] @ factors["x.lora_A.weight"]
    fields = {"target_modules": ["x", "y"], "modules_to_save": ["x"] if named else None}
    base = write_checkpoint(tmp_path / "base", {name: tensor.clone() for name, tensor in model.state_dict().items()})
    path, before = write_adapter(tmp_path / "a", tensors, **fields), model.x.weight.detach().clone()
    after = PeftModel.from_pretrained(model, path).merge_and_unload().x.weight
    on_top = key == "x.base_layer.weight"
    assert torch.allclose(after, saved + delta if on_top else saved if named else before + delta, atol=1e-6)
    if on_top:
        adaptertool.merge(base, [path], tmp_path / "out")
        assert torch.allclose(load(tmp_path / "out")["x.weight"], after, atol=1e-6)
    else:
        with pytest.raises(UnsupportedError, match=r"is saved whole, and there are factors for x\.weight"):
            adaptertool.merge(base, [path], tmp_path / "out")


def test_dora_needs_its_magnitude(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    for name, dora, other in (("a", True, False), ("b", False, True)):
        adapter = make_adapter(tmp_path / name, zoo, target_modules=["linear"], use_dora=dora)
        wrong = make_adapter(tmp_path / f"{name}2", zoo, target_modules=["linear"], use_dora=other)
        (adapter / "adapter_config.json").write_bytes((wrong / "adapter_config.json").read_bytes())
        with pytest.raises(adaptertool.AdapterToolError, match=r"has (no )?lora_magnitude_vector"):
            adaptertool.merge(base, [adapter], tmp_path / "out")


def test_dora_of_a_row_of_norm_zero_is_no_number(tmp_path: Path) -> None:
    zoo, _ = make_base(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["linear"], use_dora=True)
    with torch.no_grad():
        for parameter in zoo.parameters():
            parameter.zero_()
    tensors = load(adapter)
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file({k: t * ("lora_B" not in k) for k, t in tensors.items()}, adapter / "adapter_model.safetensors")
    base = write_checkpoint(tmp_path / "zero", dict(zoo.state_dict()))
    with pytest.raises(NonFiniteError, match=r"linear\.weight, element \(0, 0\).*not a number"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


def test_grouped_convolution_does_not_fit(tmp_path: Path) -> None:
    zoo = nn.ModuleDict({"conv": nn.Conv2d(4, 8, 3, groups=2)})
    base = write_checkpoint(tmp_path / "base", dict(zoo.state_dict()))
    adapter = make_adapter(tmp_path / "a", zoo, target_modules=["conv"], r=4)
    with pytest.raises(MismatchError, match=r"conv\.weight is F32 8×2×3×3"):
        adaptertool.merge(base, [adapter], tmp_path / "out")


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("shards", ["20KB", "1GB"])
def test_gpt2(tmp_path: Path, dora: bool, shards: str) -> None:
    """Conv1D with a square layer (attn.c_proj): its shape does not tell that it is stored transposed."""
    config = GPT2Config(vocab_size=50, n_positions=16, n_embd=24, n_layer=2, n_head=2, tie_word_embeddings=False)
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) / 4)
    model.save_pretrained(tmp_path / "base", max_shard_size=shards)
    adapter = make_adapter(tmp_path / "a", model, target_modules=["c_attn", "c_proj", "c_fc", "wte"], use_dora=dora)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    check(tmp_path / "base", tmp_path / "out", peft_merge(model, adapter), 9)
    tokens = torch.randint(0, 50, (2, 9))
    unmerged = PeftModel.from_pretrained(copy.deepcopy(model), adapter)(tokens).logits
    ours = GPT2LMHeadModel.from_pretrained(tmp_path / "out")(tokens).logits
    assert torch.allclose(ours, unmerged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weight", [1.0, 0.5])
@pytest.mark.parametrize("tokens", [[3, 17, 5], {"embed_tokens": [40, 2]}], ids=str)
def test_trained_token_rows(tmp_path: Path, tokens: Any, weight: float, tied: bool) -> None:
    """Rows that replace those of the embedding; where a model ties both ends and stores one, right for both."""
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(tmp_path / "base")
    adapter = make_adapter(tmp_path / "a", model, target_modules=["q_proj"], trainable_token_indices=tokens)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiling, "BLOCK_ELEMENTS", 64)  # several blocks, some without a trained row
        adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out", weights=[weight])
    before, after = load(tmp_path / "base"), load(tmp_path / "out")
    exact = {name: tensor for name, tensor in peft_merge(model, adapter).items() if name in before}
    assert after.keys() == before.keys() == exact.keys()
    for name, tensor in exact.items():
        wanted = before[name].double() + weight * (tensor - before[name].double())
        assert half_ulp_excess(after[name], wanted).max() <= 1 + 1e-6, name
    changed = (after["model.embed_tokens.weight"] != before["model.embed_tokens.weight"]).any(dim=1).nonzero().flatten()
    assert changed.tolist() == sorted(tokens if isinstance(tokens, list) else tokens["embed_tokens"])
    tokens_in = torch.randint(0, 50, (2, 9))
    if weight == 1:
        unmerged = PeftModel.from_pretrained(copy.deepcopy(model).float(), adapter)(tokens_in).logits
        ours = LlamaForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)(tokens_in).logits
        assert (ours - unmerged).norm() / unmerged.norm() < 0.02


def test_a_saved_tensor_after_another_adapter_is_said(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    first = make_adapter(tmp_path / "a", zoo, target_modules=["linear"])
    second = make_adapter(tmp_path / "b", zoo, target_modules=["conv1"], modules_to_save=["linear"])
    report = adaptertool.merge(base, [first, second], tmp_path / "1")
    assert report.notes == ("linear.weight: the saved tensor of adapter 2 replaces the changes of those before it",)
    assert adaptertool.merge(base, [second, first], tmp_path / "2").notes == ()
    with pytest.raises(UnsupportedError, match="in mixed composition"):
        adaptertool.merge(base, [first, second], tmp_path / "3", compose="mixed")


@pytest.mark.parametrize("bias", ["none", "all", "lora_only"])
def test_multihead_attention(tmp_path: Path, bias: str) -> None:
    """in_proj and out_proj; PEFT trains and merges with twice the change of out_proj, and so must we."""
    model = Attention()
    base = write_checkpoint(tmp_path / "base", {name: t.clone() for name, t in model.state_dict().items()})
    patterns = {"rank_pattern": {"attn": 3}, "alpha_pattern": {"attn": 5}}
    tuned = get_peft_model(
        copy.deepcopy(model),
        LoraConfig(target_modules=["attn", "head"], init_lora_weights=False, bias=bias, **patterns),
    )
    with torch.no_grad():
        tuned.base_model.model.attn.base_layer.out_proj.base_layer.bias.fill_(0.25)
    tuned.save_pretrained(tmp_path / "a")
    report = adaptertool.merge(base, [tmp_path / "a"], tmp_path / "out")
    assert report.tensors_edited == {"none": 3, "all": 5, "lora_only": 5}[bias]
    merged = Attention()
    merged.load_state_dict(load(tmp_path / "out"))
    x = torch.randn(2, 5, 16)
    expected, plain = tuned.eval()(x), model.eval()(x)
    ours = merged.eval()(x)
    if bias == "none":
        ours = ours + merged.head(torch.full((16,), 0.25)) - merged.head(model.attn.out_proj.bias)
    assert (ours - expected).abs().max() < 1e-5 < (plain - expected).abs().max()


def test_half_of_an_attention_is_refused(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {name: t.clone() for name, t in Attention().state_dict().items()})
    factors = lora_factors("attn.base_layer.out_proj", (16, 16))
    with pytest.raises(InputError, match="for out_proj of attn, but none for its in_proj"):
        adaptertool.merge(base, [write_adapter(tmp_path / "a", factors)], tmp_path / "out")
    factors = {**factors, **lora_factors("attn", (32, 16))}
    with pytest.raises(MismatchError, match=r"attn\.in_proj_weight is F32 48×16"):
        adaptertool.merge(base, [write_adapter(tmp_path / "b", factors)], tmp_path / "out")


@pytest.mark.parametrize("shape", [(0, 5), (6, 0)])
def test_factors_of_no_elements_are_refused(tmp_path: Path, shape: tuple[int, int]) -> None:
    factors = {"m.q.lora_A.weight": torch.ones(4, shape[1]), "m.q.lora_B.weight": torch.ones(shape[0], 4)}
    with pytest.raises(UnsupportedError, match=r"m\.q has factors of no elements"):
        read_alone(Parsed(write_adapter(tmp_path / "a", factors)))
