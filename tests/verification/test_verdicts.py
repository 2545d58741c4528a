"""`verify` in the field: what each number, all numbers together, and the config say. Honest merges stay right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import verdicts
from candidates import BF16, EMBED, F16, F32, SHAPES, UP, K, Place, Q, delta, naive
from conftest import FIXTURES, write_adapter, write_checkpoint
from long_tests import ALL
from safetensors.torch import load_file, save_file

import adaptertool
from adaptertool.tasks.verify import verify
from adaptertool.verification.config import config_problems
from adaptertool.verification.evidence import interval, lean, most_common, toward_zero
from adaptertool.verification.roundings import neighbours

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False, "rope_theta": 1e4}


# --- a part of docs/verdicts.md ---


@pytest.mark.parametrize(
    ("dtype", "size", "part"), [("bf16", 0.01, 0), ("fp16", 0.1, 1), ("bf16", 1.0, 2), ("fp32", 0.1, 3)]
)
def test_a_part_of_the_page(tmp_path: Path, dtype: str, size: float, part: int) -> None:
    """A quarter of it in each of four columns; in a sample, half of that."""
    names = [*verdicts.HONEST, *verdicts.FAULTS][part :: 4 if ALL else 8]
    results = verdicts.verdicts(tmp_path, dtype, size, names)
    assert set(results.values()) <= {"right", "named"} or results.pop("stochastic rounding") == "missed", results
    assert len(results) >= 4


def test_the_page_is_there() -> None:
    text = verdicts.PAGE.read_text()
    assert "WRONG" not in text.split("## Honest merges")[1]
    for name in (*verdicts.HONEST, *verdicts.FAULTS):
        assert f"\n| {name} |" in text, "make verdicts"


# --- statistics ---


def test_false_alarms_of_the_projection() -> None:
    """5,000 honest tensors, each with errors of elements, rows and columns that have no direction: none is significant.
    A shift by a fiftieth of the change is, in each."""
    generator = np.random.default_rng(0)
    for _ in range(5000):
        rows, columns = generator.integers(8, 40, 2)
        change = generator.standard_normal((rows, columns))
        off = generator.standard_normal((rows, columns)) * generator.uniform(0, 1)
        off += generator.standard_normal((rows, 1)) * change * generator.uniform(0, 1)
        off += generator.standard_normal((1, columns)) * change * generator.uniform(0, 1)
        off[generator.uniform(size=off.shape) < generator.uniform(0, 0.9)] = 0
        assert not lean(off, change).significant
        assert not toward_zero(off, change).significant
    for _ in range(20):
        change = generator.standard_normal((64, 512))
        off = 0.25 * generator.standard_normal(change.shape) + 0.02 * change
        found = lean(off, change)
        assert found.significant and found.deviations > 6


@pytest.mark.parametrize("scale", [0.3, 0.9, 0.999, 1.0, 1.001, 1.5, -1.0])
@pytest.mark.parametrize("size", [1e-2, 0.1, 1.0])
def test_the_fit_has_no_bias(scale: float, size: float) -> None:
    """Rounding takes away most of a small change; the fit finds its scale all the same."""
    torch.manual_seed(0)
    base = torch.randn(300_000).bfloat16().double()
    change = torch.randn(300_000).double() * size
    found = (base + scale * change).bfloat16().double()
    half = torch.ldexp(torch.tensor(1.0), torch.frexp(found)[1] - 9).double() * (1 + 1e-6)
    fit = most_common(*interval(*(tensor.numpy() for tensor in (found, base, change, half))))
    assert fit is not None and fit.error < 1e-4
    assert abs(fit.scale - scale) < 2e-5


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_neighbours(dtype: str) -> None:
    kind = {"BF16": BF16, "F16": F16, "F32": F32}[dtype]
    torch.manual_seed(0)
    numbers = torch.cat([torch.randn(1000).double(), torch.randn(1000).to(kind).double(), torch.zeros(3).double()])
    inner, outer = (torch.from_numpy(side) for side in neighbours(numbers.numpy(), dtype))
    assert (inner.abs() <= numbers.abs()).all() and (numbers.abs() <= outer.abs()).all()
    held = numbers.to(kind).double() == numbers
    assert (inner == outer)[held].all()
    assert (torch.nextafter(inner.to(kind), outer.to(kind)).double() == outer)[~held].all()


def test_a_tenth_of_a_percent_in_a_whole_model(tmp_path: Path) -> None:
    """0.1 % too much of a change that is 1 % of bf16 weights: found, and fitted to within 5 % of what is too much."""
    torch.manual_seed(0)
    names = [f"layers.{number}.proj" for number in range(4)]
    base = {f"{name}.weight": (torch.randn(1024, 1024) * 0.02).bfloat16() for name in names}
    factors = {name: (torch.randn(1024, 8) * 1e-4, torch.randn(8, 1024) / 8**0.5) for name in names}
    write_checkpoint(tmp_path / "base", base)
    tensors = {}
    for name, (b, a) in factors.items():
        tensors |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    adapter = write_adapter(tmp_path / "adapter", tensors, r=8, lora_alpha=16)
    for scale in (1.001, 0.999, 1.0):
        merged = {
            f"{name}.weight": (base[f"{name}.weight"].float() + 2 * scale * b @ a).bfloat16()
            for name, (b, a) in factors.items()
        }
        report = verify(write_checkpoint(tmp_path / f"{scale}", merged), tmp_path / "base", [adapter], threads=1)
        assert report.ok == (scale == 1), report
        if scale != 1:
            assert report.summary.diagnosis == ("wrong-scale",)
            fitted = [t.fitted_scale for t in report.tensors if t.fitted_scale is not None]
            assert len(fitted) == 4 and all(abs(fit - scale) < 0.05 * 0.001 for fit in fitted)


def test_too_little_to_show_in_one_tensor(tmp_path: Path) -> None:
    """A scale that is off in all of 64 small tensors shows in all of them together."""
    torch.manual_seed(0)
    names = [f"layers.{number}.proj" for number in range(64)]
    base = {f"{name}.weight": (torch.randn(64, 64) * 0.02).bfloat16() for name in names}
    write_checkpoint(tmp_path / "base", base)
    factors = {name: (torch.randn(64, 4) * 1e-3, torch.randn(4, 64) / 2) for name in names}
    tensors = {
        f"{n}.lora_{letter}.weight": f for n, pair in factors.items() for letter, f in zip("BA", pair, strict=True)
    }
    adapter = write_adapter(tmp_path / "adapter", tensors)
    for scale, right in ((1.0, True), (1.004, False)):
        merged = {
            f"{n}.weight": (base[f"{n}.weight"].float() + 2 * scale * b @ a).bfloat16() for n, (b, a) in factors.items()
        }
        report = verify(write_checkpoint(tmp_path / f"{right}", merged), tmp_path / "base", [adapter], threads=1)
        assert report.ok == right and bool(report.problems) != right
    assert "adapter 1" in report.problems[0] and "1.004" in report.problems[0]
    assert report.summary.diagnosis[0] == "wrong-scale"


@pytest.mark.parametrize("weight", ["1.007", "0.993"])
@pytest.mark.parametrize("adapter", ["lora", "rslora"])
def test_a_weight_that_is_a_little_off(tmp_path: Path, weight: str, adapter: str) -> None:
    adaptertool.merge(FIXTURES / "base", [FIXTURES / adapter], tmp_path / "out", weights=[weight])
    report = verify(tmp_path / "out", FIXTURES / "base", [FIXTURES / adapter])
    edited = [t for t in report.tensors if t.fitted_scale is not None]
    assert not report.ok and report.summary.diagnosis[0] == "wrong-scale"
    assert all(abs(t.fitted_scale - float(weight)) < 5e-4 for t in edited)


def test_an_alpha_and_two_weights_that_are_a_little_off(tmp_path: Path) -> None:
    base, lora, rslora = (FIXTURES / name for name in ("base", "lora", "rslora"))
    adaptertool.wise(base, lora, tmp_path / "wise", "0.302")
    assert verify(tmp_path / "wise", base, [lora], alpha="0.302").ok
    assert verify(tmp_path / "wise", base, [lora], alpha="0.3").summary.diagnosis[0] == "wrong-scale"
    adaptertool.merge(base, [lora, rslora], tmp_path / "two", weights=["1.01", "0.99"])
    report = verify(tmp_path / "two", base, [lora, rslora])
    assert not report.ok and report.summary.diagnosis[0] == "wrong-scale"
    assert any("adapter 1: 1.01" in tensor.detail and "adapter 2: 0.99" in tensor.detail for tensor in report.tensors)


def test_a_scale_that_bf16_does_not_hold_is_honest_and_another_is_not(tmp_path: Path) -> None:
    place = Place(tmp_path, r=4, lora_alpha=5)  # 1.25 / ... : 5/4 is held; 4.3/4 is not
    adapter = write_adapter(tmp_path / "odd", place.factors, lora_alpha=4.3)
    scale = 4.3 / 4
    narrow = torch.tensor(scale).bfloat16().item()
    assert narrow != scale
    assert place.judge(naive(place.tensors, place.factors, narrow), adapter).ok
    off = naive(place.tensors, place.factors, scale + 2 * (narrow - scale))
    assert place.judge(off, adapter).summary.diagnosis[0] == "wrong-scale"


# --- numbers that are none, dtypes ---


def test_an_infinity_is_a_fault_also_where_a_cast_makes_it(tmp_path: Path) -> None:
    """7e4 is no number of fp16; a clamped one is not right either."""
    place = Place(tmp_path)
    place.tensors[EMBED][3, 4] = 7e4
    place.base = write_checkpoint(tmp_path / "base", place.tensors)
    merged = {name: tensor.to(F16) for name, tensor in naive(place.tensors, place.factors).items()}
    config = {"model_type": "llama", "dtype": "float16", "tie_word_embeddings": False}
    for value in (torch.inf, 65504.0):
        merged[EMBED][3, 4] = value
        report = place.judge(merged, config=config)
        assert not report.ok and report.summary.diagnosis == ("overflow",)
    place.tensors[UP][3, 4] = 7e4  # in a tensor that is edited
    place.base = write_checkpoint(tmp_path / "base", place.tensors)
    report = place.judge({n: t.to(F16) for n, t in naive(place.tensors, place.factors).items()}, config=config)
    assert next(t for t in report.tensors if t.name == UP).diagnosis == "overflow"


def test_merged_in_bf16_and_cast_to_what_the_config_declares(place: Place) -> None:
    merged = {name: tensor.to(F16) for name, tensor in naive(place.tensors, place.factors).items()}
    config = {"model_type": "llama", "torch_dtype": "float16", "tie_word_embeddings": False}
    assert place.judge(merged, config=config).ok


@pytest.mark.parametrize("name", [UP, EMBED])
def test_one_tensor_alone_in_another_dtype(place: Place, name: str) -> None:
    merged = naive(place.tensors, place.factors)
    merged[name] = merged[name].float()
    report = place.judge(merged)
    assert report.ok and any("stored as F32" in note for note in report.notes)
    assert next(t for t in report.tensors if t.name == name).diagnosis == "dtype-changed"
    assert not place.judge(merged, strict=True).ok
    config = {"model_type": "llama", "dtype": "float32", "tie_word_embeddings": False}
    assert not any("stored as F32" in note for note in place.judge(merged, config=config).notes)
    merged[name] = merged[name].to(F16)
    assert place.judge(merged, config=config | {"dtype": "bfloat16"}).summary.diagnosis == ("dtype-changed",)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


# --- the config ---

CHANGED = [
    ({"architectures": ["MistralForCausalLM"]}, "architectures"),
    ({"num_hidden_layers": 3}, "num_hidden_layers"),
    ({"num_attention_heads": 8}, "num_attention_heads"),
    ({"rope_theta": 5e5}, "rope_theta"),
    ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}, "rope_theta": None}, "rope_theta"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope"),
    ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "quantization_config"),
    ({"some_new_field": 4}, "some_new_field"),
    ({"num_key_value_heads": None}, "num_key_value_heads"),
]  # fmt: skip
FIELDS = LLAMA | {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    "hidden_act": "silu", "some_new_field": 3,
}  # fmt: skip
SAME = [
    {"transformers_version": "5.0"}, {"_name_or_path": "elsewhere"}, {"use_cache": False}, {"dtype": "bfloat16"},
    {"rope_theta": None, "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}, {"attention_dropout": 0.5},
    {"attention_bias": False}, {"bos_token_id": 7}, {"head_dim": 16},
]  # fmt: skip


@pytest.mark.parametrize(("change", "field"), CHANGED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_config_that_computes_something_else(place: Place, change: dict[str, Any], field: str) -> None:
    write_checkpoint(place.root / "base", place.tensors, config=FIELDS)
    merged = naive(place.tensors, place.factors)
    assert place.judge(merged, config=FIELDS).ok
    report = place.judge(merged, config={k: v for k, v in (FIELDS | change).items() if v is not None})
    assert not report.ok and len(report.problems) == 1 and field in report.problems[0], report.problems


@pytest.mark.parametrize("change", SAME, ids=str)
def test_a_config_that_computes_the_same(change: dict[str, Any]) -> None:
    found = {k: v for k, v in (FIELDS | change).items() if v is not None}
    assert list(config_problems(FIELDS, found)) == []


def test_a_config_that_is_not_there(place: Place) -> None:
    merged = write_checkpoint(place.root / "m", naive(place.tensors, place.factors))
    (merged / "config.json").unlink()
    report = verify(merged, place.base, [place.adapter])
    assert not report.ok and "config.json is missing" in report.problems[0]
    single = verify(merged / "model.safetensors", place.base, [place.adapter])
    assert single.ok


def test_fields_of_a_part_that_older_configs_have_at_the_top() -> None:
    old = {"model_type": "qwen2_vl", "hidden_size": 64, "num_hidden_layers": 2, "vision_config": {"depth": 3}}
    new = {
        "model_type": "qwen2_vl",
        "text_config": {"hidden_size": 64, "num_hidden_layers": 2},
        "vision_config": {"depth": 3},
    }
    assert list(config_problems(old, new)) == []
    new["text_config"] = {"hidden_size": 64, "num_hidden_layers": 3}
    assert len(list(config_problems(old, new))) == 1
    new["vision_config"] = {"depth": 4}
    assert len(list(config_problems(old, new))) == 2


# --- which fault it is ---


def test_which_of_two_adapters_is_missing(tmp_path: Path) -> None:
    base, lora, rslora = (FIXTURES / name for name in ("base", "lora", "rslora"))
    for number, (applied, missing) in enumerate([(lora, "adapter 2"), (rslora, "adapter 1")]):
        adaptertool.merge(base, [applied], tmp_path / str(number))
        report = verify(tmp_path / str(number), base, [lora, rslora])
        both = [t for t in report.tensors if t.status == "wrong" and "q_proj" in t.name]
        assert both and all(t.diagnosis == "not-applied" and missing in t.detail for t in both)


def test_merged_and_base_in_the_wrong_order(tmp_path: Path) -> None:
    base, lora = FIXTURES / "base", FIXTURES / "lora"
    adaptertool.merge(base, [lora], tmp_path / "merged")
    report = verify(base, tmp_path / "merged", [lora])
    assert any(
        "did you swap MERGED and BASE?" in problem and "made by adaptertool" in problem for problem in report.problems
    )
    (tmp_path / "merged" / "adaptertool.manifest.json").unlink()
    report = verify(base, tmp_path / "merged", [lora])
    assert any("did you swap MERGED and BASE?" in problem for problem in report.problems)
    assert not any("swap" in problem for problem in verify(base, base, [lora]).problems)


def test_rows_and_tensors_of_another_place(tmp_path: Path) -> None:
    """In a merge whose change is as large as the weights."""
    merged = tmp_path / "merged"
    adaptertool.merge(FIXTURES / "base", [FIXTURES / "lora"], merged)
    file = next(
        path for path in sorted(merged.glob("*.safetensors")) if any("k_proj" in name for name in load_file(path))
    )
    right = load_file(file)
    k = next(name for name in right if "k_proj" in name)
    v, q = k.replace("k_proj", "v_proj"), k.replace("k_proj", "q_proj")
    cases = {
        "of another projection": (right | {k: right[v], v: right[k]}, {k, v}, v),
        "rolled": (right | {q: right[q].roll(1, 0)}, {q}, "shifted by 1"),
        "halves": (right | {q: right[q].roll(48, 0)}, {q}, "shifted by"),
    }
    for case, (tensors, names, said) in cases.items():
        save_file(tensors, file, metadata={"format": "pt"})
        report = verify(merged, FIXTURES / "base", [FIXTURES / "lora"])
        wrong = {t.name: t for t in report.tensors if t.status != "exact"}
        assert wrong.keys() == names, case
        assert all(t.diagnosis == "row-shifted" for t in wrong.values()), (case, wrong)
        assert any(said in t.detail for t in wrong.values()), (case, wrong)


def test_experts_of_a_fused_tensor_in_another_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "tie_word_embeddings": False}
    name = "model.layers.0.mlp.experts.down_proj"
    base = {name: torch.randn(4, 48, 40).bfloat16(), "model.norm.weight": torch.ones(40)}
    write_checkpoint(tmp_path / "base", base, config=config)
    merged = base | {name: base[name][[1, 0, 2, 3]].contiguous()}
    report = verify(write_checkpoint(tmp_path / "merged", merged, config=config), tmp_path / "base")
    assert report.summary.diagnosis == ("row-shifted",)


def test_a_right_base_is_not_called_another(tmp_path: Path) -> None:
    """Where all that is edited is wrong in an unknown way, and all that is not is the base's."""
    place = Place(tmp_path)
    torch.manual_seed(3)
    merged = naive(place.tensors, place.factors)
    noisy = {
        n: (merged[n].float() + 0.3 * torch.randn(SHAPES[n]) * delta(place.factors, n).float()).bfloat16()
        for n in SHAPES
    }
    report = place.judge(merged | noisy)
    assert "wrong-base" not in report.summary.diagnosis and not report.ok


def test_verifying_an_output_leaves_the_inputs_alone(place: Place) -> None:
    before = {path: path.read_bytes() for path in place.root.rglob("*") if path.is_file()}
    place.judge(naive(place.tensors, place.factors, 2.02))
    assert all(path.read_bytes() == content for path, content in before.items())
    shutil.rmtree(place.root / "merged")


def test_json_of_problems(place: Place) -> None:
    report = place.judge(
        naive(place.tensors, place.factors), config={"model_type": "mistral", "tie_word_embeddings": False}
    )
    assert json.loads(json.dumps(report.problems)) and not report.ok


def test_one_row_of_two_names(place: Place) -> None:
    """K and Q have other shapes: data of one is never looked for in the other."""
    merged = naive(place.tensors, place.factors)
    report = place.judge(merged | {K: merged[K].flip(0)})
    assert next(t for t in report.tensors if t.name == K).diagnosis == "row-shifted" and Q != K
