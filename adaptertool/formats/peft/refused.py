"""What PEFT's other kinds of adapters are, by peft_type, and why they are not merged. As read in PEFT 0.21.2."""

from __future__ import annotations

from collections.abc import Iterable

from adaptertool.errors import shown

_KEEP = "keep it beside the base, and load both with PEFT"
_BY_PEFT = (
    "merge it with PEFT (merge_and_unload) on the machine and device that trained it, onto the very base that it was "
    "trained on; `adaptertool diff`, `wise` and `extract` take the checkpoint that it makes"
)
_TOKENS = f"learns virtual tokens that stand before every input, and no weight of the base changes: {_KEEP}"
_KEYS = f"learns keys and values that attention finds before those of every input; no weight changes: {_KEEP}"

# peft_type -> what follows it in a sentence
REFUSED = {
    # They change no weight
    "PROMPT_TUNING": _TOKENS,
    "MULTITASK_PROMPT_TUNING": _TOKENS,
    "P_TUNING": _TOKENS,
    "CPT": _TOKENS,
    "PREFIX_TUNING": _KEYS,
    "CARTRIDGE": _KEYS,
    "ADAPTION_PROMPT": f"adds to attention what it finds in learned prompts, by a gate; no weight changes: {_KEEP}",
    "SHADOW": f"runs a network of its own beside the base, whose weights do not change: {_KEEP}",
    # The change depends on the input
    "POLY": f"mixes its factors for every input by its task_ids, so no one weight has its change: {_KEEP}",
    "XLORA": "mixes several LoRA adapters for every input by a classifier, so no one weight has its change: keep it "
    "beside the base, or give those that its config names to `adaptertool sum` or `merge`, with weights of your choice",
    "LILY": f"mixes its factors for every input by a router, so no one weight has its change: {_KEEP}",
    # The file does not hold what they are made of, and PEFT makes it anew wherever it is loaded
    "PSOFT": "turns singular vectors of the base weight, whose signs its file does not tell: PEFT decomposes the "
    "weight again, and another device, or library, may choose others, which makes another weight of one file: "
    f"{_BY_PEFT}",
    "ADAMSS": "does not save which rows its factors are for: PEFT clusters the rows of the base weight again, from a "
    f"random start that another device draws otherwise, which makes another weight of one file: {_BY_PEFT}",
}


def why_refused(tag: object, known: Iterable[str]) -> str:
    """What to say after peft_type; known: those that are handled."""
    if isinstance(tag, str) and tag in REFUSED:
        return f"{tag} {REFUSED[tag]}"
    return f"{shown(tag)[:80]} is not known; {', '.join(known)} are supported"
