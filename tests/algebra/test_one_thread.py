"""Products and decompositions run on the thread that asks for them, however many threads BLAS has: with more, the last
bits would differ between machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import lora_factors, write_adapter, write_checkpoint
from threadpoolctl import threadpool_info, threadpool_limits

import adaptertool

Q = "model.layers.0.self_attn.q_proj"


def _threads() -> set[int]:
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


CALLS: dict[str, Callable[[Path], object]] = {
    "sum": lambda at: adaptertool.sum_adapters([at / "a", at / "b"], at / "out", base=at / "base", rank=2),
    "truncate": lambda at: adaptertool.truncate(at / "a", at / "out", rank=1),
    "extract": lambda at: adaptertool.extract(at / "base", at / "tuned", at / "out", rank=1),
    "inspect": lambda at: adaptertool.inspect(at / "a", spectra=True),
}


@pytest.mark.parametrize("call", CALLS)
def test_decompositions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    for name in ("a", "b"):
        write_adapter(tmp_path / name, lora_factors(Q, (8, 6)))
    for name in ("base", "tuned"):
        write_checkpoint(tmp_path / name, {f"{Q}.weight": torch.randn(8, 6)})
    seen: set[int] = set()

    def watched(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            seen.update(_threads())
            return real(*arguments, **options)

        return wrapper

    for name in ("svd", "eigh", "qr", "cholesky", "inv", "solve", "norm"):
        monkeypatch.setattr(np.linalg, name, watched(getattr(np.linalg, name)))
    with threadpool_limits(2, "blas"):
        CALLS[call](tmp_path)
        assert _threads() == {2}
    assert seen == {1}
