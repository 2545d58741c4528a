"""What an adapter can learn, and what it costs: rules of J. Schulman and Thinking Machines, "LoRA Without Regret", 2025
(thinkingmachines.ai/blog/lora).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from adaptertool.reports.inspect import Capacity

# Knowledge that a parameter can store: Z. Allen-Zhu, Y. Li, "Physics of Language Models: Part 3.3, Knowledge Capacity
# Scaling Laws", 2024.
BITS_PER_PARAMETER = 2
BITS_PER_EPISODE = 1  # of reinforcement learning by policy gradients: the advantage of an episode tells about so much
LEARNING_RATE = 10  # times that of full fine-tuning

Form = tuple[int, int, int]  # out, in, rank


def capacity_of(trainable: int, forms: Iterable[Form], needed: float | None) -> Capacity:
    """The capacity of an adapter with so many parameters. needed: bits of the data, of `bits_of_tokens` or one for each
    episode."""
    bits = BITS_PER_PARAMETER * trainable
    load = None if needed is None or not bits else needed / bits
    return Capacity(
        trainable=trainable,
        bits=bits,
        needed=needed,
        load=load,
        verdict=None if load is None else "enough" if load <= 1 else "short",
        compute=relative_compute(forms),
    )


def bits_of_tokens(tokens: float, nats_per_token: float) -> float:
    """The description length of a data set: the log loss of its tokens, summed over the first epoch."""
    return tokens * nats_per_token / math.log(2)


def relative_compute(forms: Iterable[Form]) -> float | None:
    """The cost of a forward and backward pass through layers of these forms, relative to full fine-tuning.

    Multiplications per token: 3·out·in for full fine-tuning (forward, gradients of inputs and of weights), and
    2·out·in + 3·r·(out + in) for LoRA, which needs no gradient of the weight: about 2/3.
    """
    full = own = 0
    for out, inner, rank in forms:
        full += 3 * out * inner
        own += 2 * out * inner + 3 * rank * (out + inner)
    return own / full if full else None
