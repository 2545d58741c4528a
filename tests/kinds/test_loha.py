"""LoHa, the kind that is one file: every command against PEFT's own merge, and against rationals."""

from __future__ import annotations

import copy
import dataclasses
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import PREFIX, load, same_bits, write_adapter, write_checkpoint
from layers import DTYPES, check, make_base, peft_merge
from oracle import half_ulp_excess
from peft import LoHaConfig, PeftModel, get_peft_model
from rationals import delta, matrix, require
from safetensors.torch import load_file, save_file
from torch import nn

import adaptertool
from adaptertool.arithmetic import blocks, correct_rounding
from adaptertool.codecs import BF16
from adaptertool.errors import InputError, MismatchError, UnsupportedError
from adaptertool.kinds import loha
from adaptertool.numerics.ops import DIGITS, DOUBLES, INTERVALS

OUT, IN, RANK = 8, 6, 3
ROLES = {"hada_w1_a": (OUT, RANK), "hada_w1_b": (RANK, IN), "hada_w2_a": (OUT, RANK), "hada_w2_b": (RANK, IN)}


def train(folder: Path, zoo: nn.Module, dtype: torch.dtype = torch.float32, **config: Any) -> Path:
    """An adapter as PEFT saves it, with random factors; scales that float32 holds, since PEFT computes in such."""
    settings = {"r": 3, "alpha": 6, "init_weights": False, "target_modules": ["linear", "conv2"]} | config
    tuned = get_peft_model(copy.deepcopy(zoo).float(), LoHaConfig(**settings))
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "hada" in name:
                parameter.data = (torch.randn(parameter.shape) / 2).to(dtype)
            elif parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder)
    return folder


def write(folder: Path, factors: dict[str, torch.Tensor], **config: Any) -> Path:
    folder.mkdir()
    save_file({PREFIX + key: tensor for key, tensor in factors.items()}, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LOHA", "r": RANK, "alpha": 2.0, "target_modules": ["l"], "module_dropout": 0.1, **config}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def one_layer(folder: Path, dtype: torch.dtype = torch.float32, layer: str = "l", **config: Any) -> Path:
    factors = {f"{layer}.{role}": (torch.randn(shape) / 2).to(dtype) for role, shape in ROLES.items()}
    return write(folder, factors, **config)


def base_of(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    return write_checkpoint(folder, {"l.weight": torch.randn(OUT, IN).to(dtype), "rest": torch.randn(4).to(dtype)})


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_merge_is_that_of_peft(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    """A linear layer, and a convolution as its matrix; a rank and an alpha of its own."""
    zoo, base = make_base(tmp_path / "base", dtype)
    adapter = train(tmp_path / "a", zoo, factors, rank_pattern={"conv2": 2}, alpha_pattern={"linear": 4.5})
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", peft_merge(zoo, adapter), 2)


def test_saved_modules_come_with_it(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = train(tmp_path / "a", zoo, modules_to_save=["rest"])
    adaptertool.merge(base, [adapter], tmp_path / "out")
    check(base, tmp_path / "out", peft_merge(zoo, adapter), 4)


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight", ["1", "-0.3"])
def test_every_element_is_the_rounding_of_the_formula(
    tmp_path: Path, dtype: torch.dtype, factors: torch.dtype, weight: str
) -> None:
    """In rationals; with elements in the middle of two stored values, where few bits make such."""
    base, adapter = base_of(tmp_path / "base", dtype), one_layer(tmp_path / "a", factors)
    if factors == torch.bfloat16:
        path = adapter / "adapter_model.safetensors"
        save_file({key: (8 * t).round() / 8 for key, t in load_file(path).items()}, path)
    adaptertool.merge(base, [adapter], tmp_path / "out", weights=[weight])
    own = {key.rpartition(".")[2]: tensor for key, tensor in load(adapter).items()}
    first, second = (delta(own[f"hada_w{n}_b"], own[f"hada_w{n}_a"]) for n in (1, 2))
    times = Fraction(2.0 / RANK) * Fraction(float(weight))
    stored = load(base)["l.weight"]
    exact = [
        [w + times * p * q for w, p, q in zip(*rows, strict=True)]
        for rows in zip(matrix(stored), first, second, strict=True)
    ]
    require(load(tmp_path / "out")["l.weight"], exact, stored)


def test_settling_passes_over_systems_that_lack_an_operation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without double-double and long numbers rationals decide, to the same bytes; where no exact system serves, the
    kind is named."""

    def all_open(values: Any, *rest: Any, **more: Any) -> Any:
        BF16.encode(values, *rest, **more)
        return np.arange(len(values))

    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a", torch.bfloat16)
    adaptertool.merge(base, [adapter], tmp_path / "usual")
    monkeypatch.setattr(blocks, "BY_DTYPE", {"BF16": dataclasses.replace(BF16, encode=all_open)})
    monkeypatch.setattr(correct_rounding, "DOUBLES", dataclasses.replace(DOUBLES, times=None))
    monkeypatch.setattr(correct_rounding, "DIGITS", dataclasses.replace(DIGITS, times=None))
    monkeypatch.setattr(correct_rounding, "UNIT", 2.0**-10)
    report = adaptertool.merge(base, [adapter], tmp_path / "rationals")
    assert report.settled_one_by_one == report.settled > 5
    assert same_bits(*(load(tmp_path / out)["l.weight"] for out in ("usual", "rationals")))
    monkeypatch.setattr(correct_rounding, "INTERVALS", dataclasses.replace(INTERVALS, times=None))
    with pytest.raises(UnsupportedError, match=r"l\.weight: no exact arithmetic .* kind loha .*precision fast"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_precision_fast_is_near(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = train(tmp_path / "a", zoo)
    adaptertool.merge(base, [adapter], tmp_path / "out", precision="fast")
    exact, found = peft_merge(zoo, adapter), load(tmp_path / "out")
    for name in ("linear.weight", "conv2.weight"):
        assert half_ulp_excess(found[name], exact[name]).max() <= 2


def test_wise_as_a_checkpoint_and_as_an_adapter(tmp_path: Path) -> None:
    """The change is proportional to alpha: an adapter with half of it is the half of the way."""
    zoo, base = make_base(tmp_path / "base")
    adapter = train(tmp_path / "a", zoo, alpha_pattern={"linear": 4.5})
    adaptertool.wise(base, adapter, tmp_path / "half", "0.5")
    whole, before = peft_merge(zoo, adapter), load(base)
    exact = {name: before[name].double() + (whole[name] - before[name].double()) / 2 for name in before}
    check(base, tmp_path / "half", exact, 2)
    adaptertool.wise(base, adapter, tmp_path / "adapter", "0.5", as_adapter=True)
    adaptertool.merge(base, [tmp_path / "adapter"], tmp_path / "merged")
    one, other = load(tmp_path / "half"), load(tmp_path / "merged")
    assert all(same_bits(one[name], other[name]) for name in one)
    PeftModel.from_pretrained(copy.deepcopy(zoo), tmp_path / "adapter")  # PEFT takes it


@pytest.mark.parametrize("factors", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_verify_finds_peft_right_and_faults_wrong(tmp_path: Path, dtype: torch.dtype, factors: torch.dtype) -> None:
    base = write_checkpoint(tmp_path / "base", {"l.weight": (torch.randn(64, 96) / 4).to(dtype)})
    tensors = {
        f"l.{role}": (torch.randn(shape) / 4).to(factors)
        for role, shape in {
            "hada_w1_a": (64, 4), "hada_w1_b": (4, 96), "hada_w2_a": (64, 4), "hada_w2_b": (4, 96)
        }.items()
    }  # fmt: skip
    adapter = write(tmp_path / "a", tensors, r=4, alpha=6.0)

    def by_peft(out: str, times: int) -> Path:
        model: Any = nn.ModuleDict({"l": nn.Linear(96, 64, bias=False).to(dtype)})
        model["l"].weight.data = load(base)["l.weight"].clone()
        for _ in range(times):
            loaded = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
            model = loaded.merge_and_unload()
        return write_checkpoint(tmp_path / out, {"l.weight": model.state_dict()["l.weight"]})

    assert adaptertool.verify(by_peft("right", 1), base, [adapter]).ok
    for out, times, fault in (("none", 0, "not-applied"), ("twice", 2, "applied-twice")):
        report = adaptertool.verify(by_peft(out, times), base, [adapter])
        assert not report.ok and [tensor.diagnosis for tensor in report.tensors] == [fault]
    adaptertool.merge(base, [adapter], tmp_path / "scaled", weights=["0.7"])
    report = adaptertool.verify(tmp_path / "scaled", base, [adapter])
    assert not report.ok and report.tensors[0].diagnosis == "wrong-scale"
    assert report.tensors[0].fitted_scale == pytest.approx(0.7, abs=0.02)
    adaptertool.merge(base, [adapter], tmp_path / "ours", verify=True)
    assert adaptertool.verify(tmp_path / "ours", base, [adapter], strict=True).ok


def test_drift_compares_the_weights(tmp_path: Path) -> None:
    report = adaptertool.drift(base_of(tmp_path / "base"), [one_layer(tmp_path / "a")])
    (module,) = report.modules
    assert module.kinds == ("loha",) and module.verdict == "expected" and not module.outputs
    assert module.no_outputs == "of these kinds only the weight is compared"
    assert 0 < module.weight.rel_error < 2.0**-8


def test_inspect_knows_rank_scale_and_spectrum(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base"), one_layer(tmp_path / "a")
    report = adaptertool.inspect(adapter, base)
    assert report.adapter is not None
    (module,) = report.adapter.modules
    assert report.fits and (module.kind, module.rank, module.scale) == ("loha", RANK, 2 / RANK)
    own = {key.rpartition(".")[2]: tensor.double() for key, tensor in load(adapter).items()}
    change = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"]) * (2 / RANK)
    assert module.spectrum is not None
    assert module.spectrum.norm == pytest.approx(float(change.norm()), rel=1e-9)
    assert module.base_norm == pytest.approx(float(load(base)["l.weight"].double().norm()), rel=1e-9)


def test_sum_takes_the_leading_part_where_there_is_a_base(tmp_path: Path) -> None:
    """With a LoRA in it, and at full rank: then it is the sum itself, but for its rounding."""
    base, loha = base_of(tmp_path / "base", torch.float32), one_layer(tmp_path / "a")
    factors = {"l.lora_A.weight": torch.randn(2, IN), "l.lora_B.weight": torch.randn(OUT, 2)}
    lora = write_adapter(tmp_path / "b", factors, r=2, lora_alpha=4)
    with pytest.raises(UnsupportedError, match=r"l is of kind loha.*--base"):
        adaptertool.sum_adapters([loha, lora], tmp_path / "out")
    report = adaptertool.sum_adapters([loha, lora], tmp_path / "out", base=base, rank=6, weights=["1", "0.5"])
    assert report.layers[0].error == pytest.approx(0, abs=1e-5)
    adaptertool.merge(base, [loha, lora], tmp_path / "both", weights=["1", "0.5"])
    adaptertool.merge(base, [tmp_path / "out"], tmp_path / "sum")
    one, other = (load(tmp_path / name)["l.weight"] for name in ("both", "sum"))
    assert torch.allclose(one, other, atol=1e-4)
    config = (tmp_path / "out" / "adapter_config.json").read_text()
    assert '"LORA"' in config and "module_dropout" not in config and '"alpha"' not in config


def test_applied_to_a_model_in_memory(tmp_path: Path) -> None:
    base, adapter = base_of(tmp_path / "base", torch.float32), one_layer(tmp_path / "a")
    adaptertool.merge(base, [adapter], tmp_path / "out", precision="fast")
    model = nn.ModuleDict({"l": nn.Linear(IN, OUT, bias=False)})
    model["l"].weight.data = load(base)["l.weight"].clone()
    with adaptertool.applied(model, adapter):
        assert torch.allclose(model["l"].weight, load(tmp_path / "out")["l.weight"], rtol=1e-6, atol=1e-7)
    assert same_bits(model["l"].weight.data, load(base)["l.weight"])


def test_on_a_part_of_a_fused_projection(tmp_path: Path) -> None:
    """k of q, k and v that are stored together: the rows that it is, and no others."""
    name = "model.layers.0.self_attn"
    fused = torch.randn(3 * OUT, IN)
    base = write_checkpoint(tmp_path / "base", {f"{name}.qkv_proj.weight": fused})
    (base / "config.json").write_text(
        '{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_attention_heads": 2, "hidden_size": 8,'
        ' "num_key_value_heads": 2, "tie_word_embeddings": false}'
    )
    adapter = one_layer(tmp_path / "a", layer=f"{name}.k_proj")
    adaptertool.merge(base, [adapter], tmp_path / "out")
    found = load(tmp_path / "out")[f"{name}.qkv_proj.weight"]
    own = {key.rpartition(".")[2]: tensor.double() for key, tensor in load(adapter).items()}
    change = (own["hada_w1_a"] @ own["hada_w1_b"]) * (own["hada_w2_a"] @ own["hada_w2_b"]) * (2 / RANK)
    assert same_bits(found[:OUT], fused[:OUT]) and same_bits(found[2 * OUT :], fused[2 * OUT :])
    assert half_ulp_excess(found[OUT : 2 * OUT], fused[OUT : 2 * OUT].double() + change).max() <= 1 + 1e-6


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_spectrum_of_any_rank(tmp_path: Path, rank: int) -> None:
    """The singular values of the change itself, whether its factors or its elements are fewer."""
    shapes = {"hada_w1_a": (OUT, rank), "hada_w1_b": (rank, IN), "hada_w2_a": (OUT, rank), "hada_w2_b": (rank, IN)}
    own = {role: torch.randn(shape) for role, shape in shapes.items()}
    adapter = write(tmp_path / "a", {f"l.{role}": tensor for role, tensor in own.items()}, r=rank, alpha=float(rank))
    report = adaptertool.inspect(adapter)
    assert report.adapter is not None and (spectrum := report.adapter.modules[0].spectrum) is not None
    wide = {role: tensor.double() for role, tensor in own.items()}
    change = (wide["hada_w1_a"] @ wide["hada_w1_b"]) * (wide["hada_w2_a"] @ wide["hada_w2_b"])
    values = torch.linalg.svdvals(change)
    assert spectrum.norm == pytest.approx(float(change.norm()), rel=1e-9)
    assert spectrum.stable_rank == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-9)


def test_a_product_that_overflows_beside_zeros_is_no_number(tmp_path: Path) -> None:
    """0·∞ in float32: computed in float64, and never stored as NaN."""
    base = base_of(tmp_path / "base")
    lora = write_adapter(
        tmp_path / "b", {"l.lora_A.weight": torch.randn(2, IN), "l.lora_B.weight": torch.randn(OUT, 2)}, r=2
    )
    for name, config, zero in (("zeros", {}, True), ("alpha", {"alpha": 0.0}, False)):
        factors = {f"l.{role}": torch.full(shape, 2.0**100) for role, shape in ROLES.items()}
        factors |= {f"l.{role}": torch.randn(ROLES[role]) * (not zero) for role in ("hada_w1_a", "hada_w1_b")}
        adapter = write(tmp_path / name, factors, **config)
        adaptertool.merge(base, [lora, adapter], tmp_path / f"{name}-out")
        adaptertool.merge(base, [lora], tmp_path / f"{name}-lora")
        one, other = (load(tmp_path / f"{name}-{out}")["l.weight"] for out in ("out", "lora"))
        assert same_bits(one, other) and bool(one.isfinite().all())


@pytest.mark.parametrize("shape", [(), (OUT,), (0, RANK), (OUT, RANK + 1), (OUT, RANK, 1)], ids=str)
def test_malformed_factors_are_refused_and_described(tmp_path: Path, shape: tuple[int, ...]) -> None:
    base, good = base_of(tmp_path / "base"), one_layer(tmp_path / "good")
    path = one_layer(tmp_path / "a")
    file = path / "adapter_model.safetensors"
    save_file({**load_file(file), f"{PREFIX}l.hada_w1_a": torch.ones(shape)}, file)
    for call in (
        lambda: adaptertool.merge(base, [path], tmp_path / "out"),
        lambda: adaptertool.sum_adapters([path, good], tmp_path / "out", base=base, rank=2),
        lambda: adaptertool.truncate(path, tmp_path / "out", rank=1),
    ):
        with pytest.raises(InputError):
            call()
    report = adaptertool.inspect(path, base)
    assert report.adapter is not None and not report.fits and report.adapter.modules[0].spectrum is None


def test_a_saved_weight_below_it_has_no_sum(tmp_path: Path) -> None:
    """The leading part would hold T − W, and the saved tensor once more."""
    adapter = one_layer(tmp_path / "a")
    file = adapter / "adapter_model.safetensors"
    save_file({**load_file(file), f"{PREFIX}l.base_layer.weight": torch.randn(OUT, IN)}, file)
    base = base_of(tmp_path / "base")
    with pytest.raises(UnsupportedError, match=r"base_layer\.weight is a weight that kind loha changes"):
        adaptertool.sum_adapters([adapter], tmp_path / "out", base=base, rank=2)
    adaptertool.merge(base, [adapter], tmp_path / "merged")


def test_sum_on_a_convolution_is_refused_by_name(tmp_path: Path) -> None:
    zoo, base = make_base(tmp_path / "base")
    adapter = train(tmp_path / "a", zoo, target_modules=["conv2"])
    with pytest.raises(UnsupportedError, match=r"conv2 is of kind loha, on a convolution"):
        adaptertool.sum_adapters([adapter], tmp_path / "out", base=base, rank=2)


def test_what_is_no_loha_is_refused_by_name(tmp_path: Path) -> None:
    base = base_of(tmp_path / "base")
    for number, (config, message) in enumerate(
        [
            ({"use_dora": True}, "use_dora"),
            ({"quite_new": 1}, "quite_new"),
            ({"alpha": "2"}, "alpha"),
            ({"r": 4}, "rank 4"),
        ]
    ):
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [one_layer(tmp_path / f"{number}", **config)], tmp_path / "out")
    adapter = one_layer(tmp_path / "t")
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    for key, message in ((".hada_t1", "has no hada_t2"), (".hada_w3_a", "hada_w3_a"), (".lora_A.weight", "not known")):
        save_file({**tensors, f"{PREFIX}l{key}": torch.ones(2)}, path)
        with pytest.raises(InputError, match=message):
            adaptertool.merge(base, [adapter], tmp_path / "out")
    save_file({key: tensor for key, tensor in tensors.items() if "w2_b" not in key}, path)
    with pytest.raises(InputError, match="has no hada_w2_b"):
        adaptertool.merge(base, [adapter], tmp_path / "out")
    with pytest.raises(MismatchError):
        wide = {f"l.{role}": torch.ones(shape[0] + (shape[0] == OUT), shape[1]) for role, shape in ROLES.items()}
        adaptertool.merge(base, [write(tmp_path / "w", wide)], tmp_path / "out")
    with pytest.raises(UnsupportedError, match=r"l is of kind loha.*sum"):
        adaptertool.truncate(one_layer(tmp_path / "c"), tmp_path / "out", rank=1)
    assert not (tmp_path / "out").exists()


def test_its_factors_in_an_adapter_of_lora_are_refused(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", {f"l.{role}": torch.ones(shape) for role, shape in ROLES.items()}, r=RANK)
    with pytest.raises(UnsupportedError, match=r"hada_w1_a.*not known"):
        adaptertool.merge(base_of(tmp_path / "base"), [adapter], tmp_path / "out")


@pytest.mark.parametrize("sizes", [(-3, 3), (-120, 120), (-505, -495), (300, 520)])
def test_the_product_is_within_its_error(sizes: tuple[int, int]) -> None:
    """Or nothing is known of it: where numbers are next to the ends of the range."""
    rng = np.random.default_rng(abs(sizes[1]))
    shapes = {"hada_w1_a": (5, 3), "hada_w1_b": (3, 7), "hada_w2_a": (5, 2), "hada_w2_b": (2, 7)}
    factors = {role: rng.standard_normal(shape) * 2.0 ** rng.integers(*sizes, shape) for role, shape in shapes.items()}
    with np.errstate(all="ignore"):
        found, error = loha.product(factors)
    exact = {role: np.frompyfunc(Fraction, 1, 1)(factor) for role, factor in factors.items()}
    wanted = (exact["hada_w1_a"] @ exact["hada_w1_b"]) * (exact["hada_w2_a"] @ exact["hada_w2_b"])
    assert (error < np.inf) == (sizes in ((-3, 3), (-120, 120)))
    if error < np.inf:
        assert (abs(np.frompyfunc(Fraction, 1, 1)(found) - wanted) <= Fraction(error)).all()
