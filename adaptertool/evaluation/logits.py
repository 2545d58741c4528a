"""How far the logits of one model are from those of another, position by position.

The reference runs first, and its logits are kept in float32: up to 256 MB in memory, beyond that in a temporary file
that has no name. So one model is in memory at a time, with the logits of one prompt.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from adaptertool.errors import MismatchError, NonFiniteError, StorageError, UnsupportedError
from adaptertool.evaluation.encoding import Case
from adaptertool.evaluation.loading import explained
from adaptertool.records import dataclass
from adaptertool.reports.evaluate import LogitDrift

_IN_MEMORY = 256 << 20  # bytes of logits; more of them are kept in a file
_AT_ONCE = 1 << 22  # elements that are compared at once, in float64


def logits_of(model: Any, tokens: Sequence[int], line: int, name: str) -> torch.Tensor:
    """The logits of a model for `tokens`, (positions, vocabulary), float32, on the device of the model.

    Raises NonFiniteError, which names the line of the prompts.
    """
    ids = torch.tensor([tokens], device=model.device)
    with _running(name, line):
        logits: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    if not bool(torch.isfinite(logits).all()):
        raise NonFiniteError(f"{name} gives logits that are not finite, on line {line} of the prompts")
    return logits.float()


def generate(model: Any, case: Case, count: int, name: str) -> list[int]:
    """Up to `count` tokens by greedy decoding, the one that ends the text included."""
    if not count:
        return []
    ids = torch.tensor([case.prompt], device=model.device)
    with _running(name, case.line):
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=1,
            max_new_tokens=count,
            pad_token_id=model.generation_config.pad_token_id or 0,  # one text at a time has no padding
        )
    made: list[int] = out[0, len(case.prompt) :].tolist()
    return made


@contextlib.contextmanager
def _running(name: str, line: int) -> Iterator[None]:
    what = f"{name} cannot be run by transformers on line {line} of the prompts"
    with explained(what, UnsupportedError), torch.inference_mode():
        yield


class Reference:
    """What the reference gave: its logits at every position of every prompt, and what it generated."""

    def __init__(self, model: Any, name: str, cases: Sequence[Case], count: int) -> None:
        self._count, self._cases, self._width = count, cases, 0
        self._texts = [generate(model, case, count, name) for case in cases]
        self._file = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)  # noqa: SIM115  # closed by close
        for case in cases:
            logits = logits_of(model, case.prompt, case.line, name)
            if not self._width:
                self._width = logits.shape[1]
                self._check_space()
            self._file.write(logits.cpu().contiguous().numpy().data)

    def drift(self, model: Any, name: str) -> LogitDrift:
        """Raises MismatchError for a vocabulary of another size."""
        self._file.seek(0)
        total = _Sums()
        for case in self._cases:
            ours = logits_of(model, case.prompt, case.line, name)
            if ours.shape[1] != self._width:
                raise MismatchError(
                    f"{name} gives logits of {ours.shape[1]:,} tokens, the model that it is compared with of "
                    f"{self._width:,}"
                )
            total.add(self._read(len(ours)).to(ours.device), ours, case.line)
        made = [generate(model, case, self._count, name) for case in self._cases]
        equal = sum(one == other for one, other in zip(made, self._texts, strict=True))
        return total.drift(equal / len(self._cases) if self._count else None)

    def close(self) -> None:
        self._file.close()

    def _read(self, rows: int) -> torch.Tensor:
        data = bytearray(self._file.read(rows * self._width * 4))
        return torch.frombuffer(data, dtype=torch.float32).view(rows, self._width)

    def _check_space(self) -> None:
        size = sum(len(case.prompt) for case in self._cases) * self._width * 4
        free = shutil.disk_usage(tempfile.gettempdir()).free
        if size > _IN_MEMORY and size > free:
            raise StorageError(
                f"the logits to compare with take {size:,} bytes, and {tempfile.gettempdir()} has {free:,} free; "
                "give fewer prompts, or set TMPDIR"
            )


@dataclass(slots=True)
class _Sums:
    positions: int = 0
    elements: int = 0
    largest: float = 0.0
    total: float = 0.0
    divergence: float = 0.0
    worst: float = 0.0
    worst_line: int = 0
    agreeing: int = 0

    def add(self, reference: torch.Tensor, ours: torch.Tensor, line: int) -> None:
        """KL(p ‖ q) = Σ p·(log p − log q) at each position, p of the reference; in nats."""
        self.positions += len(ours)
        self.elements += ours.numel()
        for p, q in _blocks(reference, ours):
            apart = (p - q).abs()
            self.largest = max(self.largest, apart.max().item())
            self.total += apart.sum().item()
            self.agreeing += int((p.argmax(1) == q.argmax(1)).sum())
            of_p, of_q = p.log_softmax(1), q.log_softmax(1)
            divergence = (of_p.exp() * (of_p - of_q)).sum(1).clamp(min=0)  # below 0 by rounding alone
            self.divergence += divergence.sum().item()
            if not self.worst_line or divergence.max().item() > self.worst:
                self.worst, self.worst_line = divergence.max().item(), line

    def drift(self, equal: float | None) -> LogitDrift:
        return LogitDrift(
            max_logit=self.largest,
            mean_logit=self.total / self.elements,
            mean_kl=self.divergence / self.positions,
            max_kl=self.worst,
            worst_line=self.worst_line,
            top1_agreement=self.agreeing / self.positions,
            text_equality=equal,
        )


def _blocks(one: torch.Tensor, other: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A few positions at a time, in float64 (float32 on devices without it)."""
    wide = torch.float32 if one.device.type == "mps" else torch.float64
    size = max(1, _AT_ONCE // one.shape[1])
    for first in range(0, len(one), size):
        yield one[first : first + size].to(wide), other[first : first + size].to(wide)
