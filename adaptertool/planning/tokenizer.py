"""Whose tokenizer the output has: the base's, or that which lies beside an adapter."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping

from adaptertool.errors import MismatchError, UsageError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.jsonfile import objects
from adaptertool.files.tokenizer import Files, differences, is_tokenizer_file, read_tokenizer, stale
from adaptertool.spec.plan import Plan

BASE, ADAPTER = TOKENIZERS = ("base", "adapter")
_HOW = "--tokenizer adapter takes what is there"


def with_tokenizer(plan: Plan, base: Checkpoint, tokenizer: str | None) -> Plan:
    """The plan with the tokenizer and chat template of an adapter, or a note that it has others than the base.

    tokenizer: "base" or "adapter"; where None the base's, but where the vocabulary follows the adapter's the adapter's.
    Raises UsageError where there is none to take, MismatchError where adapters have different ones.
    """
    if tokenizer is None:
        chosen = ADAPTER if _has_other_vocabulary(plan, base) else None
    elif tokenizer in TOKENIZERS:
        chosen = tokenizer
        plan = dataclasses.replace(plan, choices={**plan.choices, "tokenizer": tokenizer})
    else:
        raise UsageError(f"tokenizer is {' or '.join(TOKENIZERS)}, not {tokenizer!r}")
    if chosen == BASE or (base.is_file and tokenizer is None):
        return plan
    if base.is_file:
        raise UsageError(f"{base.path} is one file, and the output has no tokenizer: leave out --tokenizer")
    own = {number: files for number, path in enumerate(plan.sources) if (files := read_tokenizer(path))}
    theirs = {asset.name: asset for asset in base.assets if is_tokenizer_file(asset.name)}
    if chosen == ADAPTER and own:
        return _taken(plan, theirs, _only(plan, own), explicit=tokenizer is not None)
    if tokenizer == ADAPTER:
        raise UsageError(f"there is no tokenizer in {', '.join(map(str, plan.sources))} to take")
    if chosen == ADAPTER:
        notes = ["the vocabulary has another size, but beside the adapter is no tokenizer for it: the base's is kept"]
    else:
        told = ((plan.sources[number], differences(theirs, files)) for number, files in own.items())
        notes = [
            f"{path} has another tokenizer or chat template than the base: {', '.join(which)}; the base's is kept, and "
            f"{_HOW}"
            for path, which in told
            if which
        ]
    return dataclasses.replace(plan, notes=(*plan.notes, *notes))


def _has_other_vocabulary(plan: Plan, base: Checkpoint) -> bool:
    """Whether config.json of the output has another vocab_size."""
    new = next((asset.content for asset in plan.assets if asset.name == "config.json"), None)
    if new is None or base.config is None:
        return False
    configs = base.config, json.loads(new)
    before, after = ([part["vocab_size"] for part in objects(one) if "vocab_size" in part] for one in configs)
    return before != after


def _only(plan: Plan, own: Mapping[int, Files]) -> tuple[int, Files]:
    """The tokenizer of the first adapter that has one. Raises MismatchError where others have different ones."""
    (first, files), *others = own.items()
    for number, more in others:
        if which := differences(files, more) or differences(more, files):
            raise MismatchError(
                f"{plan.sources[first]} and {plan.sources[number]} have different tokenizers ({', '.join(which)}), and "
                "the output can have one: put the other away, or give --tokenizer base"
            )
    return first, files


def _taken(plan: Plan, theirs: Files, chosen: tuple[int, Files], *, explicit: bool) -> Plan:
    number, files = chosen
    if not differences(theirs, files) and not stale(theirs, files):
        return plan
    left = stale(theirs, files)
    kept = [name for name in theirs if name not in files and name not in left]
    note = f"the tokenizer is that of {plan.sources[number]}"
    note += "" if explicit else ", as its vocabulary is (--tokenizer base keeps the base's)"
    note += f": {', '.join(map(shown, files))}"
    note += f"; left out of the base's: {', '.join(map(shown, left))}" if left else ""
    note += f"; kept of the base's: {', '.join(map(shown, kept))}" if kept else ""
    rest = (asset for asset in plan.assets if asset.name not in files and asset.name not in left)
    sources = list(plan.files)
    sources[number + 1] = {**sources[number + 1], **{name: asset.source for name, asset in files.items()}}
    return dataclasses.replace(
        plan,
        assets=(*rest, *files.values()),
        inputs={**plan.inputs, **{asset.source: asset.stamp for asset in files.values()}},
        files=tuple(sources),
        notes=(*plan.notes, note),
        choices={**plan.choices, "tokenizer": ADAPTER},
    )
