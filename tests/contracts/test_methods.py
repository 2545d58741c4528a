"""What every method must hold to, over METHODS: a new one is tested by its line; and that it is a file and a line."""

from __future__ import annotations

import inspect
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from blended import combined
from conftest import FIXTURES, load, lora_factors, write_adapter, write_checkpoint
from conftest import adaptertool as command_line
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from long_tests import share
from manifests import MANIFEST

import adaptertool
from adaptertool import methods
from adaptertool.arguments import settings_for
from adaptertool.errors import UnsupportedError, UsageError
from adaptertool.methods import METHOD_BY_NAME, METHODS, ON_FACTORS, Method, Setting, Settings, Value, settings_of
from adaptertool.methods.arcee_fusion import ARCEE_FUSION
from adaptertool.methods.karcher import KARCHER
from adaptertool.methods.model_stock import MODEL_STOCK
from adaptertool.methods.multislerp import MULTISLERP
from adaptertool.methods.nearswap import NEARSWAP
from adaptertool.methods.task_vectors import EPSILON, GAMMA

COUNT, COLUMNS = 60, 5  # elements
SCALED = (KARCHER,)  # the result is a direction, times a norm
UNDEFINED = (MULTISLERP, MODEL_STOCK)  # of vectors that cancel out; a merge refuses what is no number
SELECT = (NEARSWAP, ARCEE_FUSION)  # of the one change a part
every_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
every_setting = pytest.mark.parametrize(
    ("method", "name"),
    [pytest.param(method, name, id=f"{method.name}-{name}") for method in METHODS for name in method.settings],
)


def at_most(method: Method) -> dict[str, Value]:
    """The settings where nothing is dropped."""
    return settings_for(method, {name: 1.0 for name in ("density", "select_topk") if name in method.settings})


def middle(setting: Setting) -> Value:
    if setting.number is bool:
        return True
    if setting in (EPSILON, GAMMA):  # less than the density
        return 0.2
    if setting.above is setting.least is setting.most is None:
        return 0.5
    low = setting.above if setting.above is not None else setting.least or 0
    high = low + 14 if setting.most is None else setting.most
    return setting.number((low + high) / 2)


def in_the_middle(method: Method) -> dict[str, Value]:
    """The settings that the method has, each in the middle of its range; so something is dropped."""
    return {name: middle(setting) for name, setting in method.settings.items()}


def halfway(method: Method) -> dict[str, Value]:
    return settings_for(method, in_the_middle(method))


def sources(method: Method) -> int:
    return method.only or 3


def vectors(seed: int, count: int) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).standard_normal((count, COUNT)))


def result(
    method: Method,
    base: np.ndarray,
    changes: Sequence[np.ndarray],
    weights: Sequence[float],
    settings: Settings,
    step: int = COUNT,
) -> np.ndarray:
    """A whole tensor, of rows of COLUMNS elements, in blocks of `step` elements."""
    columns = COLUMNS if method.rows else 1
    rows = max(1, step // COLUMNS) * COLUMNS if method.rows else step
    return combined(method, base, changes, weights, settings, (rows, columns))


@every_method
def test_it_says_what_it_is(method: Method) -> None:
    assert METHOD_BY_NAME[method.name] is method and method.source
    assert method.trims is None or method.trims in method.settings
    assert method.only is None or method.only > 0


@every_method
def test_the_same_again_and_nothing_given_is_changed(method: Method) -> None:
    base, *changes = vectors(1, 1 + sources(method))
    before = [array.copy() for array in (base, *changes)]
    runs = [result(method, base, changes, [0.7] * len(changes), halfway(method)) for _ in range(2)]
    assert np.array_equal(*runs) and not np.array_equal(runs[0], base)
    assert all(map(np.array_equal, before, (base, *changes)))


@every_method
def test_no_change_gives_none(method: Method) -> None:
    (base,) = vectors(2, 1)
    nothing = [np.zeros(COUNT)] * sources(method)
    for settings in (at_most(method), halfway(method)):
        found = result(method, base, nothing, [0.7] * len(nothing), settings)
        np.testing.assert_allclose(found, base, rtol=1e-14 if method in SCALED else 0)


@pytest.mark.parametrize(
    "method", [one for one in METHODS if sources(one) != 2 and one.least == 1 and one not in SELECT]
)
def test_one_source_of_weight_one_gives_its_change(method: Method) -> None:
    base, change = vectors(3, 2)
    np.testing.assert_allclose(result(method, base, [change], [1.0], at_most(method)), base + change, rtol=1e-12)


@every_method
@hypothesis.settings(max_examples=share(100))
@given(step=st.integers(1, COUNT), seed=st.integers(0, 9))
def test_blocks_do_not_matter(method: Method, step: int, seed: int) -> None:
    """But for sums over a whole tensor: the blocks of a merge are always the same."""
    base, *changes = vectors(seed, 1 + sources(method))
    weights = [0.7, -1.3, 0.2][: len(changes)]
    whole, parts = (result(method, base, changes, weights, halfway(method), size) for size in (COUNT, step))
    np.testing.assert_allclose(whole, parts, rtol=1e-9 if method.survey else 0)


@every_method
@hypothesis.settings(max_examples=share(100))
@given(
    numbers=arrays.arrays(
        np.float64,
        (4, 5),
        elements=st.one_of(st.sampled_from([0.0, -0.0, 5e-324, -1e60, 1e60]), st.floats(-1e60, 1e60)),
    ),
    weight=st.floats(-1e3, 1e3),
)
def test_finite_numbers_give_finite_ones(method: Method, numbers: np.ndarray, weight: float) -> None:
    base, *changes = numbers[: 1 + sources(method)]
    for settings in (at_most(method), halfway(method)):
        weights = [weight] * len(changes)
        if method.refuses is not None and method.refuses(weights, settings):
            continue
        found = result(method, base, changes, weights, settings)
        assert np.isfinite(found).all() or (method in UNDEFINED and np.isnan(found).all())


@every_setting
def test_numbers_out_of_range_are_refused(method: Method, name: str) -> None:
    setting, inside = method.settings[name], in_the_middle(method)
    assert settings_for(method, inside)[name] == inside[name]
    outside: list[float | str] = [math.inf, math.nan, "many"]
    outside += [] if setting.above is None else [setting.above]
    outside += [] if setting.least is None else [setting.least - 1]
    outside += [] if setting.most is None else [setting.most + 1]
    outside += [0.5, True, "1"] if setting.number is int else []
    for number in outside:
        with pytest.raises(UsageError, match=name):
            settings_for(method, inside | {name: number})


@every_method
def test_a_setting_that_is_missing_or_of_another_method_is_refused(method: Method) -> None:
    own = in_the_middle(method)
    for name, setting in settings_of().items():
        if name not in method.settings:
            with pytest.raises(UsageError, match=rf"{method.name}\b.* no {name}"):
                settings_for(method, own | {name: 1})
            continue
        rest = {key: value for key, value in own.items() if key != name}
        default = method.defaults.get(name, setting.default)
        if default is None:
            with pytest.raises(UsageError, match=f"{method.name} needs {name}"):
                settings_for(method, rest)
        else:
            assert settings_for(method, rest)[name] == default


@every_setting
def test_one_name_is_one_setting(method: Method, name: str) -> None:
    """In every method, and beside the arguments and the recipes of the commands."""
    assert settings_of()[name] is method.settings[name]
    calls = (adaptertool.merge, adaptertool.prepare_merge, adaptertool.sum_adapters)
    taken = {"command", "sources", "cut"}.union(*(inspect.signature(call).parameters for call in calls))
    assert name in {"density", "seed"} or name not in taken


def test_every_setting_is_an_option_with_help() -> None:
    merge, summed = (" ".join(command_line(name, "--help").stdout.split()) for name in ("merge", "sum"))
    for name, setting in settings_of().items():
        assert setting.help and f"--{name.replace('_', '-')} " in merge and setting.help in merge
    for name, setting in settings_of(ON_FACTORS).items():
        assert f"--{name} " in summed and (setting.in_sum or setting.help) in summed


NEW = '''
"""The sum of the changes, shrunk: W + (1 − shrink)·Σ w_i·δ_i."""

from adaptertool.methods.method import Method
from adaptertool.methods.setting import Setting


def shrunk(base, changes, weights, settings, _sums):
    return base + (1 - settings["shrink"]) * sum(weight * change for weight, change in zip(weights, changes))


SHRINK = Setting(
    number=float, least=0, most=1, allowed="a share from 0 to 1", default=0.25, help="How much of it goes."
)
SHRUNK = Method(name="shrunk", source="the tests", combine=shrunk, settings={"shrink": SHRINK}, sums=True)
'''


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A base of zeros, one that was tuned from it, and an adapter; all of few bits."""
    write_checkpoint(tmp_path / "base", {"x.weight": torch.zeros(8, 6)})
    write_checkpoint(tmp_path / "tuned", {"x.weight": torch.arange(48.0).reshape(8, 6)})
    write_adapter(tmp_path / "adapter", lora_factors("x", (8, 6)))
    return tmp_path


def recipe(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / MANIFEST).read_text())["recipe"]
    return found


def test_a_setting_of_its_own_reaches_combine(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Method] = {}
    exec(NEW, names)
    shrunk = names["SHRUNK"]
    monkeypatch.setattr(methods, "METHODS", (*METHODS, shrunk))
    monkeypatch.setitem(METHOD_BY_NAME, shrunk.name, shrunk)
    base, tuned = place / "base", place / "tuned"
    whole = load(tuned)["x.weight"]
    for given_shrink, shrink in ((None, 0.25), ("0.5", 0.5), (1, 1.0)):
        out = place / f"out-{shrink}"
        adaptertool.merge(base, [tuned], out, method="shrunk", shrink=given_shrink)
        assert torch.equal(load(out)["x.weight"], (1 - shrink) * whole)
        assert recipe(out) == recipe(out) | {"method": "shrunk", "density": 1.0, "seed": 0, "shrink": shrink}
    plan = adaptertool.prepare_merge(base, [tuned], method="shrunk", shrink=0.5)
    assert all(step.blend is not None and step.blend.settings["shrink"] == 0.5 for step in plan.steps())
    with pytest.raises(UsageError, match="shrink is a share from 0 to 1, not 2"):
        adaptertool.merge(base, [tuned], place / "no", method="shrunk", shrink=2)
    with pytest.raises(UsageError, match="linear has no shrink"):
        adaptertool.merge(base, [tuned], place / "no", method="linear", shrink=0.5)
    with pytest.raises(UsageError, match="shrink belongs to a method"):
        adaptertool.merge(base, [tuned], place / "no", shrink=0.5)
    adaptertool.merge(base, [tuned], place / "linear", method="linear")
    assert "shrink" not in recipe(place / "linear")


@pytest.mark.parametrize("call", ["merge", "prepare_merge", "sum_adapters"])
def test_a_word_that_no_method_knows_is_refused_as_python_does(call: str) -> None:
    sources = {"merge": ("base", ["adapter"], "out"), "prepare_merge": ("base", ["adapter"])}
    with pytest.raises(TypeError, match=rf"{call}\(\) got an unexpected keyword argument 'denisty'"):
        getattr(adaptertool, call)(*sources.get(call, (["adapter"], "out")), denisty=0.5)


def test_a_new_method_is_a_file_and_a_line(place: Path) -> None:
    """In a copy of the package: options, help, manifests and sums know it."""
    copy = shutil.copytree(Path(adaptertool.__file__).parent, place / "copy" / "adaptertool")
    (copy / "methods" / "shrunk.py").write_text(NEW)
    with (copy / "methods" / "__init__.py").open("r+") as file:
        lines = file.read().replace("METHODS: tuple[Method, ...] = (", "METHODS: tuple[Method, ...] = (SHRUNK, ", 1)
        file.seek(0)
        file.write("from adaptertool.methods.shrunk import SHRUNK\n" + lines)

    def run(*arguments: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "adaptertool", *map(str, arguments)],
            cwd=copy.parent,
            env=os.environ | {"PYTHONPATH": str(copy.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    text = " ".join(run("merge", "--help").split())
    assert (
        "--shrink NUMBER|PATTERN=NUMBERS How much of it goes. Default 0.25: shrunk." in text
        and "shrunk" in text.split("--shrink")[0]
    )
    flags = ("--method", "shrunk", "--shrink", "0.5", "-o")
    run("merge", place / "base", place / "tuned", *flags, place / "merged")
    assert torch.equal(load(place / "merged")["x.weight"], load(place / "tuned")["x.weight"] / 2)
    run("sum", place / "adapter", *flags, place / "summed")
    assert recipe(place / "merged")["shrink"] == recipe(place / "summed")["shrink"] == 0.5
    factors = [load(place / name) for name in ("adapter", "summed")]
    for key, factor in factors[0].items():  # each times the root of its scale, 2, and then shrunk
        torch.testing.assert_close(factors[1][key], factor * 2**0.5 / 2)


def test_a_source_that_does_not_change_a_tensor_gives_the_base_to_a_mean(tmp_path: Path) -> None:
    sources = [FIXTURES / "lora", FIXTURES / "rslora"]  # which change different tensors
    adaptertool.merge(FIXTURES / "base", sources, tmp_path / "mean", weights=[0.25, 0.75], method="mergekit_linear")
    adaptertool.merge(FIXTURES / "base", sources, tmp_path / "sum", weights=[0.25, 0.75], method="linear")
    mean, total = load(tmp_path / "mean"), load(tmp_path / "sum")
    assert all(torch.equal(mean[name], total[name]) for name in total)  # the weights add up to 1
    adaptertool.merge(FIXTURES / "base", sources, tmp_path / "arc", weights=[0.25, 0.75], method="nuslerp")


def test_what_scales_whole_models_takes_no_adapters(place: Path) -> None:
    """Tensors that an adapter leaves as they are would stay, and all others be scaled."""
    for options in ({"method": "mergekit_linear"}, {"method": "multislerp", "around_zero": True}):
        with pytest.raises(UnsupportedError, match="scales whole models"):
            adaptertool.prepare_merge(place / "base", [place / "adapter"], ["0.5"], normalize=False, **options)  # type: ignore[arg-type]
        adaptertool.prepare_merge(place / "base", [place / "tuned"], ["0.5"], normalize=False, **options)  # type: ignore[arg-type]
        adaptertool.prepare_merge(place / "base", [place / "adapter"], ["0.5"], **options)  # type: ignore[arg-type]
