"""What the report of a run says of the elements: how many changed, how much of the update the rounding leaves, and what
is said of zeros."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, Tensors, adaptertool, load, lora_factors, write_adapter, write_checkpoint
from sharded import Place as Sharded

from adaptertool import RunReport, merge, wise
from adaptertool.errors import UnchangedError, UsageError
from adaptertool.files.leftovers import left_behind
from adaptertool.spec.tally import Tally, noted, total

Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"


class Place:
    def __init__(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
        self.folder, self.out = folder, folder / "out"
        names = (f"{Q}.weight", f"{K}.weight", "model.norm.weight")
        shapes = ((96, 80), (48, 80), (80,))
        self.tensors = {name: torch.randn(shape).to(dtype) for name, shape in zip(names, shapes, strict=True)}
        self.base = write_checkpoint(folder / "base", self.tensors)
        self.factors: dict[str, torch.Tensor] = {**lora_factors(Q, (96, 80)), **lora_factors(K, (48, 80))}

    def merge(self, factors: Tensors | None = None, config: dict[str, Any] | None = None, **options: Any) -> RunReport:
        self.adapter = write_adapter(self.folder / "adapter", factors or self.factors, **(config or {}))
        return merge(self.base, [self.adapter], self.out, **options)

    def true(self, out: Path | None = None) -> tuple[int, float]:
        """Elements that changed, and the survival over all of them, of what the adapter of this class makes."""
        stored, count, kept, update = load(out or self.out), 0, 0.0, 0.0
        for module in (Q, K):
            before, after = self.tensors[f"{module}.weight"], stored[f"{module}.weight"]
            delta = (
                2 * self.factors[f"{module}.lora_B.weight"].double() @ self.factors[f"{module}.lora_A.weight"].double()
            )
            count += int((before != after).sum())
            kept += float(((after.double() - before.double()) * delta).sum())
            update += float((delta * delta).sum())
        return count, kept / update


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def facts(report: RunReport) -> tuple[object, ...]:
    return report.elements_edited, report.elements_changed, report.survival


# --- counts ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_counts_and_survival(tmp_path: Path, dtype: torch.dtype, precision: str) -> None:
    place = Place(tmp_path, dtype)
    report = place.merge(precision=precision)
    count, survival = place.true()
    assert report.elements_edited == 96 * 80 + 48 * 80
    assert report.elements_changed == (count,)
    assert report.survival is not None and report.survival[0] == pytest.approx(survival, abs=2e-3)


def test_of_a_small_update_little_survives(place: Place) -> None:
    place.factors = {name: factor / 30 for name, factor in place.factors.items()}
    report = place.merge()
    count, survival = place.true()
    assert report.elements_changed == (count,) and survival < 0.5
    assert report.survival is not None and report.survival[0] == pytest.approx(survival, abs=0.05)
    (note,) = report.notes
    assert f"{report.survival[0]:.1%} of the update survives the rounding to BF16" in note and "float32" in note


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 5}, {"verify": True}, {"sha256": True}])
def test_the_same_for_all_threads(place: Place, options: dict[str, Any], tmp_path: Path) -> None:
    first = place.merge(threads=2)
    assert facts(merge(place.base, [place.adapter], tmp_path / "again", **options)) == facts(first)


def test_many_blocks(place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("adaptertool.arithmetic.tiling.BLOCK_ELEMENTS", 320)
    first = place.merge(threads=1)
    assert facts(merge(place.base, [place.adapter], tmp_path / "again", threads=4)) == facts(first)
    count, survival = place.true()
    assert first.elements_changed == (count,)
    assert first.survival == (pytest.approx(survival, abs=1e-4),)  # all of a small block is in the sample


def test_sweeps_tell_each_alpha(tmp_path: Path) -> None:
    report = wise(FIXTURES / "base", FIXTURES / "lora", tmp_path / "out", ["0", "0.5", "1"])
    whole = merge(FIXTURES / "base", [FIXTURES / "lora"], tmp_path / "whole")
    assert report.elements_changed is not None and report.survival is not None
    assert (report.elements_changed[0], report.survival[0]) == (0, None)
    assert (report.elements_changed[2:], report.survival[2:]) == (whole.elements_changed, whole.survival)
    assert report.notes == ()


def test_between_checkpoints(tmp_path: Path) -> None:
    """At 1 tensors are copied whole, and all of the change is there."""
    report = wise(FIXTURES / "base", FIXTURES / "tuned", tmp_path / "out", ["0.5", "1"])
    base, tuned = load(FIXTURES / "base"), load(FIXTURES / "tuned")
    half = load(tmp_path / "out/alpha-0.500")
    counts = [sum(int((base[name] != made[name]).sum()) for name in base) for made in (half, tuned)]
    assert report.elements_changed == tuple(counts)
    assert report.elements_edited == sum(tensor.numel() for tensor in base.values())
    assert report.survival == (pytest.approx(1, abs=0.01), 1.0)


def test_saved_modules_are_counted(place: Place) -> None:
    norm = place.tensors["model.norm.weight"].clone()
    norm[:7] += 1
    report = place.merge({**place.factors, "model.norm.weight": norm})
    assert report.elements_changed == (place.true()[0] + 7,)
    assert report.elements_edited == 96 * 80 + 48 * 80 + 80


def test_methods_and_fisher(tmp_path: Path) -> None:
    base, tuned = FIXTURES / "base", FIXTURES / "tuned"
    before = load(base)
    done = merge(base, [FIXTURES / "lora", tuned], tmp_path / "ties", method="ties", density="0.3")
    weighed = wise(base, tuned, tmp_path / "fisher", "0.5", fisher=(_ones(tmp_path / "F0"), _ones(tmp_path / "F1")))
    for report, name in ((done, "ties"), (weighed, "fisher")):
        after = load(tmp_path / name)
        count = sum(int((before[key].view(torch.int16) != after[key].view(torch.int16)).sum()) for key in before)
        assert report.elements_changed == (count,)
        assert report.survival is not None and report.survival[0] == pytest.approx(1, abs=0.02)


def _ones(folder: Path) -> Path:
    return write_checkpoint(folder, {name: torch.ones_like(tensor) for name, tensor in load(FIXTURES / "base").items()})


def test_a_base_that_is_one_file(place: Place) -> None:
    adapter, out = write_adapter(place.folder / "adapter", place.factors), place.folder / "out.safetensors"
    report = merge(place.base / "model.safetensors", [adapter], out)
    assert (report.elements_edited, report.elements_changed) == (96 * 80 + 48 * 80, (place.true(out)[0],))


def test_adapters_have_no_such_counts(tmp_path: Path) -> None:
    report = wise(FIXTURES / "base", FIXTURES / "lora", tmp_path / "out", "0.5", as_adapter=True)
    assert facts(report) == (None, None, None)
    with pytest.raises(UsageError, match="--fail-if-unchanged is for checkpoints"):
        wise(FIXTURES / "base", FIXTURES / "lora", tmp_path / "o", "0.5", as_adapter=True, fail_if_unchanged=True)


def test_a_vocabulary_of_another_size_has_changed(tmp_path: Path) -> None:
    embedding, config = "model.embed_tokens", {"model_type": "llama", "tie_word_embeddings": False, "vocab_size": 10}
    tensors = {f"{embedding}.weight": torch.randn(10, 6), f"{Q}.weight": torch.randn(8, 6)}
    base = write_checkpoint(tmp_path / "base", tensors, config=config)
    saved = {**lora_factors(Q, (8, 6)), f"{embedding}.weight": torch.randn(12, 6)}
    saved[f"{Q}.lora_B.weight"] = torch.zeros(8, 4)
    report = merge(base, [write_adapter(tmp_path / "adapter", saved)], tmp_path / "out")
    assert (report.elements_edited, report.elements_changed) == (12 * 6 + 8 * 6, (12 * 6,))


def test_a_continued_run_tells_the_same(tmp_path: Path) -> None:
    """The counts of finished files stand in the journal."""
    undisturbed, place = Sharded(tmp_path / "one"), Sharded(tmp_path / "two")
    expected = merge(undisturbed.base, [undisturbed.adapter], undisturbed.out, threads=1)
    assert place.run("kill", 45).returncode == -9
    assert len(place.finished()) >= 2
    report = merge(place.base, [place.adapter], place.out, threads=1)
    assert facts(report) == facts(expected) and report.settled == expected.settled
    assert expected.elements_changed != (0,)


def test_tallies_add_up_in_any_order() -> None:
    tallies = [Tally(1, 2, 1, 1e16, 0.1), Tally(3, 0, 0, 1.0, 0.2), Tally(0, 0, 0, -1e16, 0.3)]
    assert total(tallies) == total(tallies[::-1]) == Tally(4, 2, 1, 1.0, 0.6)
    assert total([]) == Tally()
    assert noted(json.loads(json.dumps(tallies[0]))) == tallies[0]
    for wrong in (None, [], [1, 2, 1, 1.0], [1, 2, 1, 1.0, True], [-1, 0, 0, 0.0, 0.0], [0, 0, 0, 0.0, float("nan")]):
        assert noted(wrong) is None


# --- zeros ---


def zero_rows(factor: torch.Tensor, share: float) -> torch.Tensor:
    left = factor.clone()
    left[round(len(factor) * (1 - share)) :] = 0
    return left


def test_every_lora_b_is_zero(place: Place) -> None:
    factors = {name: factor * (0 if "lora_B" in name else 1) for name, factor in place.factors.items()}
    report = place.merge(factors)
    assert report.elements_changed == (0,) and report.survival == (None,)
    zeros, unchanged = report.notes
    assert f"{place.adapter}: lora_B, or lora_A, is zero throughout in 2 of 2 modules ({K}, ...)" in zeros
    assert unchanged.startswith("0 of 11,520 elements changed")


def test_one_lora_b_is_zero(place: Place) -> None:
    report = place.merge({**place.factors, f"{Q}.lora_B.weight": torch.zeros(96, 4)})
    (note,) = report.notes
    assert f"zero throughout in 1 of 2 modules ({Q})" in note


def test_lora_alpha_is_zero(place: Place) -> None:
    report = place.merge(config={"lora_alpha": 0})
    scale, unchanged = report.notes
    assert "lora_alpha is 0" in scale and "2 of 2 modules" in scale
    assert "0 of 11,520 elements changed" in unchanged


@pytest.mark.parametrize("dora", [False, True])
def test_rows_of_lora_b_that_are_zero(place: Place, dora: bool) -> None:
    """As in a file that one of 8 processes has saved."""
    factors = {name: zero_rows(one, 7 / 8) if "lora_B" in name else one for name, one in place.factors.items()}
    if dora:
        for module in (Q, K):
            norms = torch.linalg.vector_norm(place.tensors[f"{module}.weight"].float(), dim=1)
            factors[f"{module}.lora_magnitude_vector"] = norms
    report = place.merge(factors, {"use_dora": dora})
    (note,) = report.notes
    assert f"{place.adapter}: in 2 of 2 modules ({K}, ...) whole rows of lora_B are zero" in note and "87.5%" in note


def test_all_is_lost_in_rounding(place: Place) -> None:
    report = place.merge(weights=["1e-4"])
    assert report.elements_changed is not None and report.elements_changed[0] < 200
    place.out = place.folder / "second"
    report = place.merge(weights=["1e-12"])
    assert report.elements_changed == (0,)
    assert "elements changed" in report.notes[0] and "BF16" in report.notes[0]


def test_a_sweep_names_the_alpha(place: Place) -> None:
    adapter = write_adapter(place.folder / "adapter", place.factors)
    report = wise(place.base, adapter, place.out, ["0", "1e-9", "1"])
    (note,) = report.notes
    assert "0 of 11,520 elements changed at alpha 1e-09" in note


def test_a_good_merge_has_no_notes(place: Place) -> None:
    assert place.merge().notes == ()


# --- --fail-if-unchanged ---


def test_fail_if_unchanged(place: Place) -> None:
    with pytest.raises(UnchangedError, match=r"0 of 11,520 elements changed.*nothing was published") as stop:
        place.merge(weights=["1e-12"], fail_if_unchanged=True)
    assert stop.value.exit_code == 1
    assert not place.out.exists() and left_behind(place.out) == []
    assert place.merge(fail_if_unchanged=True).elements_changed != (0,)


@pytest.mark.parametrize("alpha", ["0", "1e-12"])
def test_fail_if_unchanged_on_the_command_line(place: Place, alpha: str) -> None:
    write_adapter(place.folder / "adapter", place.factors)
    call = ["wise", "base", "adapter", "--alpha", alpha, "-o", "out", "--fail-if-unchanged", "--json"]
    done = adaptertool(*call, cwd=place.folder)
    assert done.returncode == 1 and "nothing was published" in done.stderr
    assert json.loads(done.stdout)["error"]["type"] == "UnchangedError"
    assert sorted(path.name for path in place.folder.iterdir()) == ["adapter", "base"]


def test_what_the_report_says(place: Place) -> None:
    write_adapter(place.folder / "adapter", place.factors)
    done = adaptertool("merge", "base", "adapter", "-o", "out", cwd=place.folder)
    count, survival = place.true()
    line = f"  changed  {count:,} of 11,520 elements; {survival:.1%} of the update survives the rounding\n"
    assert line in done.stdout and done.stderr == ""
    done = adaptertool("wise", "base", "adapter", "--alpha", "0,1", "-o", "sweep", cwd=place.folder)
    assert f"  changed  0 to {count:,} of 11,520 elements; {survival:.1%}" in done.stdout
