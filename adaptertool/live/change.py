"""The edits of one tensor in memory, in place, by the formulas of the kinds: on its device, in blocks, rounded once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.region import choose
from adaptertool.arithmetic.tiling import matrix, needs_columns
from adaptertool.arithmetic.verbatim import replaces
from adaptertool.errors import NonFiniteError, shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds import NORM, Kind, kind_of
from adaptertool.numerics.ops import FLOATS
from adaptertool.spec.plan import Edit, Step

BLOCK_ELEMENTS = 1 << 22  # of a weight computed at once: smaller ones cost more in calls


@contextlib.contextmanager
def plain_arithmetic(tensor: torch.Tensor) -> Iterator[None]:
    """A context without gradients, autocast and shortened products (TF32, bfloat16), whatever the caller has set."""
    device = tensor.device.type
    with contextlib.ExitStack() as stack:
        stack.enter_context(_full_products())
        if torch.amp.is_autocast_available(device):
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(torch.inference_mode(tensor.is_inference()))  # else such a tensor cannot be written
        stack.enter_context(torch.no_grad())
        yield


@contextlib.contextmanager
def _full_products() -> Iterator[None]:
    backends: Any = torch.backends
    if hasattr(backends.cuda.matmul, "fp32_precision"):  # torch 2.9; to set the older switch as well is refused by it
        settings = [backends.cuda.matmul, backends.mkldnn.matmul]
        kept = [setting.fp32_precision for setting in settings]
        try:
            for setting in settings:
                setting.fp32_precision = "ieee"
            yield
        finally:
            for setting, precision in zip(settings, kept, strict=True):
                setting.fp32_precision = precision
    else:
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("highest")
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def change(tensor: torch.Tensor, step: Step, alpha: float, inputs: Inputs) -> None:
    """tensor ← W + α·(W' − W), where W' has all edits of `step` made, in order.

    Raises NonFiniteError; the tensor is then changed in part, and for the caller to restore.
    """
    if not tensor.numel():
        return
    with plain_arithmetic(tensor):
        written = tensor.detach()  # shares its memory and its version
        whole = written if written.is_contiguous() else written.contiguous()
        rows, columns = matrix(step)
        # The norms of a weight that is stored transposed are those of its columns.
        turned = any(edit.transposed and kind_of(edit).norms for edit in step.edits)
        size = rows if turned or needs_columns(step.edits) else max(1, BLOCK_ELEMENTS // columns)
        chain = Chain(inputs, step)
        for first in range(0, rows, size):
            part = whole.view(rows, columns)[first : first + size]
            part.copy_(_changed(part, step, alpha, chain, first))
            if not bool(torch.isfinite(part).all()):
                raise NonFiniteError(
                    f"{step.base.path}: {shown(step.spec.name)}: the result of {shown(step.edits[-1].module)} is not "
                    f"finite in {step.spec.dtype} (a weight or factor that is not, an overflow, or DoRA of norm 0)"
                )
        if whole is not written:
            written.copy_(whole)


def _changed(part: torch.Tensor, step: Step, alpha: float, chain: Chain, first: int) -> torch.Tensor:
    before = part.to(arithmetic(part), copy=True)
    after = before.clone()
    for number, edit in enumerate(step.edits):
        make_edit(after, first, chain, number, edit)
    if alpha == 1 and replaces(step):
        return after
    value = after if alpha == 1 else before + (after - before) * alpha
    return torch.where((value == 0) & (before == 0), before, value)  # where nothing was added to −0 it stays


def arithmetic(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.element_size() == 2 else _widest(tensor)


def _widest(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def make_edit(rows: torch.Tensor, first: int, chain: Chain, number: int, edit: Edit) -> None:
    """Make one edit to rows from `first` on, in place; as Chain.apply does to arrays of numpy."""
    chosen = choose(edit, first, first + len(rows))
    if chosen is None:
        return
    kind = kind_of(edit)
    some = rows[chosen.index, chosen.columns]
    weight = some.T if edit.transposed else some
    stored = chain.factors(number, edit, chosen.places)
    factors = {role: as_torch(factor, rows.device, rows.dtype) for role, factor in stored.items()}
    if kind.norms is not None:
        factors[NORM] = norm_of(kind, weight, stored, edit.scale).to(rows.dtype)
    kind.apply(FLOATS, weight, factors, edit.scale, edit.weight)
    if isinstance(chosen.index, list):  # else `some` shares its memory with `rows`
        rows[chosen.index] = some


def norm_of(kind: Kind, weight: torch.Tensor, stored: dict[str, Any], scale: float) -> torch.Tensor:
    """‖V‖ of each row, (n, 1), summed in float64 where the device has it, over some columns at a time."""
    assert kind.norms is not None
    wide = _widest(weight)
    factors = {role: as_torch(factor, weight.device, wide) for role, factor in stored.items()}
    total = torch.zeros((len(weight), 1), dtype=wide, device=weight.device)
    size = max(1, BLOCK_ELEMENTS // len(weight))
    for first in range(0, weight.shape[1], size):
        columns = slice(first, first + size)
        cut = {role: factor[:, columns] if role in kind.by_column else factor for role, factor in factors.items()}
        total += kind.norms.squares(FLOATS, weight[:, columns].to(wide), cut, scale)
    joined: torch.Tensor = kind.norms.joined(total, stored)
    return joined.sqrt()


def as_torch(factor: Any, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """A factor, float64 of numpy, as torch has it."""
    narrowed = np.ascontiguousarray(factor, np.float32 if dtype == torch.float32 else np.float64)
    return torch.from_numpy(narrowed).to(device)
