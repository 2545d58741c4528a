"""Weights by tensor and layer: each output tensor is that of the dense formula with its own weights."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blended import blended
from conftest import load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from oracle import fractions, half_ulp_excess, round_fraction
from tied_models import LLAMA, E
from tied_models import weights as weights_of

import adaptertool
from adaptertool.arguments import settings_for
from adaptertool.errors import InputError, UnsupportedError, UsageError
from adaptertool.formats.checkpoints import open_checkpoint
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.planning.blend import plan_blend
from adaptertool.planning.schedules import parse_weights
from adaptertool.planning.settings import ByTensor
from adaptertool.planning.sources import Reading, open_source
from adaptertool.resolution.renaming import renaming
from adaptertool.spec.plan import Blend
from adaptertool.spec.schedule import Rule, Schedule

LAYERS, MODULES = 4, ("self_attn.q_proj", "mlp.up_proj")
NAMES = [f"model.layers.{layer}.{module}" for layer in range(LAYERS) for module in MODULES]
RULES = ["0.7", "0.3", "layers.0-1.mlp=0.5,1", "self_attn=0:1,"]
SCALE = 2


def wanted(adapter: int, name: str) -> Fraction:
    """The weight that RULES give, said once more."""
    layer, mlp = int(name.split(".")[2]), "mlp" in name
    if mlp and layer < 2:
        return Fraction(1, 2) if adapter == 0 else Fraction(1)
    if not mlp and adapter == 0:
        return Fraction(layer, LAYERS - 1)
    return Fraction(7, 10) if adapter == 0 else Fraction(3, 10)


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tensors = {f"{name}.weight": torch.randn(6, 5).to(torch.bfloat16) for name in NAMES}
        tensors |= {
            "model.embed_tokens.weight": torch.randn(7, 5).bfloat16(),
            "model.norm.weight": torch.ones(5).bfloat16(),
        }
        self.base = write_checkpoint(folder / "base", tensors, shards=2)
        self.factors = [{name: lora_factors(name, (6, 5), 2) for name in NAMES} for _ in range(2)]
        self.adapters = [
            write_adapter(
                folder / f"adapter{number}",
                {key: tensor for own in some.values() for key, tensor in own.items()},
                r=2,
                lora_alpha=4,
                target_modules=["q_proj", "up_proj"],
            )
            for number, some in enumerate(self.factors)
        ]

    def delta(self, number: int, name: str) -> list[Fraction]:
        a, b = ([fractions(row) for row in self.factors[number][name][f"{name}.lora_{which}.weight"]] for which in "AB")
        return [SCALE * sum(x * a[k][j] for k, x in enumerate(row)) for row in b for j in range(5)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_merge(place: Place) -> None:
    """Every element is the correct rounding of W + Σ w·Δ, w as float64."""
    out = place.folder / "out"
    report = adaptertool.merge(place.base, place.adapters, out, weights=RULES, verify=True)
    base, made = load(place.base), load(out)
    for name in NAMES:
        total = fractions(base[f"{name}.weight"])
        for number in range(2):
            weight = Fraction(float(wanted(number, name)))
            total = [x + weight * y for x, y in zip(total, place.delta(number, name), strict=True)]
        assert fractions(made[f"{name}.weight"]) == [round_fraction(x, torch.bfloat16) for x in total], name
    assert same_bits(made["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    assert report.weights == (0.7, 0.3) and report.weight_rules == ("layers.0-1.mlp=0.5,1", "self_attn=0:1,")
    recipe = json.loads((out / "adaptertool.manifest.json").read_text())["recipe"]
    again = [*(one["weight"] for one in recipe["sources"]), *recipe["weight_rules"]]
    adaptertool.merge(place.base, place.adapters, place.folder / "again", weights=again)
    assert snapshot(place.folder / "again") == snapshot(out)


def test_records_and_texts_are_the_same(place: Place) -> None:
    schedules = [
        Schedule(
            Decimal("0.7"), (Rule("layers.0-1.mlp", (Decimal("0.5"),)), Rule("self_attn", (Decimal(0), Decimal(1))))
        ),
        Schedule(Decimal("0.3"), (Rule("layers.0-1.mlp", (Decimal(1),)),)),
    ]
    assert parse_weights(RULES, 2) == schedules
    assert adaptertool.plan_merge(
        place.base, place.adapters, place.folder / "out", place.folder / "a.json", weights=schedules
    )
    adaptertool.plan_merge(place.base, place.adapters, place.folder / "out", place.folder / "b.json", weights=RULES)
    one, other = (json.loads((place.folder / name).read_text()) for name in ("a.json", "b.json"))
    assert one == other


def test_verify_names_a_wrong_layer(place: Place) -> None:
    out = place.folder / "out"
    adaptertool.merge(place.base, place.adapters, out, weights=RULES)
    assert adaptertool.verify(out, place.base, place.adapters, weights=RULES).ok
    other = [*RULES[:2], "layers.0-2.mlp=0.5,1", RULES[3]]
    report = adaptertool.verify(out, place.base, place.adapters, weights=other)
    assert [one.name for one in report.tensors if one.status == "wrong"] == ["model.layers.2.mlp.up_proj.weight"]


@pytest.mark.parametrize("method", ["linear", "mergekit_ties"])
def test_methods(place: Place, method: str) -> None:
    adaptertool.merge(place.base, place.adapters, out := place.folder / "out", weights=RULES, method=method)
    base, made = load(place.base), load(out)
    for name in NAMES:
        w = base[f"{name}.weight"].double().numpy()
        tuned = [w + np.array(list(map(float, place.delta(number, name)))).reshape(6, 5) for number in range(2)]
        exact = blended(method, w, tuned, [float(wanted(number, name)) for number in range(2)], {})
        assert half_ulp_excess(made[f"{name}.weight"], torch.from_numpy(exact)).max() <= 1 + 1e-9


def test_settings_of_methods_by_tensor(place: Place) -> None:
    base = open_checkpoint(place.base)
    with renaming(()) as own:
        sources = [open_source(path, base, Reading(), own) for path in place.adapters]
    blend = Blend("ties", (1.0, 1.0), settings_for(METHOD_BY_NAME["ties"], {"density": 1}))

    def planned(*numbers: str) -> set[tuple[str, object]]:
        rule = Rule("mlp", tuple(map(Decimal, numbers)))
        by_tensor = ByTensor({"density": [Schedule(Decimal("0.5"), (rule,))]}, ())
        plan = plan_blend(base, sources, [1.0, 1.0], blend, settings=by_tensor)
        steps = [step for step in plan.steps() if step.edits]
        return {(step.spec.name.split(".", 2)[2], step.blend.settings["density"]) for step in steps if step.blend}

    mlp = {(f"{layer}.mlp.up_proj.weight", 1 - layer / 4) for layer in range(4)}
    assert planned("1", "0.25") == mlp | {(f"{layer}.self_attn.q_proj.weight", 0.5) for layer in range(4)}
    with pytest.raises(UsageError, match=r"density is .* not 1\.5, as for"):
        planned("1.5")


@pytest.mark.parametrize("source", ["adapter", "checkpoint"])
def test_wise(place: Place, source: str) -> None:
    """W + α·f·(T − W), with α·f as the decimals are, rounded once; α = 0 is the base."""
    adaptertool.merge(place.base, place.adapters[:1], tuned := place.folder / "tuned")
    to = place.adapters[0] if source == "adapter" else tuned
    rules, out = ["0.7", "mlp=0:0.9"], place.folder / "out"
    adaptertool.wise(place.base, to, out, [0, "0.3", 1], weights=rules, verify=True)
    base, target = load(place.base), load(tuned)
    assert all(same_bits(base[name], one) for name, one in load(out / "alpha-0.000").items())
    for alpha, folder in ((Fraction(3, 10), "alpha-0.300"), (Fraction(1), "alpha-1.000")):
        made = load(out / folder)
        for name in NAMES:
            layer = int(name.split(".")[2])
            factor = Fraction(9, 10) * Fraction(layer, 3) if "mlp" in name else Fraction(7, 10)
            share, w = Fraction(float(alpha * factor)), fractions(base[f"{name}.weight"])
            change = place.delta(0, name)
            if source == "checkpoint":
                change = [x - y for x, y in zip(fractions(target[f"{name}.weight"]), w, strict=True)]
            exact = [round_fraction(x + share * y, torch.bfloat16) for x, y in zip(w, change, strict=True)]
            assert fractions(made[f"{name}.weight"]) == exact, name
    assert adaptertool.verify(out / "alpha-0.300", place.base, [to], alpha="0.3", weights=rules).ok
    assert not adaptertool.verify(out / "alpha-0.300", place.base, [to], alpha="0.3", weights=["0.7"]).ok


def test_only_and_exclude(place: Place) -> None:
    whole, some = place.folder / "whole", place.folder / "some"
    adaptertool.merge(place.base, place.adapters, whole)
    report = adaptertool.merge(place.base, place.adapters, some, only=["layers.1-2"], exclude=["/q_proj/"], verify=True)
    base, full = load(place.base), load(whole)
    edited = {f"model.layers.{layer}.mlp.up_proj.weight" for layer in (1, 2)}
    for name, tensor in load(some).items():
        assert same_bits(tensor, full[name] if name in edited else base[name])
    assert report.tensors_edited == 2
    assert sum("6 of the 8 tensors that it changes stay" in note for note in report.notes) == 2
    sources: dict[str, Any] = {"only": ["layers.1-2"], "exclude": ["/q_proj/"]}
    assert adaptertool.verify(some, place.base, place.adapters, **sources).ok
    assert not adaptertool.verify(some, place.base, place.adapters).ok
    adaptertool.merge(place.base, place.adapters, ties := place.folder / "ties", method="linear", **sources)
    assert {n for n, one in load(ties).items() if not same_bits(one, base[n])} == edited
    adaptertool.wise(place.base, whole, half := place.folder / "half", "0.5", **sources)
    assert {n for n, one in load(half).items() if not same_bits(one, base[n])} == edited


def test_sum(place: Place) -> None:
    """The sum, merged, is the merge with these weights."""
    both = place.folder / "both"
    report = adaptertool.sum_adapters(place.adapters, both, weights=RULES, base=place.base)
    assert report.weight_rules == tuple(RULES[2:])
    adaptertool.merge(place.base, [both], place.folder / "out")
    made, base = load(place.folder / "out"), load(place.base)
    for name in NAMES:
        total = base[f"{name}.weight"].double().flatten()
        for number in range(2):
            total += float(wanted(number, name)) * torch.tensor(list(map(float, place.delta(number, name))))
        # B is rounded to float32
        assert half_ulp_excess(made[f"{name}.weight"].flatten(), total).max() <= 1.001
    with pytest.raises(UsageError, match=r"a gradient goes over all layers .* give base"):
        adaptertool.sum_adapters(place.adapters, place.folder / "other", weights=RULES)


def test_in_parts(place: Place) -> None:
    options: dict[str, Any] = {"weights": RULES, "exclude": ["layers.3"]}
    out, file = place.folder / "out", place.folder / "plan.json"
    adaptertool.merge(place.base, place.adapters, place.folder / "one", **options)
    adaptertool.plan_merge(place.base, place.adapters, out, file, **options)
    adaptertool.run_part(file, 0, 2)
    plan = json.loads(file.read_text())
    plan["call"]["numbers"][2] = "layers.0-2.mlp=0.5,1"
    (other := place.folder / "other.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="is not what comes out now"):
        adaptertool.run_part(other, 1, 2)
    adaptertool.run_part(file, 1, 2)
    adaptertool.finish(file)
    assert snapshot(out) == snapshot(place.folder / "one")
    adaptertool.plan_wise(
        place.base, place.adapters[0], out := place.folder / "w", "0.5", place.folder / "w.json", weights=["0:1"]
    )
    adaptertool.run_part(place.folder / "w.json", 0, 1)
    adaptertool.finish(place.folder / "w.json")
    adaptertool.wise(place.base, place.adapters[0], place.folder / "w1", "0.5", weights=["0:1"])
    assert snapshot(out) == snapshot(place.folder / "w1")


REFUSED: list[tuple[list[Any], dict[str, Any], str]] = [
    (["layers.0.mpl=1"], {}, "'layers.0.mpl' fits no tensor of the base; nearest: model.layers.0.mlp"),
    ([r"layers\.0=1"], {}, "a regex stands between slashes"),
    (["layers.9=1"], {}, "fits no tensor"),
    (["embed_tokens=0:1"], {}, "a gradient goes over layers, and what fits is in none of them"),
    (["mlp=1,2,3"], {}, "has 3 numbers behind its last =: give one for all 2 sources, or one for each"),
    (["mlp="], {}, "has no number"),
    (["mlp=a"], {}, "'a' is not a number"),
    (["mlp=0:"], {}, "'' is not a number"),
    (["a..b=1"], {}, "is no pattern for names"),
    (["1", "mlp=1"], {}, "1 weight for 2 adapters"),
    ([], {"only": ["nothing"]}, "only 'nothing' fits no tensor"),
    ([], {"exclude": ["/(/"]}, "exclude: '/\\(/' is no pattern"),
    ([], {"only": "mlp"}, "only is a list of patterns"),
]


@pytest.mark.parametrize(("weights", "options", "said"), REFUSED)
def test_refused(place: Place, weights: list[Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        adaptertool.merge(place.base, place.adapters, place.folder / "out", weights=weights or None, **options)
    assert not (place.folder / "out").exists()


def test_a_rule_that_reaches_nothing_is_said(place: Place) -> None:
    report = adaptertool.merge(place.base, place.adapters[:1], place.folder / "out", weights=["embed_tokens=0.5"])
    assert any("weight embed_tokens=0.5 fits no tensor that is edited" in note for note in report.notes)


def test_what_cannot_stay_the_base_s(tmp_path: Path) -> None:
    """An embedding of another size is one with the rest of the model."""
    config = LLAMA | {"tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", weights_of(**{"lm_head.weight": torch.randn(12, 6)}), config=config)
    adapter = write_adapter(tmp_path / "adapter", {E: torch.randn(14, 6), "lm_head.weight": torch.randn(14, 6)})
    with pytest.raises(UnsupportedError, match=r"resizes the vocabulary, so lm_head\.weight cannot stay"):
        adaptertool.merge(base, [adapter], tmp_path / "out", exclude=["lm_head"])
    with pytest.raises(UnsupportedError, match=r"cannot be done with weight 0\.5"):
        adaptertool.merge(base, [adapter], tmp_path / "out", weights=["lm_head=0.5"])


@pytest.mark.parametrize("given", [{"exclude": ["lm_head"]}, {"weights": ["lm_head=0"]}, {"only": ["embed_tokens"]}])
def test_tied_ends_come_apart(tmp_path: Path, given: dict[str, Any]) -> None:
    """A head that is tied, and not stored, has a name all the same."""
    base = write_checkpoint(tmp_path / "base", weights_of(), config=LLAMA)
    adapter = write_adapter(tmp_path / "adapter", lora_factors("lm_head", (12, 6)), ensure_weight_tying=True)
    adaptertool.merge(base, [adapter], tmp_path / "both")
    before, both = load(base)[E], load(tmp_path / "both")
    assert "lm_head.weight" not in both and not same_bits(both[E], before)
    adaptertool.merge(base, [adapter], tmp_path / "out", **given)
    made = load(tmp_path / "out")
    assert same_bits(made[E], both[E]) and same_bits(made["lm_head.weight"], before)


@pytest.mark.parametrize("rule", ["lm_head=0", "embed_tokens=0.5", "/head|embed/=0.5"])
def test_tied_ends_by_every_command(tmp_path: Path, rule: str) -> None:
    """What the weights make of tied ends is the same for `merge`, `wise` at α = 1, and the sum as a method."""
    base = write_checkpoint(tmp_path / "base", weights_of(), config=LLAMA)
    adapter = write_adapter(tmp_path / "adapter", lora_factors("lm_head", (12, 6)), ensure_weight_tying=True)
    merged, method, wise = (tmp_path / name for name in ("merged", "method", "wise"))
    adaptertool.merge(base, [adapter], merged, weights=[rule])
    adaptertool.merge(base, [adapter], method, weights=[rule], method="task_arithmetic")
    adaptertool.wise(base, adapter, wise, "0,1", weights=[rule])
    wanted = snapshot(merged)
    assert ("lm_head.weight" in load(merged)) is (rule[0] != "/")
    for out in (method, wise / "alpha-1.000"):
        found = snapshot(out)
        assert all(found[name] == wanted[name] for name in ("config.json", "model.safetensors"))


def test_a_rule_for_a_tied_end_that_is_not_stored_names_both(tmp_path: Path) -> None:
    """Between checkpoints tied ends are one tensor; a rule for the name that it is stored by counts for both."""
    base = write_checkpoint(tmp_path / "base", weights_of(), config=LLAMA)
    tuned = write_checkpoint(tmp_path / "tuned", weights_of(**{E: weights_of()[E] + 1}), config=LLAMA)
    said = (
        r"fits lm_head\.weight, which is tied to model\.embed_tokens\.weight and not stored: give it for model\.embed"
    )
    linear, ties = ({"method": method, "density": density} for method, density in (("linear", None), ("ties", "1")))
    out = tmp_path / "out"
    with pytest.raises(UsageError, match=rf"weight 'lm_head' {said}"):
        adaptertool.merge(base, [tuned], out, weights=["lm_head=0.5"], **linear)
    with pytest.raises(UsageError, match=rf"density 'lm_head' {said}"):
        adaptertool.merge(base, [tuned], out, **{**ties, "density": ["1", "lm_head=0.5"]})
    with pytest.raises(UsageError, match=rf"weight 'lm_head' {said}"):
        adaptertool.wise(base, tuned, out, "0.5", weights=["lm_head=0.5"])
    adaptertool.wise(base, tuned, out, "1", weights=["embed_tokens=0"])
    assert same_bits(load(out)[E], load(base)[E]) and not out.joinpath("lm_head").exists()
