"""An adapter of PEFT's of what one of another format changes: its factors, and a config that says what they mean.

PEFT has one kind, and one answer to whether there is a magnitude or a bias, for a whole adapter.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from adaptertool.architectures.flat import is_flat
from adaptertool.architectures.parts import part_of
from adaptertool.errors import UsageError, shown
from adaptertool.formats.format import Written
from adaptertool.formats.peft import lokr
from adaptertool.formats.peft.fields import FORMAT
from adaptertool.formats.peft.keys import CONFIG, PREFIX
from adaptertool.formats.peft.write import config_text, new_fields
from adaptertool.formats.saving import WritingOptions, drafted, in_order, refuse
from adaptertool.formats.spelled_out import in_family, kept_metadata
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.offset import BIAS
from adaptertool.patterns import regex
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Draft, Drafted, Portable

_WHAT = "PEFT's format"
_ENDINGS = {A: ".lora_A.weight", B: ".lora_B.weight", MAGNITUDE: ".lora_magnitude_vector", BIAS: ".lora_B.bias"}
_OF_EMBEDDING = {A: ".lora_embedding_A", B: ".lora_embedding_B", MAGNITUDE: ".lora_magnitude_vector"}
_EXPERT = regex(r"\.experts\.\d+\.")
_HADAMARD = "LOHA"  # the tag of a kind whose config is the same, but for what alpha is called


def draft(portable: Portable, options: WritingOptions) -> Draft:
    """The files. Raises UnsupportedError for what they cannot hold, and UsageError for a prefix."""
    if options.prefix is not None:
        raise UsageError(f"a prefix is for names in single files; in {_WHAT} all names begin alike")
    front = _one_part(portable)
    saved = [change for change in portable.changes if kind_of(change).replaces]
    low = [_in_peft(portable, change) for change in portable.changes if not kind_of(change).replaces]
    one_kind(portable, low, _WHAT)
    shaped: Mapping[str, Any] = {}
    if _tag_of(low) == lokr.TAG:
        shaped, low = lokr.in_config(portable, low)
    tensors = [tensor for change in low for tensor in factors_of(change, PREFIX + change.name.removeprefix(front))]
    for change in saved:
        tensors += [drafted(PREFIX + change.target.removeprefix(front), ref) for ref in change.factors.values()]
    modules = sorted({change.name.removeprefix(front) for change in saved if change.target.endswith(".weight")})
    config = config_of(portable, low, front, modules, shaped)
    metadata = {"format": "pt", **kept_metadata(portable.adapter)}
    return Draft(tensors=in_order(tensors), metadata=metadata, files={CONFIG: config}, notes=list(_notes(low)))


def _notes(low: Sequence[Module]) -> Iterator[str]:
    if experts := [change for change in low if _EXPERT.search(change.name)]:
        yield (
            f"{len(experts)} layers of experts, {shown(experts[0].name)} the first, have names that models have before "
            "transformers 5; since then experts are one parameter, for which PEFT has no such factors"
        )


def _one_part(portable: Portable) -> str:
    """What all names begin with that is no part of a path in the model: the part of a pipeline."""
    if flat := [change for change in portable.changes if is_flat(change.name)]:
        refuse(
            portable, flat, f"named as kohya's tools do, which only a base can tell, and {_WHAT} has paths: give --base"
        )
    fronts: dict[str, Module] = {}
    for change in portable.changes:
        fronts.setdefault(change.name.removesuffix(part_of(change.name)[1]), change)
    if len(fronts) > 1:
        parts = " or ".join(f"--part {front.removesuffix('.') or 'of none'}" for front in fronts)
        refuse(
            portable,
            list(fronts.values()),
            f"of several parts of a pipeline; {_WHAT} has an adapter for each model: convert one at a time, {parts}",
        )
    return next(iter(fronts), "")


def _in_peft(portable: Portable, change: Module) -> Module:
    """The change by a kind of PEFT's. Raises UnsupportedError where it has none, or no place."""
    parameter = change.target.rpartition(".")[2]
    if change.rows is not None or change.grouped or parameter not in ("weight", "bias"):
        refuse(
            portable,
            [change],
            f"a change of {shown(change.target)}, a parameter of its own, which is not converted yet",
        )
    return change if kind_of(change).follows else in_family(portable, change, FORMAT, _WHAT)


def one_kind(portable: Portable, changes: Sequence[Module], what: str) -> None:
    """Raises UnsupportedError for changes of several kinds, of which one config can have one."""
    kinds: dict[str, Module] = {}
    for change in changes:
        if not kind_of(change).follows:
            kinds.setdefault(change.kind, change)
    if len(kinds) > 1:
        refuse(
            portable,
            list(kinds.values()),
            f"of different kinds ({', '.join(sorted(kinds))}), of which {what} has "
            "one for each adapter: merge them into the base one after the other",
        )
    biased = {change.name for change in changes if kind_of(change).follows}
    if biased and (bare := [change for change in changes if change.name not in biased]):
        refuse(portable, bare, f"without a change of the bias that others have; {what} has it for all or for none")


def factors_of(change: Module, key: str) -> Iterator[Drafted]:
    """The factors of a change, and of its bias, under the keys that PEFT has for them.

    key: that of the module
    """
    spelling = kind_of(change).spellings.get(FORMAT)
    if spelling is not None:
        endings = {role: ending for ending, role in spelling.keys.items()}
    else:
        endings = _OF_EMBEDDING if change.transposed and kind_of(change).pair else _ENDINGS
    for role, ref in change.factors.items():
        yield drafted(key + endings[role], ref)


def _tag_of(low: Sequence[Module]) -> str | None:
    """The peft_type of changes of one kind; None for LoRA."""
    return next((found.tag for change in low if (found := kind_of(change).spellings.get(FORMAT))), None)


def config_of(
    portable: Portable,
    low: Sequence[Module],
    front: str,
    saved: Sequence[str],
    shaped: Mapping[str, Any] = MappingProxyType({}),
) -> bytes:
    """The config: ranks, scales and targets of these changes, whose names begin with `front`, and the fields that
    decide the shapes of their factors."""
    tag = _tag_of(low)
    if tag not in (None, _HADAMARD, lokr.TAG):
        why = f"of kind {low[0].kind}, which PEFT has in shapes that follow from a config: not converted to {_WHAT} yet"
        refuse(portable, low, f"{why}; merge it into its base, and extract a LoRA")
    base = portable.config or {}
    architectures, named = base.get("architectures"), portable.adapter.trained_on or base.get("_name_or_path")
    causal = isinstance(architectures, list) and any(str(one).endswith("ForCausalLM") for one in architectures)
    fields = new_fields(str(named or ""), biases=False, transposed=False, saved_modules=saved, causal=causal)
    fields["use_dora"] = any(MAGNITUDE in change.factors for change in low)
    if portable.adapter.ties_ends:
        fields["ensure_weight_tying"] = True
    fields["lora_bias"] = any(kind_of(change).follows for change in low)
    layers = [
        Written(change.name.removeprefix(front), change.rank, change.scale)
        for change in low
        if not kind_of(change).follows
    ]
    text = config_text(fields, layers)
    if tag is None:
        return text
    own = {name: value for name, value in json.loads(text).items() if name in _OF_ANY}
    own |= {"peft_type": tag, "alpha": json.loads(text)["lora_alpha"], **shaped}
    return (json.dumps(own, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


_OF_ANY = (
    "base_model_name_or_path", "inference_mode", "modules_to_save", "task_type", "r", "rank_pattern", "alpha_pattern",
    "target_modules",
)  # fmt: skip
