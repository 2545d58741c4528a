"""attached, where hooks on layers do not act: compiled models, and weights that are used without their layer."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import lora_factors, write_adapter
from torch import nn

import adaptertool


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(torch.relu(self.a(x)))
        return result


class Functional(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(torch.relu(nn.functional.linear(x, self.a.weight, self.a.bias)))
        return result


class Called(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.b(torch.relu(self.a.forward(x)))
        return result


class Asking(Plain):
    """Its dtype alone is asked for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.a.weight.dtype))


class Hidden(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layer = getattr(self, "a")  # noqa: B009  # so that no source tells
        result: torch.Tensor = self.b(torch.relu(nn.functional.linear(x, layer.weight, layer.bias)))
        return result


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Plain()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.inner.b(torch.relu(x @ self.inner.a.weight.T + self.inner.a.bias))
        return result


X = torch.randn(3, 6)


def adapter_on(folder: Path, prefix: str = "") -> Path:
    factors = {**lora_factors(f"{prefix}a", (8, 6)), **lora_factors(f"{prefix}b", (5, 8))}
    return write_adapter(folder / "adapter", factors)


def outputs(model: nn.Module, adapter: Path, call: Any = None) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """With the adapter applied, and attached; and the warnings of that."""
    with adaptertool.applied(model, adapter):
        wanted = model(X)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with adaptertool.attached(model, adapter):
            found = (call or model)(X)
    return wanted, found, [str(one.message) for one in caught]


@pytest.mark.parametrize(("kind", "prefix"), [(Functional, ""), (Called, ""), (Outer, "inner.")])
def test_weights_that_a_module_uses_itself_are_changed_in_place(tmp_path: Path, kind: type, prefix: str) -> None:
    model = kind()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    wanted, found, notes = outputs(model, adapter_on(tmp_path, prefix))
    assert torch.allclose(wanted, found, atol=1e-6)
    assert any(
        f"1 weights are merged in memory, since no layer's output shows them alone: {prefix}a" in n for n in notes
    )
    assert not any("played no part" in note for note in notes)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("kind", [Plain, Asking])
def test_layers_that_are_called_have_hooks(tmp_path: Path, kind: type) -> None:
    wanted, found, notes = outputs(kind(), adapter_on(tmp_path))
    assert torch.allclose(wanted, found, atol=1e-6) and not notes


def test_what_no_source_tells_is_said_after_the_first_run(tmp_path: Path) -> None:
    model, adapter = Hidden(), adapter_on(tmp_path)
    with adaptertool.attached(model, adapter):
        with pytest.warns(UserWarning, match=r"does nothing in 1 of 2 layers: .* holds a\.weight, and did not call it"):
            model(X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model(X)
        warnings.simplefilter("ignore")


def test_multihead_attention_and_the_fast_path_of_encoders(tmp_path: Path) -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    shapes = {"self_attn.out_proj": (8, 8), "linear1": (16, 8), "linear2": (8, 16)}
    factors = {key: tensor for name, shape in shapes.items() for key, tensor in lora_factors(name, shape).items()}
    adapter, x = write_adapter(tmp_path / "a", factors), torch.randn(2, 5, 8)
    with torch.no_grad():
        with adaptertool.applied(model, adapter):
            wanted = model(x)
        with adaptertool.attached(model, adapter):
            assert torch.allclose(model(x), wanted, atol=1e-5)
        assert not torch.allclose(model(x), wanted, atol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("how", ["given as such", "the model in it", "compile()", "in a function"])
def test_compiled_before(tmp_path: Path, how: str) -> None:
    torch._dynamo.reset()
    model, adapter = Plain(), adapter_on(tmp_path)
    given: Any = model
    call: Any = torch.compile(model, backend="eager")
    if how == "given as such":
        given = call
    elif how == "compile()":
        model.compile(backend="eager")
        call = model
    elif how == "in a function":
        call = torch.compile(lambda x: model(x), backend="eager")
    before = call(X)
    with adaptertool.applied(model, adapter):
        wanted = model(X)
    with (
        pytest.warns(UserWarning, match=r"torch\.compile has made .* is dropped"),
        adaptertool.attached(given, adapter),
    ):
        found = call(X)
    assert torch.allclose(found, wanted, atol=1e-6) and not torch.allclose(found, before, atol=1e-3)
    assert torch.equal(call(X), before)
    torch._dynamo.reset()


def test_compiled_in_the_block_it_does_not_keep_the_adapter(tmp_path: Path) -> None:
    torch._dynamo.reset()
    model, adapter = Plain(), adapter_on(tmp_path)
    with adaptertool.applied(model, adapter):
        wanted = model(X)
    with adaptertool.attached(model, adapter):
        call = torch.compile(model, backend="eager")
        assert torch.allclose(call(X), wanted, atol=1e-6)
    assert torch.equal(call(X), model(X))
    torch._dynamo.reset()
