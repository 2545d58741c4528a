"""`verify`: planted faults are found and named; honest merges in any of the usual recipes are never called wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from candidates import (
    BF16,
    EMBED,
    F32,
    NORM,
    Q1,
    SHAPES,
    UP,
    UP1,
    K,
    Place,
    Q,
    Tensors,
    delta,
    naive,
    verdict,
)
from conftest import FIXTURES, main_here, write_adapter, write_checkpoint

import adaptertool
from adaptertool.errors import InputError, UsageError
from adaptertool.files import staging
from adaptertool.render.verify import verify_markdown, verify_text
from adaptertool.tasks.verify import verify

# --- what we merge ourselves ---


@pytest.mark.parametrize("adapter", ["lora", "rslora"])
def test_our_own_merge_is_exact(tmp_path: Path, adapter: str) -> None:
    adaptertool.merge(FIXTURES / "base", [FIXTURES / adapter], tmp_path / "out")
    report = verify(tmp_path / "out", FIXTURES / "base", [FIXTURES / adapter], strict=True)
    assert report.ok and report.summary.exact == len(report.tensors) == 39
    assert all(tensor.max_ulp == 0 and tensor.rel_error == 0 for tensor in report.tensors)


def test_our_own_interpolations_are_exact(tmp_path: Path) -> None:
    for number, (tuned, alpha) in enumerate([("tuned", "0.3"), ("lora", "0.7"), ("tuned", "0"), ("lora", "1")]):
        adaptertool.wise(FIXTURES / "base", FIXTURES / tuned, tmp_path / str(number), alpha)
        report = verify(tmp_path / str(number), FIXTURES / "base", [FIXTURES / tuned], alpha=alpha, strict=True)
        assert report.ok
        wrong = verify(tmp_path / str(number), FIXTURES / "base", [FIXTURES / tuned], alpha="0.5")
        assert not wrong.ok
        assert wrong.summary.diagnosis[0] in ("wrong-scale", "not-applied", "applied-twice")


# --- planted faults: all found, and named ---

Planted = Callable[[Place, Tensors], Tensors]


def at(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Planted:
    return lambda _, merged: merged | {name: change(merged[name].clone())}


def scaled(factor: float) -> Planted:
    return lambda place, _: naive(place.tensors, place.factors, 2.0 * factor)


def unapplied(*names: str) -> Planted:
    return lambda place, merged: merged | {name: place.tensors[name] for name in names}


def one_element(tensor: torch.Tensor) -> torch.Tensor:
    tensor.view(-1)[17] *= 1.5
    return tensor


def not_a_number(tensor: torch.Tensor) -> torch.Tensor:
    tensor[3, 5] = float("nan")
    return tensor


def turned_delta(place: Place, merged: Tensors) -> Tensors:
    return merged | {Q: (place.tensors[Q].double() + delta(place.factors, Q).T).to(BF16)}


def exchanged_deltas(place: Place, merged: Tensors) -> Tensors:
    """As where layers are sorted by the letters of their names: layer 10 gets what belongs to layer 2."""
    return merged | {
        name: (place.tensors[name].double() + delta(place.factors, other)).to(BF16)
        for name, other in ((Q, Q1), (Q1, Q))
    }


def another_base(place: Place, _: Tensors) -> Tensors:
    torch.manual_seed(9)
    base = {name: (t.float() * (1 + 0.02 * torch.randn(t.shape))).to(BF16) for name, t in place.tensors.items()}
    return naive(base, place.factors)


def a_rank_too_few(place: Place, _: Tensors) -> Tensors:
    cut = {name: factor[:3] if "lora_A" in name else factor[:, :3] for name, factor in place.factors.items()}
    return naive(place.tensors, cut)


def half_applied(place: Place, merged: Tensors) -> Tensors:
    return merged | {UP: torch.cat([merged[UP][:100], place.tensors[UP][100:]])}


FAULTS: dict[str, tuple[Planted, str, tuple[str, ...]]] = {
    "nothing applied": (unapplied(*SHAPES), "not-applied", tuple(SHAPES)),
    "a module left out": (unapplied(K), "not-applied", (K,)),
    "some rows left out": (half_applied, "not-applied", (UP,)),
    "applied twice": (scaled(2), "applied-twice", tuple(SHAPES)),
    "subtracted": (scaled(-1), "negated", tuple(SHAPES)),
    "half of the scale": (scaled(0.5), "wrong-scale", tuple(SHAPES)),
    "alpha for alpha/r": (scaled(4), "wrong-scale", tuple(SHAPES)),
    "five percent too much": (scaled(1.05), "wrong-scale", tuple(SHAPES)),
    "delta transposed": (turned_delta, "transposed", (Q,)),
    "weight transposed": (at(Q, lambda t: t.T.contiguous()), "transposed", (Q,)),
    "stored (in, out)": (at(UP, lambda t: t.T.contiguous()), "transposed", (UP,)),
    "untouched one transposed": (at(EMBED, lambda t: t.T.contiguous()), "transposed", (EMBED,)),
    "rows shifted": (at(UP, lambda t: t.roll(1, 0)), "row-shifted", (UP,)),
    "untouched rows shifted": (at(EMBED, lambda t: t.roll(-2, 0)), "row-shifted", (EMBED,)),
    "data of another tensor": (lambda _, m: m | {Q: m[Q1], Q1: m[Q]}, "row-shifted", (Q, Q1)),
    "change of another tensor": (exchanged_deltas, "row-shifted", (Q, Q1)),
    "another base": (another_base, "wrong-base", (*SHAPES, EMBED, NORM)),
    "not a number": (at(UP, not_a_number), "nan", (UP,)),
    "not a number, untouched": (at(EMBED, not_a_number), "nan", (EMBED,)),
    "one element": (at(K, one_element), "unknown", (K,)),
    "one element, untouched": (at(EMBED, one_element), "unknown", (EMBED,)),
    "an untouched norm": (at(NORM, lambda t: t + 1), "unknown", (NORM,)),
    "more rows": (at(EMBED, lambda t: torch.cat([t, t[:4]])), "shape-changed", (EMBED,)),
    "fewer columns": (at(UP, lambda t: t[:, :60]), "shape-changed", (UP,)),
    "through fp8": (at(UP, lambda t: t.to(torch.float8_e4m3fn).to(BF16)), "lower-precision", (UP,)),
    "another dtype": (at(UP, lambda t: t.to(torch.int32)), "dtype-changed", (UP,)),
    "a rank too few": (a_rank_too_few, "unknown", tuple(SHAPES)),
    "zeros": (at(K, torch.zeros_like), "unknown", (K,)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_planted(place: Place, fault: str) -> None:
    plant, code, names = FAULTS[fault]
    report = place.judge(plant(place, naive(place.tensors, place.factors)))
    wrong = {t.name: t for t in report.tensors if t.status not in ("exact", "rounding")}
    assert not report.ok
    assert wrong.keys() == set(names)
    assert {tensor.diagnosis for tensor in wrong.values()} == {code}, wrong
    assert all((t.status == "untouched_changed") == (n in (EMBED, NORM)) or t.max_ulp is None for n, t in wrong.items())


@pytest.mark.parametrize("factor", [0.5, 1.05, 4.0])
def test_the_fitted_scale(place: Place, factor: float) -> None:
    report = place.judge(naive(place.tensors, place.factors, 2.0 * factor))
    assert {round(tensor.fitted_scale, 2) for tensor in report.tensors if tensor.status == "wrong"} == {factor}


def test_missing_and_extra(place: Place) -> None:
    merged = naive(place.tensors, place.factors)
    del merged[K]
    report = place.judge(merged | {"more.weight": torch.ones(3)})
    assert not report.ok
    assert (verdict(report, K).status, verdict(report, "more.weight").status) == ("missing", "extra")


def test_planted_rslora_ignored(tmp_path: Path) -> None:
    place = Place(tmp_path, use_rslora=True)
    assert place.judge(naive(place.tensors, place.factors, 4.0)).ok
    assert place.judge(naive(place.tensors, place.factors, 2.0)).summary.diagnosis == ("rslora-ignored",)


def test_planted_alpha_pattern_ignored(tmp_path: Path) -> None:
    place = Place(tmp_path, alpha_pattern={"layers.1.up": 32})
    right = naive(place.tensors, place.factors)
    assert place.judge(right).summary.diagnosis == ("alpha-pattern-ignored",)
    assert place.judge(right | {UP1: naive(place.tensors, place.factors, 8.0)[UP1]}).ok


def test_planted_in_dora(tmp_path: Path) -> None:
    place = Place(tmp_path)
    magnitudes = {
        f"{name.removesuffix('.weight')}.lora_magnitude_vector": place.tensors[name].float().norm(dim=1) * 1.2
        for name in SHAPES
    }
    adapter = write_adapter(tmp_path / "dora", place.factors | magnitudes, use_dora=True)
    combined = {n: place.tensors[n].double() + delta(place.factors, n) for n in SHAPES}
    right = {
        n: (v * (magnitudes[f"{n.removesuffix('.weight')}.lora_magnitude_vector"].double() / v.norm(dim=1))[:, None])
        for n, v in combined.items()
    }
    store = {n: v.to(BF16) for n, v in right.items()}
    assert place.judge(place.tensors | store, adapter).ok
    ignored = place.judge(place.tensors | {n: v.to(BF16) for n, v in combined.items()}, adapter)
    assert ignored.summary.diagnosis == ("magnitude-ignored",)
    columns = {
        n: (v * (1.2 * place.tensors[n].double().norm(dim=0) / v.norm(dim=0))).to(BF16) for n, v in combined.items()
    }
    assert not place.judge(place.tensors | columns, adapter).ok


def test_planted_narrow_dtype_on_the_way(tmp_path: Path) -> None:
    place = Place(tmp_path, F32)
    right = naive(place.tensors, place.factors)
    assert place.judge(right).ok
    report = place.judge({name: tensor.to(BF16).float() for name, tensor in right.items()})
    assert report.summary.diagnosis == ("dtype-changed",)
    assert report.summary.wrong == len(SHAPES) and report.summary.untouched_changed == 2


def test_planted_saved_module_ignored(tmp_path: Path) -> None:
    place = Place(tmp_path)
    saved = {EMBED: torch.randn(96, 64), "norm.weight": torch.ones(64)}
    adapter = write_adapter(tmp_path / "saved", place.factors | saved, modules_to_save=["embed", "norm"])
    merged = naive(place.tensors, place.factors)
    report = place.judge(merged, adapter)
    assert {t.name: t.diagnosis for t in report.tensors if t.status == "wrong"} == dict.fromkeys(saved, "not-applied")
    assert place.judge(merged | {name: tensor.to(BF16) for name, tensor in saved.items()}, adapter).ok


def test_planted_in_what_should_be_a_copy(tmp_path: Path) -> None:
    """Of a tensor of the adapter, or of the tuned checkpoint: not even rounding is at work there."""
    place = Place(tmp_path)
    saved = {EMBED: place.tensors[EMBED].clone()}
    saved[EMBED][5, 6] += 0.5
    adapter = write_adapter(tmp_path / "saved", place.factors | saved, modules_to_save=["embed"])
    merged = naive(place.tensors, place.factors)
    assert place.judge(merged | saved, adapter).ok
    assert verdict(place.judge(merged, adapter), EMBED).status == "wrong"
    tuned = write_checkpoint(tmp_path / "tuned", merged)
    assert place.judge(merged, tuned, alpha=1).ok
    merged[UP][7, 8] = torch.nextafter(merged[UP][7, 8], torch.tensor(9.0, dtype=BF16))
    assert verdict(place.judge(merged, tuned, alpha=1), UP).status == "wrong"


def test_planted_tie_flag(tmp_path: Path) -> None:
    names = {"model.embed_tokens.weight": torch.randn(32, 16), "model.norm.weight": torch.ones(16)}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    base = write_checkpoint(tmp_path / "base", names, config=config)
    factors = {"lm_head.lora_A.weight": torch.randn(4, 16), "lm_head.lora_B.weight": torch.randn(32, 4)}
    adapter = write_adapter(tmp_path / "adapter", factors, target_modules=["lm_head"])
    adaptertool.merge(base, [adapter], tmp_path / "out")
    assert verify(tmp_path / "out", base, [adapter]).ok
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    report = verify(tmp_path / "out", base, [adapter])
    assert not report.ok and "tie_word_embeddings" in report.problems[0]
    head = (
        names["model.embed_tokens.weight"].double()
        + 2 * factors["lm_head.lora_B.weight"].double() @ factors["lm_head.lora_A.weight"].double()
    ).float()
    both = write_checkpoint(tmp_path / "both", names | {"model.embed_tokens.weight": head}, config=config)
    report = verify(both, base, [adapter])  # as PEFT merges it: the embedding is changed too
    assert verdict(report, "model.embed_tokens.weight").status == "untouched_changed"


# --- the command ---


def test_exit_codes_and_json(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    right = write_checkpoint(tmp_path / "right", naive(place.tensors, place.factors))
    summary = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    assert main_here(["verify", str(right), str(place.base), str(place.adapter), "--json"], monkeypatch) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "verify/1" and report["ok"] is True
    assert set(report["summary"]) == {
        "exact", "rounding", "wrong", "untouched_changed", "missing", "extra", "diagnosis"
    }  # fmt: skip
    junit = tmp_path / "junit.xml"
    arguments = ["verify", str(place.base), str(place.base), str(place.adapter), "--junit", str(junit)]
    assert main_here(arguments, monkeypatch) == 1
    printed = capsys.readouterr().out
    assert "WRONG" in printed and "not-applied" in printed
    assert junit.read_text().count("<failure") == len(SHAPES)
    assert "| `layers.0.q.weight` | wrong | not-applied |" in summary.read_text()
    (right / "model.safetensors").write_bytes(b"nothing")
    assert main_here(["verify", str(right), str(place.base), str(place.adapter)], monkeypatch) == 3
    assert main_here(["verify", str(tmp_path / "none"), str(place.base)], monkeypatch) == 3


def test_wrong_arguments(place: Place) -> None:
    with pytest.raises(UsageError, match="with an alpha there is one"):
        verify(place.base, place.base, [place.adapter, place.adapter], alpha="0.5")
    with pytest.raises(UsageError, match="2 weights for 1 adapter"):
        verify(place.base, place.base, [place.adapter], weights=[1, 2])
    with pytest.raises(InputError, match="is not an adapter"):
        verify(place.base, place.base, [place.base])


def test_unreadable_names_are_escaped(place: Place) -> None:
    report = place.judge(place.tensors | {"evil\x1b[2J|`": torch.ones(2)})
    for text in (verify_text(report, every_tensor=True), verify_markdown(report)):
        assert "\x1b" not in text


def test_merge_verifies_what_it_wrote(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["merge", str(place.base), str(place.adapter), "-o", str(tmp_path / "out"), "--verify"]
    assert main_here(arguments, monkeypatch) == 0
    assert "verified" in capsys.readouterr().out
    real = staging.Staging.finish

    def damaging(self: Any, part: Path, name: str, digest: str, *more: Any) -> None:
        if name.endswith(".safetensors"):
            data = bytearray(part.read_bytes())
            data[-3] ^= 0x10
            part.write_bytes(data)
        real(self, part, name, digest, *more)

    monkeypatch.setattr(staging.Staging, "finish", damaging)
    assert main_here([*arguments[:4], str(tmp_path / "bad"), "--verify"], monkeypatch) == 4
    assert not (tmp_path / "bad").exists()
    assert "not what was computed" in capsys.readouterr().err
