"""Where the product of two factors may stand for them: of all of both, and of nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptertool.arithmetic.requirements import shortcut_of
from adaptertool.kinds.kind import Part
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import product
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import ReadRows, Ref, TensorSpec

STORED = Ref(Path("adapter"), 0, TensorSpec("x", "F32", (4, 6), 96))


def part_of() -> Part:
    def rows(read: ReadRows, first: int, last: int) -> Any:  # noqa: ARG001
        return [np.ones((last - first, 2))]

    def shortcut(*_: Any) -> tuple[Any, float]:
        return np.ones((4, 6)), 0.0

    return product((STORED,), (4, 2, 6), (rows, 1), (rows, 1), 1.0, shortcut=shortcut)


def edit_of(part: Part, kind: str = "lora", **factors: Ref) -> Edit:
    roles = {"lora_A": part.factors[A], "lora_B": part.factors[B], **factors}
    return Edit(kind, 0, "l", roles, 1.0, 1.0)


def test_all_of_both() -> None:
    edit = edit_of(part_of())
    assert shortcut_of(edit) is not None and shortcut_of(edit._replace(transposed=True)) is not None
    assert shortcut_of(edit._replace(kind="dora")) is not None
    assert shortcut_of(edit._replace(kind="dora", transposed=True)) is None  # its norms are those of stored columns


@pytest.mark.parametrize(
    "change",
    [
        {"lora_B": part_of().factors[B]},  # of another
        {"lora_A": part_of().factors[A]},
        {"lora_B": STORED},
        {"lora_A": STORED},
        {"lora_B": "rows"},
        {"lora_A": "rows"},
        {"lora_B": "last rows"},
        {"lora_A": "columns"},
        {"lora_B": "columns"},
    ],
)
def test_parts_and_others(change: dict[str, Any]) -> None:
    part = part_of()
    ((role, new),) = change.items()
    own = part.factors[role]
    cut = {"rows": lambda: own.rows(0, 1), "last rows": lambda: own.rows(2, 4)}
    if new == "columns":
        new = own._replace(columns=range(1))
    elif isinstance(new, str):
        new = cut[new]()
    assert shortcut_of(edit_of(part, **{role: new})) is None
