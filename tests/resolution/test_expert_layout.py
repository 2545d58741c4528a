"""lora_B of fused experts in both packings: with one expert's columns after another's, as unsloth trained them, every
command gives what it gives for the same factors packed as PEFT packs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adaptertool, load, lora_factors, same_bits, write_adapter, write_checkpoint
from expert_models import CONFIGS, E_, H_, I_, X, experts, store

import adaptertool as api
from adaptertool.errors import InputError, UnsupportedError, UsageError
from adaptertool.reports.adapters import AdapterReport

RANK = 5  # the rank and the experts differ, so no layout is the other one turned round
PARAMETERS = ["experts.gate_up_proj", "experts.down_proj"]
UNSLOTH = {"auto_mapping": {"base_model_class": "Qwen3MoeForCausalLM", "unsloth_fixed": True}}
BY_EXPERT = {"lora_B_layout": "grouped_by_expert", "num_experts": E_}
DETAIL = {"lora_A_layout": "grouped_by_expert", "parameters": {"gate_up_proj": BY_EXPERT, "down_proj": BY_EXPERT}}
HOW = ["apart", "fused", "transposed", "interleaved"]


def factors() -> dict[str, torch.Tensor]:
    """As PEFT packs them: down_proj outside, gate_up_proj inside."""
    shapes = {X: (H_, I_), f"{X}.base_layer": (2 * I_, H_)}
    return {key: t for name, shape in shapes.items() for key, t in lora_factors(name, shape, E_ * RANK).items()}


def grouped(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        key: t.reshape(len(t), RANK, E_).transpose(1, 2).reshape(t.shape).contiguous() if "lora_B" in key else t
        for key, t in tensors.items()
    }


def write(folder: Path, tensors: dict[str, torch.Tensor], **fields: Any) -> Path:
    return write_adapter(folder, tensors, r=RANK, target_parameters=PARAMETERS, **fields)


@pytest.fixture
def both(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A base; an adapter as PEFT packs it; and the same packed by expert, which its config says."""
    base = write_checkpoint(tmp_path / "base", store(*experts(), "fused"), config=CONFIGS["fused"])
    own = factors()
    says = {"lora_B_layout": "grouped_by_expert", "unsloth_fused_expert_lora": DETAIL} | UNSLOTH
    return base, write(tmp_path / "peft", own), write(tmp_path / "by_expert", grouped(own), **says)


def same(one: Path, other: Path) -> bool:
    a, b = load(one), load(other)
    return a.keys() == b.keys() and all(same_bits(a[name], b[name]) for name in a)


@pytest.mark.parametrize("how", HOW)
def test_the_same_merge_onto_every_way_of_storing_experts(tmp_path: Path, how: str) -> None:
    base = write_checkpoint(tmp_path / "base", store(*experts(), how), config=CONFIGS[how])
    own = factors()
    plain, packed = write(tmp_path / "a", own), write(tmp_path / "b", grouped(own), lora_B_layout="grouped_by_expert")
    for number, adapter in enumerate((plain, packed)):
        api.merge(base, [adapter], tmp_path / str(number), verify=True)
    assert same(tmp_path / "0", tmp_path / "1") and not same(tmp_path / "0", base)


def test_lora_a_on_the_first_dimension(tmp_path: Path) -> None:
    """As by PEFT up to 0.18: the same rule holds for the columns of lora_B."""
    base = write_checkpoint(tmp_path / "base", store(*experts(), "fused"), config=CONFIGS["fused"])
    shapes = {X: (I_, H_), f"{X}.base_layer": (H_, 2 * I_)}
    own = {key: t for name, shape in shapes.items() for key, t in lora_factors(name, shape, E_ * RANK).items()}
    for name, tensors, fields in (("a", own, {}), ("b", grouped(own), {"lora_B_layout": "grouped_by_expert"})):
        api.merge(base, [write(tmp_path / name, tensors, **fields)], tmp_path / f"out-{name}")
    assert same(tmp_path / "out-a", tmp_path / "out-b")


def test_wise_verify_drift_and_inspect(tmp_path: Path, both: tuple[Path, Path, Path]) -> None:
    base, plain, packed = both
    for number, adapter in enumerate((plain, packed)):
        api.wise(base, adapter, tmp_path / f"wise{number}", "0.3")
        api.wise(base, adapter, tmp_path / f"lighter{number}", "0.3", as_adapter=True)
        api.merge(base, [tmp_path / f"lighter{number}"], tmp_path / f"merged{number}")
    assert same(tmp_path / "wise0", tmp_path / "wise1") and same(tmp_path / "merged0", tmp_path / "merged1")
    assert api.verify(tmp_path / "wise0", base, [packed], alpha="0.3").ok
    drifts = [api.drift(base, [adapter]).modules for adapter in (plain, packed)]
    assert drifts[0] == drifts[1]
    spectra = [[one.spectrum for one in api.inspect(path, base).adapter.modules] for path in (plain, packed)]  # type: ignore[union-attr]
    assert spectra[0] == spectra[1] and spectra[0][0] is not None


@pytest.mark.parametrize("cut", [{"rank": 2}, {"rank": RANK}])
def test_sum_and_truncate_write_as_peft_packs(
    tmp_path: Path, both: tuple[Path, Path, Path], cut: dict[str, int]
) -> None:
    base, plain, packed = both
    reports: list[AdapterReport] = []
    for number, adapter in enumerate((plain, packed)):
        reports.append(api.truncate(adapter, tmp_path / f"t{number}", base=base, **cut))
        api.sum_adapters([adapter, plain], tmp_path / f"s{number}", weights=["0.5", "2"])
        api.sum_adapters([adapter, plain], tmp_path / f"m{number}", method="ties", density="0.5")
        api.sum_adapters([adapter, plain], tmp_path / f"c{number}", method="ties_svd", density="0.5")
    assert reports[0].layers == reports[1].layers  # type: ignore[attr-defined]
    for kind in "tsmc":
        assert same(tmp_path / f"{kind}0", tmp_path / f"{kind}1")
    fields = json.loads((tmp_path / "t1" / "adapter_config.json").read_text())
    assert fields["lora_B_layout"] == "rank_major" and "unsloth_fused_expert_lora" not in fields
    again = api.merge(base, [tmp_path / "t1"], tmp_path / "merged")
    assert not any("lora_B" in note for note in again.notes)


def test_where_the_config_does_not_say_the_user_does(tmp_path: Path, both: tuple[Path, Path, Path]) -> None:
    base, plain, packed = both
    left = write(tmp_path / "left", grouped(factors()), **UNSLOTH)
    said = json.loads((packed / "adapter_config.json").read_text())
    for key in ("lora_B_layout", "unsloth_fused_expert_lora"):
        del said[key]
    (packed / "adapter_config.json").write_text(json.dumps(said))
    note = api.merge(base, [packed], tmp_path / "peft-reads").notes
    assert any(
        "unsloth wrote it, and it has no lora_B_layout: lora_B of down_proj, gate_up_proj is read as " in n
        for n in note
    )
    api.merge(base, [plain], tmp_path / "wanted")
    assert not same(tmp_path / "peft-reads", tmp_path / "wanted")
    notes = api.merge(base, [packed], tmp_path / "out", expert_layout="grouped_by_expert").notes
    assert same(tmp_path / "out", tmp_path / "wanted")
    assert any("is read as grouped_by_expert (--expert-layout)" in n for n in notes)
    api.truncate(packed, tmp_path / "small", rank=RANK, expert_layout="grouped_by_expert")
    assert same(tmp_path / "small", plain)
    api.wise(base, packed, tmp_path / "lighter", 1, as_adapter=True, expert_layout="grouped_by_expert")
    api.merge(base, [tmp_path / "lighter"], tmp_path / "again")
    assert same(tmp_path / "again", tmp_path / "wanted")
    with pytest.raises(UsageError, match="expert_layout is rank_major or grouped_by_expert, not 'other'"):
        api.merge(base, [left], tmp_path / "no", expert_layout="other")
    result = adaptertool("merge", base, packed, "-o", tmp_path / "cli", "--expert-layout", "grouped_by_expert")
    assert result.returncode == 0 and same(tmp_path / "cli", tmp_path / "wanted")


def test_what_the_config_says_counts(tmp_path: Path, both: tuple[Path, Path, Path]) -> None:
    base, plain, packed = both
    notes = api.merge(base, [packed], tmp_path / "out", expert_layout="rank_major").notes
    assert any(
        "it says lora_B_layout grouped_by_expert, which counts, not --expert-layout rank_major" in n for n in notes
    )
    api.merge(base, [plain], tmp_path / "wanted")
    assert same(tmp_path / "out", tmp_path / "wanted")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_B_layout": "mixed"}, "lora_B_layout mixed is not known; rank_major, grouped_by_expert are"),
        ({"lora_B_layout": 3}, "lora_B_layout 3 is not known"),
        ({"lora_B_layout": "rank_major", "unsloth_fused_expert_lora": DETAIL}, "and grouped_by_expert for gate_up"),
        ({"unsloth_fused_expert_lora": {"lora_A_layout": "rank_major"}}, "lora_A_layout rank_major is not known"),
        ({"unsloth_fused_expert_lora": {"parameters": {"down_proj": {"lora_B_layout": "mixed"}}}},
         "lora_B_layout mixed of down_proj is not known"),
        ({"unsloth_fused_expert_lora": [1]}, "must be an object with parameters"),
        ({"unsloth_fused_expert_lora": {"parameters": {"down_proj": 1}}}, "must be an object with parameters"),
    ],
)  # fmt: skip
def test_layouts_that_are_not_known(
    tmp_path: Path, both: tuple[Path, Path, Path], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises((UnsupportedError, InputError), match=message):
        api.merge(both[0], [write(tmp_path / "a", factors(), **fields)], tmp_path / "out")


def test_in_a_model_in_memory(tmp_path: Path) -> None:
    class Experts(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            gate, up, down = experts()
            self.gate_up_proj = torch.nn.Parameter(torch.cat([gate, up], dim=1))
            self.down_proj = torch.nn.Parameter(down)

    model = torch.nn.ModuleDict({"experts": Experts()})
    own = {key.replace(X, "experts"): tensor for key, tensor in factors().items()}
    plain, packed = write(tmp_path / "a", own), write(tmp_path / "b", grouped(own), **UNSLOTH)
    with api.applied(model, plain):
        wanted = [parameter.detach().clone() for parameter in model.parameters()]
    with api.applied(model, packed, expert_layout="grouped_by_expert"):
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), wanted, strict=True))


def test_many_experts_are_read_in_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptertool.codecs.tensors.WINDOW", 64)
    base = write_checkpoint(tmp_path / "base", store(*experts(), "fused"), config=CONFIGS["fused"])
    own = factors()
    for name, tensors, fields in (("a", own, {}), ("b", grouped(own), {"lora_B_layout": "grouped_by_expert"})):
        api.merge(base, [write(tmp_path / name, tensors, **fields)], tmp_path / f"out-{name}")
    assert same(tmp_path / "out-a", tmp_path / "out-b")
