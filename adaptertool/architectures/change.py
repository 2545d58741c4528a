"""How the numbers of a tensor differ between a checkpoint and GGUF."""

from __future__ import annotations

from typing import NamedTuple


class Change(NamedTuple):
    """How the numbers of a tensor here differ from those of the tensor that an adapter was trained on.

    Of llama and others the rows of q_proj and k_proj are in another order within each head in GGUF: of d rows the two
    halves in turn. And to the weights of some norms 1 is added.
    """

    heads: int = 0  # so many heads, whose rows are in another order; 0: all are in their place
    into_gguf: bool = True  # it is GGUF here, and the adapter is for a checkpoint; else the reverse
    shifted: bool = False  # 1 is added, or subtracted
    size: int | None = None  # rows of a head, where that is said beside their number

    def order(self, rows: int) -> list[int]:
        """Which row of the tensor that the adapter was trained on each row here is."""
        size = rows // self.heads
        half = size // 2
        inside = [row % 2 * half + row // 2 if self.into_gguf else row % half * 2 + row // half for row in range(size)]
        return [head * size + row for head in range(self.heads) for row in inside]
