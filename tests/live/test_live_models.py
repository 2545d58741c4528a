"""Many architectures in memory: what `applied` makes of each is what transformers loads from the merged checkpoint."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import PREFIX, load, lora_factors, same_bits, write_adapter
from expert_models import MODELS as EXPERTS
from expert_models import train
from in_memory import enter
from models import MODELS, VISION, attention_of, build
from peft import LoraConfig, get_peft_model

import adaptertool
from adaptertool.architectures.conversion import Part, Piece
from adaptertool.errors import MismatchError
from adaptertool.live.memory import LiveNames

pytestmark = pytest.mark.filterwarnings("ignore")


def check(model: Any, adapter: Path, tmp_path: Path, **options: Any) -> int:
    """How many tensors are changed, all of them as in the merge; afterwards all have their bits again."""
    model.save_pretrained(tmp_path / "base")
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    merged = type(model).from_pretrained(tmp_path / "out", dtype=torch.float32).state_dict()
    before, count = copy.deepcopy(model.state_dict()), 0
    with adaptertool.applied(model, adapter, **options):
        for name, tensor in model.state_dict().items():
            assert torch.allclose(tensor, merged[name], rtol=2**-22, atol=1e-8), name
            count += not tensor.equal(before[name])
    assert all(same_bits(tensor.reshape(-1), before[name].reshape(-1)) for name, tensor in model.state_dict().items())
    return count


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_adapters_by_the_names_in_memory(tmp_path: Path, name: str) -> None:
    fields, options = MODELS[name]
    model = build(name, fields)
    options = options or {"target_modules": attention_of(model)}
    tuned = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, init_lora_weights=False, **options))
    tuned.save_pretrained(tmp_path / "adapter")
    recompute = {"restore": "recompute", "base": tmp_path / "base"}
    assert check(model, tmp_path / "adapter", tmp_path, **recompute) >= 2


@pytest.mark.long
@pytest.mark.parametrize("name", EXPERTS)
def test_fused_experts(tmp_path: Path, name: str) -> None:
    fields, parameters = EXPERTS[name]
    model = build(name, fields)
    adapter = train(model, tmp_path / "adapter", target_parameters=parameters, rank_pattern={".*down_proj": 3})
    recompute = {"restore": "recompute", "base": tmp_path / "base"}
    assert check(model, adapter, tmp_path, **recompute) == len(parameters) * (1 if name == "JambaForCausalLM" else 2)


DISK = MODELS | {"Dinov2ForImageClassification": (VISION | {"use_swiglu_ffn": True}, {})}


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("Dinov2ForImageClassification", r"weights_in|attention\.query"),  # one on the disk, two in memory
        ("ViTForImageClassification", r"attention\.(query|value)"),
        ("LlavaForConditionalGeneration", r"language_model.*q_proj"),
        ("Gemma3ForConditionalGeneration", r"language_model.*(q|v)_proj"),
        ("GPTNeoXForCausalLM", r"attention|embed_out"),
        ("MixtralForCausalLM", r"experts\.[02]\.w\d|q_proj"),
        ("Qwen3MoeForCausalLM", r"experts\.1\.(gate|down)_proj"),
    ],
)
def test_adapters_by_the_names_on_the_disk(tmp_path: Path, name: str, pattern: str) -> None:
    """As transformers 4 had them in memory."""
    model = build(name, DISK[name][0])
    model.save_pretrained(tmp_path / "base")
    factors = {}
    for key, tensor in load(tmp_path / "base").items():
        if re.search(pattern, key) and key.endswith(".weight") and tensor.dim() == 2:
            factors |= lora_factors(key.removesuffix(".weight"), tuple(tensor.shape))
    assert check(model, write_adapter(tmp_path / "adapter", factors), tmp_path) >= 2


def test_the_model_without_its_head(tmp_path: Path) -> None:
    model = build("LlamaForCausalLM", MODELS["LlamaForCausalLM"][0])
    factors = lora_factors("model.layers.0.self_attn.q_proj", (32, 32))
    adapter = write_adapter(tmp_path / "adapter", factors)
    with adaptertool.applied(model, adapter):
        expected = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    with (
        pytest.warns(UserWarning, match="names fit with the prefix model stripped"),
        adaptertool.applied(model.model, adapter),
    ):
        assert same_bits(model.model.layers[0].self_attn.q_proj.weight.detach(), expected)
    head = lora_factors("lm_head", (64, 32))
    with pytest.raises(MismatchError, match="have no tensor"):
        enter(model.model, write_adapter(tmp_path / "head", {**factors, **head}))


def test_a_module_at_two_places_is_one(tmp_path: Path) -> None:
    shared = torch.nn.Linear(6, 6, bias=False)
    model = torch.nn.ModuleDict({"first": shared, "second": torch.nn.Sequential(shared)})
    before = shared.weight.detach().clone()
    for name in ("first", "second.0"):
        adapter = write_adapter(tmp_path / name, lora_factors(name, (6, 6)))
        with adaptertool.applied(model, adapter):
            factors = {key.removeprefix(f"{PREFIX}{name}."): t for key, t in load(adapter).items()}
            delta = 2 * factors["lora_B.weight"] @ factors["lora_A.weight"]
            assert torch.allclose(shared.weight, before + delta, atol=1e-6)
        assert same_bits(shared.weight.detach(), before)
    both = {**lora_factors("first", (6, 6)), **lora_factors("second.0", (6, 6))}
    with pytest.raises(MismatchError, match=r"first and second\.0 both change first\.weight"):
        enter(model, write_adapter(tmp_path / "both", both))


def test_parts_that_are_joined_on_loading() -> None:
    held: Any = {"mlp.gate_up_proj.weight": None, "mlp.down_proj.weight": None}
    names = LiveNames(held, {}, {"architectures": ["MiniMaxM3VLModel"]})
    cut = names.find("mlp.up_proj.weight")
    assert cut == (Piece("mlp.gate_up_proj.weight", cut=Part(1, 2)),)
    assert names.find("mlp.side_proj.weight") is None
