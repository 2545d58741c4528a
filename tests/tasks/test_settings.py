"""Settings of methods by tensor, layer and source: each tensor is what its own settings make of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch
from blended import blended
from conftest import adaptertool as command_line
from conftest import load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from oracle import half_ulp_excess
from tied_models import LLAMA, E
from tied_models import weights as weights_of

import adaptertool
from adaptertool.errors import UnsupportedError, UsageError
from adaptertool.spec.schedule import ANY, Rule, Schedule

LAYERS, MODULES = 4, ("self_attn.q_proj", "mlp.up_proj")
NAMES = [f"model.layers.{layer}.{module}.weight" for layer in range(LAYERS) for module in MODULES]
EMBEDDING = "model.embed_tokens.weight"
EVERY = (EMBEDDING, *NAMES)


def model(folder: Path, base: Mapping[str, torch.Tensor] | None = None, names: Sequence[str] = EVERY) -> Path:
    """A checkpoint in float32; of a base, one with other numbers where `names` says."""
    tensors = {name: torch.randn(6, 5) for name in EVERY}
    return write_checkpoint(folder, tensors if base is None else {**base, **{name: tensors[name] for name in names}})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    base = load(model(tmp_path / "base"))
    model(tmp_path / "one", base)
    model(tmp_path / "two", base)
    return tmp_path


def merged(place: Path, out: str, method: str, **options: Any) -> Path:
    adaptertool.merge(place / "base", [place / "one", place / "two"], place / out, method=method, **options)
    return place / out


def recipe(out: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((out / "adaptertool.manifest.json").read_text())["recipe"]
    return found


def layer(name: str) -> int | None:
    return int(name.split(".")[2]) if name in NAMES else None


# What is given, and what that is in a tensor, said once more; several numbers: one for each source
CASES: Mapping[str, tuple[str, dict[str, Any], Any]] = {
    "of each source": ("ties", {"density": ["0.6", 0.3]}, lambda _: {"density": (0.6, 0.3)}),
    "gradient": (
        "ties",
        {"density": ["0.5", "*=0.25:1"]},
        lambda name: {"density": 0.5 if layer(name) is None else 0.25 + 0.25 * (layer(name) or 0)},
    ),
    "pattern, each": (
        "magnitude_prune",
        {"density": ["0.5", "0.4", "layers.0-1.mlp=0.3,0.9", "self_attn=,1:0.4"]},
        lambda name: {
            "density": (0.5, 0.4)
            if layer(name) is None or ("mlp" in name and (layer(name) or 0) > 1)
            else (0.3, 0.9)
            if "mlp" in name
            else (0.5, float(1 - Decimal(layer(name) or 0) / 5))
        },
    ),
    "two settings": (
        "breadcrumbs",
        {"density": 0.6, "gamma": ["0.1", "mlp=0.3"], "lambda": "mlp=1.5"},
        lambda name: {
            "density": 0.6,
            "gamma": 0.3 if "mlp" in name else 0.1,
            "lambda": 1.5 if "mlp" in name else 1.0,
        },
    ),
    "gradient beside the default": (
        "breadcrumbs",
        {"gamma": "0:0.6"},
        lambda name: {"gamma": 0.01 if layer(name) is None else float(Decimal(layer(name) or 0) * Decimal("0.2"))},
    ),
    "topk": ("sce", {"select_topk": ["0.5", "mlp=0.8"]}, lambda name: {"select_topk": 0.8 if "mlp" in name else 0.5}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_tensor_has_its_own(place: Path, case: str) -> None:
    method, options, settings_of = CASES[case]
    made = load(merged(place, "out", method, **options))
    base, *tuned = (load(place / name) for name in ("base", "one", "two"))
    for name in EVERY:
        arrays = [one[name].double().numpy() for one in (base, *tuned)]
        exact = blended(method, arrays[0], arrays[1:], [1.0, 1.0], settings_of(name))
        assert half_ulp_excess(made[name], torch.from_numpy(exact)).max() <= 1 + 1e-6, name


@pytest.mark.parametrize("case", CASES)
def test_manifest_plan_and_command_line_say_the_same(place: Path, case: str) -> None:
    """A replay of the manifest, parts by a plan, and what is typed: the same bytes."""
    method, options, _ = CASES[case]
    out = merged(place, "out", method, **options)
    adaptertool.apply(out / "adaptertool.manifest.json", place / "again")
    assert snapshot(place / "again") == snapshot(out)
    sources = [place / "one", place / "two"]
    file = place / "plan.json"
    adaptertool.plan_merge(place / "base", sources, place / "parts", file, method=method, **options)
    adaptertool.run_part(file)
    adaptertool.finish(file)
    assert snapshot(place / "parts") == snapshot(out)
    words = [
        f"--{name.replace('_', '-')}={one}"
        for name, value in options.items()
        for one in (value if isinstance(value, list) else [value])
    ]
    done = command_line("merge", place / "base", *sources, "--method", method, *words, "-o", place / "typed", "-q")
    assert done.returncode == 0, done.stderr
    assert snapshot(place / "typed") == snapshot(out)
    assert command_line("verify", place / "typed").returncode == 0


def test_recipes_take_one_or_a_list(place: Path) -> None:
    step = {"base": str(place / "base"), "adapters": [str(place / "one"), str(place / "two")], "method": "ties"}
    for number, density in enumerate((0.5, [0.5])):
        adaptertool.apply({"merge": {**step, "density": density}}, place / f"out{number}")
    assert snapshot(place / "out0") == snapshot(place / "out1") == snapshot(merged(place, "plain", "ties", density=0.5))
    adaptertool.apply({"merge": {**step, "density": [0.5, "mlp=0.2"]}}, place / "rules")
    assert recipe(place / "rules")["setting_rules"] == {"density": ["mlp=0.2"]}
    assert snapshot(place / "rules") == snapshot(merged(place, "typed", "ties", density=["0.5", "mlp=0.2"]))


def test_as_mergekit_says_it(place: Path) -> None:
    """The same in a configuration of mergekit, by filters and gradients of its own."""
    config = place / "config.yml"
    write = lambda name: (place / name / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 4}')  # noqa: E731
    for name in ("base", "one", "two"):
        write(name)
    config.write_text(f"""
models:
  - model: {place}/one
    parameters: {{density: [{{filter: mlp, value: [0.4, 1]}}, {{value: 0.7}}], weight: 1}}
  - model: {place}/two
    parameters: {{density: [{{filter: mlp, value: 0.5}}, {{value: 0.7}}], weight: 1}}
merge_method: ties
base_model: {place}/base
parameters: {{normalize: true}}
""")
    adaptertool.mergekit(config, place / "theirs")
    ours = merged(place, "ours", "mergekit_ties", density=["0.7", "mlp=0.4:1,0.5"])
    found, wanted = load(ours), load(place / "theirs")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(one, wanted[name]) for name, one in found.items())


def test_records_are_texts(place: Path) -> None:
    """A Schedule of Python is what its text is, also in a plan that is written down."""
    given = Schedule(Decimal("0.5"), (Rule("mlp", (Decimal("0.2"),)), Rule(ANY, (Decimal("0.4"), Decimal(1)))))
    one = merged(place, "one-out", "ties", density=given)
    other = merged(place, "other-out", "ties", density=["0.5", "mlp=0.2", "*=0.4:1"])
    assert snapshot(one) == snapshot(other)
    sources = [place / "one", place / "two"]
    for name, density in (("a.json", given), ("b.json", ["0.5", "mlp=0.2", "*=0.4:1"])):
        adaptertool.plan_merge(place / "base", sources, place / "out", place / name, method="ties", density=density)
    assert json.loads((place / "a.json").read_text()) == json.loads((place / "b.json").read_text())


def test_only_layers_need_no_number_for_the_rest(place: Path) -> None:
    """A gradient alone is enough where nothing else is edited; the manifest then has no other number."""
    out = merged(place, "out", "ties", density="0.25:1", exclude=["embed_tokens"])
    assert "density" not in recipe(out) and recipe(out)["setting_rules"] == {"density": ["*=0.25:1"]}
    adaptertool.apply(out / "adaptertool.manifest.json", place / "again")
    assert snapshot(place / "again") == snapshot(out)
    with pytest.raises(UsageError, match=r"ties needs density, and none is given for model\.embed_tokens\.weight"):
        merged(place, "no", "ties", density="0.25:1")


def test_a_rule_that_reaches_nothing_is_said(place: Path) -> None:
    given: dict[str, Any] = {"density": ["0.5", "layers.2=0.3"], "exclude": ["layers.2"]}
    report = adaptertool.merge(place / "base", [place / "one"], place / "out", method="ties", **given)
    assert any("density layers.2=0.3 fits no tensor that is edited" in note for note in report.notes)


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("ties", {"density": ["0.5", "0.4", "0.3"]}, "density is given 3 times for 2 sources: give one for all, or one"),
    ("breadcrumbs", {"lambda": ["1", "2"]}, "lambda is given 2 times .* it is one for all of them"),
    ("breadcrumbs", {"lambda": ["mlp=1,2"]}, "has 2 numbers behind its last ="),
    ("dare_ties", {"density": 0.5, "seed": ["1", "mlp=2"]}, "seed is one for all tensors and sources"),
    ("mergekit_ties", {"normalize": ["mlp=true"]}, "normalize is one for all tensors"),
    ("ties", {"density": ["0.5", "mpl=0.5"]}, "density 'mpl' fits no tensor of the base"),
    ("ties", {"density": ["0.5", "embed_tokens=0.1:0.5"]}, "a gradient goes over layers"),
    ("ties", {"density": ["0.5", "mlp=0"]}, "density is a share over 0, up to 1, not 0, as for model.layers.0.mlp"),
    ("ties", {"density": ["0.5", "*=0.5:1.5"]}, "density is a share over 0, up to 1, not 1.16667, as for"),
    ("ties", {"density": ["2", "mlp=0.5"]}, "density is a share over 0, up to 1, not 2"),
    ("ties", {"density": ["mlp=half"]}, "'half' is not a number"),
    ("ties", {"density": ["a..b=1"]}, "density: 'a..b' is no pattern for names"),
    ("ties", {"density": []}, "ties needs density"),
    ("ties", {"density": 0.5, "gamma": ["mlp=0.1"]}, "ties has no gamma"),
    ("della", {"density": 0.5, "epsilon": ["0.1", "mlp=0.9"]}, "epsilon"),
]


@pytest.mark.parametrize(("method", "options", "said"), REFUSED)
def test_refused(place: Path, method: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        merged(place, "out", method, **options)
    assert not (place / "out").exists()


@pytest.mark.parametrize("rule", ["lm_head=0.25", "embed_tokens=0.25", "/head|embed/=0.25"])
def test_tied_ends_with_their_own_settings(tmp_path: Path, rule: str) -> None:
    """Two ends that are changed alike come apart where a setting is another for one of them: each is as by its own."""
    base = write_checkpoint(tmp_path / "base", weights_of(), config=LLAMA)
    adapter = write_adapter(tmp_path / "adapter", lora_factors("lm_head", (12, 6)), ensure_weight_tying=True)
    made = {}
    for density in ("0.25", "0.75"):
        adaptertool.merge(base, [adapter], tmp_path / density, method="magnitude_prune", density=density)
        made[density] = load(tmp_path / density)[E]
    assert not same_bits(*made.values())
    adaptertool.merge(base, [adapter], tmp_path / "out", method="magnitude_prune", density=["0.75", rule])
    out = load(tmp_path / "out")
    assert same_bits(out[E], made["0.25" if "embed" in rule else "0.75"])
    assert ("lm_head.weight" in out) is (rule[0] != "/")
    assert rule[0] == "/" or same_bits(out["lm_head.weight"], made["0.25" if "head" in rule else "0.75"])


@pytest.mark.parametrize("given", [{"weights": ["1", "1", "lm_head=1,0"]}, {"density": ["0.5", "lm_head=0.1"]}])
@pytest.mark.parametrize("of_ends", [True, False])
def test_tied_ends_of_checkpoints_are_combined_as_one(tmp_path: Path, given: dict[str, Any], *, of_ends: bool) -> None:
    """A checkpoint that ties its ends changes both, whether an adapter beside it does or not."""
    weights = weights_of(**{"model.layers.0.q.weight": torch.randn(6, 6)})
    base = write_checkpoint(tmp_path / "base", weights, config=LLAMA)
    tuned = write_checkpoint(tmp_path / "tuned", {**weights, E: weights[E] + 1}, config=LLAMA)
    factors = lora_factors("lm_head", (12, 6)) if of_ends else lora_factors("model.layers.0.q", (6, 6))
    adapter = write_adapter(tmp_path / "adapter", factors, ensure_weight_tying=of_ends)
    given = {"density": ["0.5"], **given}
    with pytest.raises(UnsupportedError, match=r"tied.* settings (given for them differ|are not the same for both)"):
        adaptertool.merge(base, [adapter, tuned], tmp_path / "out", method="ties", **given)
    assert not (tmp_path / "out").exists()
    alike = {name: [one.replace("lm_head", "/lm_head|embed/") for one in value] for name, value in given.items()}
    assert adaptertool.merge(base, [adapter, tuned], tmp_path / "out", method="ties", **alike)
