"""VeRA: W' = W + w·(b ⊙ B)·(d ⊙ A), with A (r, in) and B (out, r) random and shared by all modules: of each, the first
columns and rows that the weight has. b (out) multiplies rows of B, d (r) rows of A.

Source: D. Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation" (arXiv:2310.11454). Checked against PEFT
0.21.2 in the tests. Where A and B are not saved, PEFT makes them anew by a generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adaptertool.kinds.kind import Kind, Part, Shape
from adaptertool.kinds.made import product, products, terms_of, whole
from adaptertool.kinds.misreadings import ONES, ignored
from adaptertool.kinds.spelling import Spelling
from adaptertool.numerics.error_bound import Array
from adaptertool.spec.tensors import ReadRows, Ref

A, B, LEFT, RIGHT = "vera_A", "vera_B", "vera_lambda_b", "vera_lambda_d"
_SAVING = """what PEFT draws by chance is not in its file, and other machines may draw otherwise. With PEFT, on the \
machine that trained it:
  model = peft.PeftModel.from_pretrained(base, "ADAPTER")
  model.peft_config["default"].{field} = True
  for module in model.modules(): module._non_persistent_buffers_set.clear()
  model.save_pretrained("WHOLE")"""


def not_saved(field: str, fields: Mapping[str, Any]) -> str | None:
    """Why the settings are not handled: the field says that what is random is not in the file."""
    return None if fields.get(field) else f"{field} = false: {_SAVING.format(field=field)}"


def why_not_saved(fields: Mapping[str, Any]) -> str | None:
    """The same, of the field that most kinds have. Files of PEFT before 0.8 have no such field, and hold it all."""
    return not_saved("save_projection", {"save_projection": True, **fields})


def shapes(weight: Shape, factors: Mapping[str, Shape]) -> Mapping[str, Shape] | None:
    """A (r, in or more), B (out or more, r), b (out,) and d (r,) for a weight (out, in)."""
    a, b = factors[A], factors[B]
    if len(weight) != 2 or len(a) != 2 or len(b) != 2:
        return None
    return {
        A: (a[0], max(a[1], weight[1])),
        B: (max(b[0], weight[0]), a[0]),
        LEFT: (weight[0],),
        RIGHT: (a[0],),
    }


def becomes(factors: Mapping[str, Ref], weight: Shape, scale: float, settings: Mapping[str, Any]) -> Sequence[Part]:  # noqa: ARG001
    """LoRA with b ⊙ B and d ⊙ A."""
    a, b, left, right = (factors[role] for role in (A, B, LEFT, RIGHT))
    rank, (out, wide) = a.shape[0], weight
    of_b, of_a = terms_of(b, left), terms_of(a, right)

    def b_rows(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return products(read(b, first, last), read(left, first, last), of_b)

    def a_rows(read: ReadRows, first: int, last: int) -> Sequence[Array]:
        return products(read(a, first, last)[:, :wide], whole(read, right)[first:last, None], of_a)

    return [product((a, b, left, right), (out, rank, wide), (b_rows, of_b), (a_rows, of_a), scale)]


VERA = Kind(
    name="vera",
    roles=frozenset({A, B, LEFT, RIGHT}),
    by_row=frozenset({LEFT, B}),
    shapes=shapes,
    becomes=becomes,
    linear=True,
    misreadings=ignored(becomes, ONES, LEFT, RIGHT),
    spellings={
        "peft": Spelling(
            tag="VERA",
            keys={f".{role}": role for role in (LEFT, RIGHT)},
            shared={f"base_model.{role}": role for role in (A, B)},
            alpha=None,
            scale=lambda _: 1.0,
            check=why_not_saved,
            harmless=frozenset({"projection_prng_key", "save_projection", "vera_dropout", "d_initial", "init_weights"}),
        )
    },
)
