"""extract and truncate by torch: on the processor always, on CUDA where there is one. Against dense float64."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocked import Rows
from conftest import FIXTURES, load, lora_factors, main_here, write_adapter, write_checkpoint

from adaptertool.errors import StorageError, UsageError
from adaptertool.live import device, device_named
from adaptertool.numerics.device import CPU, Device
from adaptertool.numerics.held import Room
from adaptertool.tasks import extract as extract_task
from adaptertool.tasks import truncate as truncate_task

HERE = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=HERE)
def by_torch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    found = device.open_device(request.param)
    for task in (extract_task, truncate_task):
        monkeypatch.setattr(task, "device_named", lambda _: found)
    return found


def test_products_and_factors_are_those_of_numpy(by_torch: Device) -> None:
    rng = np.random.default_rng(0)
    rows, right = rng.standard_normal((40, 31)), rng.standard_normal((4, 31))
    factors = rng.standard_normal((40, 3)), rng.standard_normal((3, 31))
    found: list[Any] = []
    for one in (by_torch, CPU):
        with one.hold(Rows(rows), Room()) as held:
            found.append((*held.times(right, back=True), held.square(), *held.left_over(factors)))
            assert held.times(right, back=False)[1] is None
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    q, _, r = by_torch.qr(rows.T[::-1])
    np.testing.assert_allclose(q @ r, rows.T[::-1], atol=1e-13)
    np.testing.assert_allclose(q.T @ q, np.eye(q.shape[1]), atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.usefixtures("by_torch")
def test_extract(tmp_path: Path, dtype: torch.dtype) -> None:
    base = {"l.proj.weight": torch.randn(150, 120, dtype=torch.float64).to(dtype)}
    change = (
        torch.randn(150, 40, dtype=torch.float64) / (torch.arange(40) + 4) @ torch.randn(40, 120, dtype=torch.float64)
    )
    tuned = {"l.proj.weight": (base["l.proj.weight"].double() + change).to(dtype)}
    paths = write_checkpoint(tmp_path / "b", base), write_checkpoint(tmp_path / "t", tuned)
    report = extract_task.extract(*paths, tmp_path / "out", rank=6, device="any")
    delta = tuned["l.proj.weight"].double() - base["l.proj.weight"].double()
    factors = load(tmp_path / "out")
    b, a = (factors[f"base_model.model.l.proj.lora_{role}.weight"].double() for role in "BA")
    left, values = (delta - b @ a).norm().item(), torch.linalg.svdvals(delta)
    assert report.tensors[0].error == pytest.approx(left / delta.norm().item(), rel=1e-6)
    assert left <= 1.002 * values[6:].norm().item()


@pytest.mark.usefixtures("by_torch")
def test_truncate(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("x", (90, 70), 12), r=12)
    base = write_checkpoint(tmp_path / "b", {"x.weight": torch.randn(90, 70)})
    report = truncate_task.truncate(adapter, tmp_path / "out", rank=5, base=base, device="any")
    before, after = (
        [load(path)[f"base_model.model.x.lora_{role}.weight"].double() for role in "BA"]
        for path in (adapter, tmp_path / "out")
    )
    product = before[0] @ before[1]
    values = torch.linalg.svdvals(product)
    least = (values[5:].norm() / values.norm()).item()
    assert report.layers[0].error == pytest.approx(least, rel=1e-9)
    assert report.layers[0].effect == pytest.approx(least, rel=1e-5)
    assert ((product - after[0] @ after[1]).norm() / values.norm()).item() == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [("toaster", "'toaster' is none of torch's"), ("meta", "computes nothing"), ("cuda:99", "cannot")],
)
def test_a_device_that_is_not_there(
    tmp_path: Path, name: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (("extract", FIXTURES / "base", FIXTURES / "tuned"), ("truncate", FIXTURES / "lora")):
        code = main_here(
            [*map(str, command), "--rank", "2", "--device", name, "-o", str(tmp_path / "out")], monkeypatch
        )
        assert code == 2 and message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_without_torch_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("cpu") is CPU
    monkeypatch.setitem(sys.modules, "torch", None)
    assert device_named("cpu") is CPU
    with pytest.raises(UsageError, match=r"the device 'cuda' needs torch: pip install 'adaptertool\[live\]'"):
        device_named("cuda")


def test_a_device_without_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(*_: object, dtype: object = None, **__: object) -> None:
        if dtype is not None:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(UsageError, match="has no float64"):
        device.open_device("cpu")


def test_a_device_without_room(by_torch: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise device.OUT_OF_MEMORY("")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(StorageError, match="out of memory on c"), by_torch.hold(Rows(np.eye(3)), Room()):
        pass


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_manifest_says_which(name: str) -> None:
    assert Device(name, CPU.hold, CPU.qr).recipe == ({} if name == "cpu" else {"device": name})
