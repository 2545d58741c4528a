"""PEFT in float64, also what it computes in float32 whatever the weights are."""

from __future__ import annotations

import contextlib
import logging
import types
from collections.abc import Iterator

import pytest
import torch
from peft.tuners.boft import layer as boft
from peft.tuners.c3a import layer as c3a
from peft.tuners.deft import layer as deft
from peft.tuners.lora import variants
from peft.tuners.osf import utils as osf


class Blocks:
    """In the place of what PEFT compiles for CUDA, of BOFT."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*some) for some in blocks])]


@contextlib.contextmanager
def in_doubles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fourier transforms, DEFT, OSF and KaSA."""
    circulant, inverse = c3a.get_circulant_fast, torch.fft.ifft2
    with monkeypatch.context() as patch:
        patch.setattr(c3a, "get_circulant_fast", lambda kernel: circulant(kernel.double()))
        patch.setattr(torch.fft, "ifft2", lambda spectrum: inverse(spectrum.double()))
        for module in (deft, osf, variants):
            patch.setattr(module, "torch", types.SimpleNamespace(**{**vars(torch), "float32": torch.float64}))
        yield


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """BOFT without a compiler, and nothing in the log, in each module that imports this."""
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: Blocks)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
