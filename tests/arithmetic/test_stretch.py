"""Small tensors that are made together: the same files, reports and errors as where each is made by itself."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Tensors, lora_factors, snapshot, write_adapter, write_checkpoint

from adaptertool import merge, prepare_merge, wise
from adaptertool.arithmetic import stretch as stretch_module
from adaptertool.arithmetic.stretch import Stretch
from adaptertool.engine import stretches
from adaptertool.errors import NonFiniteError
from adaptertool.numerics import compiled
from adaptertool.spec.tensors import View

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
SHAPES = [(24, 16), (5, 7), (1, 1), (64, 64), (33, 18), (90, 40), (8, 130)]
pytestmark = pytest.mark.skipif(not compiled.levels(), reason="no compiled kernel: there was no C compiler")


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[Stretch]:
    """The stretches that are made. They are cut soon, so that few tensors make several, and some are too large."""
    monkeypatch.setattr(stretch_module, "STRETCH", 20_000)
    for module in (stretch_module, stretches):
        monkeypatch.setattr(module, "SMALL", 10_000)
    found: list[Stretch] = []

    def compute(inputs: Any, stretch: Stretch, *arguments: Any, **options: Any) -> Iterator[Any]:
        found.append(stretch)
        return stretch_module.compute_stretch(inputs, stretch, *arguments, **options)

    monkeypatch.setattr(stretches, "compute_stretch", compute)
    return found


def alone(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(stretches, "small_of", lambda _: None)
        return call()


def model(dtypes: tuple[torch.dtype, ...] = (BF16,), count: int = 21) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A model, and the names of its layers. Between them are tensors of other sizes and dtypes."""
    tensors, names = {}, []
    for number in range(count):
        shape, dtype = SHAPES[number % len(SHAPES)], dtypes[number % len(dtypes)]
        names.append(f"model.layers.{number}.mlp.up_proj")
        tensors[f"{names[-1]}.weight"] = (torch.randn(shape) * 0.02).to(dtype)
        if number % 4 == 1:
            tensors[f"model.layers.{number}.norm.weight"] = torch.ones(3 + number).to(dtype)
        if number % 7 == 2:
            tensors[f"model.layers.{number}.mlp.mask"] = torch.ones(number, dtype=torch.uint8)
        if number % 9 == 5:
            tensors[f"model.layers.{number}.mlp.down_proj.weight"] = torch.randn(200, 100).to(dtype)
    return tensors, names


def factors_of(tensors: Tensors, names: list[str], dtype: torch.dtype = F32, rank: int = 4) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name in names:
        found |= lora_factors(name, tuple(tensors[f"{name}.weight"].shape), rank, dtype)
    return found


def said(report: Any) -> dict[str, Any]:
    """A report without what depends on time."""
    changing = ("seconds", "bytes_per_second", "peak_memory", "out", "outputs")
    return {name: value for name, value in dataclasses.asdict(report).items() if name not in changing}


def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[[Path], Any]) -> Any:
    """Both ways make the same files and say the same. Returns the report."""
    reports = [run(tmp_path / "together"), alone(monkeypatch, lambda: run(tmp_path / "alone"))]
    assert said(reports[0]) == said(reports[1])
    files = [snapshot(tmp_path / name) for name in ("together", "alone")]
    assert files[0] == files[1] and len(files[0]) > 2
    return reports[0]


@pytest.mark.long
@pytest.mark.parametrize("dtypes", [(BF16,), (F16,), (F32,), (BF16, F16, F32, torch.float64)])
@pytest.mark.parametrize(("held", "rank", "shards"), [(F32, 4, 1), (BF16, 3, 3), (F16, 20, 1)])
def test_merge(
    tmp_path: Path,
    together: list[Stretch],
    monkeypatch: pytest.MonkeyPatch,
    dtypes: Any,
    held: Any,
    rank: int,
    shards: int,
) -> None:
    tensors, names = model(dtypes)
    base = write_checkpoint(tmp_path / "base", tensors, shards=shards)
    adapter = write_adapter(tmp_path / "adapter", factors_of(tensors, names, held, rank), r=rank)
    for precision in ("exact", "fast"):
        folder = tmp_path / precision
        folder.mkdir()
        compare(folder, monkeypatch, functools.partial(merge, base, [adapter], precision=precision))
        if len(dtypes) == 1 and rank < 20:  # else factors are more than there is room for
            count = sum(len(one.edited) for one in together)
            assert count > 14 and len(together) < count and any(one.copied for one in together)
            together.clear()


def test_sweep(tmp_path: Path, together: list[Stretch], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the base itself, and more of α than the kernel takes at once."""
    tensors, names = model()
    base = write_checkpoint(tmp_path / "base", tensors)
    for number, (held, alphas) in enumerate([(F32, "0:1:0.1"), (BF16, [0.3, 1])]):
        adapter = write_adapter(tmp_path / f"adapter-{number}", factors_of(tensors, names, held))
        folder = tmp_path / f"out-{number}"
        folder.mkdir()
        compare(folder, monkeypatch, functools.partial(wise, base, adapter, alphas=alphas))
    assert sum(len(one.edited) for one in together) >= 2 * 18


def test_several_adapters(tmp_path: Path, together: list[Stretch], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other ranks and dtypes, one of them with norms: what both change goes by itself."""
    tensors, names = model()
    base = write_checkpoint(tmp_path / "base", tensors)
    plain = write_adapter(tmp_path / "plain", factors_of(tensors, names))
    other = write_adapter(tmp_path / "other", factors_of(tensors, names[::2], BF16, 7), r=7, use_rslora=True)
    dora = factors_of(tensors, names[1::5])
    for name in names[1::5]:
        dora[f"{name}.lora_magnitude_vector"] = torch.rand(len(tensors[f"{name}.weight"])) + 0.5
    normed = write_adapter(tmp_path / "normed", dora, use_dora=True)
    compare(tmp_path, monkeypatch, lambda out: merge(base, [plain, other, normed], out, weights=[1, -0.25, 0.5]))
    made = [pair for one in together for pair in one.edited]
    assert {len(small.products) for _, small in made} == {1, 2}
    assert not {step.spec.name.removesuffix(".weight") for step, _ in made} & {*names[1::5]}


def test_transposed(tmp_path: Path, together: list[Stretch], monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, factors = {}, {}
    for number, (inner, out) in enumerate([(16, 48), (20, 20), (40, 3), (7, 64)]):
        name = f"transformer.h.{number}.attn.c_attn"
        tensors[f"{name}.weight"] = torch.randn(inner, out).bfloat16()
        factors |= lora_factors(name, (out, inner))
    base = write_checkpoint(tmp_path / "base", tensors, config={"model_type": "gpt2"})
    adapter = write_adapter(tmp_path / "adapter", factors, fan_in_fan_out=True)
    compare(tmp_path, monkeypatch, lambda out: merge(base, [adapter], out))
    assert all(product.transposed for one in together for _, small in one.edited for product in small.products)
    assert sum(len(one.edited) for one in together) == 4


def test_large_tensors_and_views_are_none(tmp_path: Path) -> None:
    base = write_checkpoint(tmp_path / "base", {f"m.{n}.q_proj.weight": torch.ones(600, 600) for n in range(2)})
    adapter = write_adapter(tmp_path / "adapter", lora_factors("m.0.q_proj", (600, 600)))
    steps = list(prepare_merge(base, [adapter]).steps())
    assert all(stretch_module.small_of(step) is None for step in steps)
    tensors = {"w.weight": torch.ones(6, 4)}
    plan = prepare_merge(
        write_checkpoint(tmp_path / "small", tensors), [write_adapter(tmp_path / "own", lora_factors("w", (6, 4)))]
    )
    (step,) = plan.steps()
    assert stretch_module.small_of(step) is not None
    (edit,) = step.edits
    for other in (
        edit._replace(weight=0.0),
        edit._replace(view=View(4, range(6), range(4), (6, 4))),
        edit._replace(kind="full"),
    ):
        assert stretch_module.small_of(step._replace(edits=(other,))) is None


@pytest.mark.parametrize("where", ["lora_A", "lora_B", "weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 60000.0])
def test_errors_name_the_tensor(
    tmp_path: Path, together: list[Stretch], monkeypatch: pytest.MonkeyPatch, where: str, bad: float
) -> None:
    """The first of two, in a stretch and by itself, by the same words."""
    tensors, names = model((F16,))
    factors = factors_of(tensors, names)
    for name in (names[9], names[3]):
        changed = tensors[f"{name}.weight"] if where == "weight" else factors[f"{name}.{where}.weight"]
        changed[-1, -1] = bad if bad != 60000 or where == "weight" else 1e9
        if bad == 60000 and where == "weight":  # with this, beyond the range
            factors[f"{name}.lora_A.weight"][:, -1], factors[f"{name}.lora_B.weight"][-1] = 1e3, 1.0
    base = write_checkpoint(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "adapter", factors)

    def message() -> str:
        with pytest.raises(NonFiniteError) as error:
            merge(base, [adapter], tmp_path / "out", threads=1)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    found = message()
    assert names[3] in found and found == alone(monkeypatch, message)
    assert bool(together) == (where == "weight" or bad == 60000)


def test_a_tensor_that_others_decide(tmp_path: Path, together: list[Stretch], monkeypatch: pytest.MonkeyPatch) -> None:
    """A number too large for the kernel, and ties that float64 does not know of, among tensors that it makes."""
    tensors, names = model()
    tensors[f"{names[3]}.weight"][5, 5] = 2.0**127
    factors = factors_of(tensors, names)
    third = f"{names[4]}.weight"
    tensors[third][:] = 1.0
    factors[f"{names[4]}.lora_A.weight"][:] = 0.0
    factors[f"{names[4]}.lora_A.weight"][0] = 2.0**-8
    factors[f"{names[4]}.lora_B.weight"][:, 0] = 3.0
    base = write_checkpoint(tmp_path / "base", tensors)
    adapter = write_adapter(tmp_path / "adapter", factors, lora_alpha=4 / 3)
    report = compare(tmp_path, monkeypatch, lambda out: merge(base, [adapter], out))
    assert report.settled > 0 and sum(len(one.edited) for one in together) > 14


def test_zeros_are_noted_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, names = model()
    factors = factors_of(tensors, names)
    factors[f"{names[0]}.lora_A.weight"][:] = 0.0
    factors[f"{names[3]}.lora_B.weight"][10:20] = -0.0
    base, adapter = write_checkpoint(tmp_path / "base", tensors), write_adapter(tmp_path / "adapter", factors)
    report = merge(base, [adapter], tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr("adaptertool.engine.preflight.zero_rows_of", lambda *_: None)
        again = merge(base, [adapter], tmp_path / "again")
    assert report.notes == again.notes and len(report.notes) >= 2
    assert "1 of 21 modules" in " ".join(report.notes)
