"""Module -> base tensor. Every module finds exactly one tensor that it fits, or the run is refused."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats.adapter import Adapter, Module
from adaptertool.kinds import BY_NAME
from adaptertool.spec import COMPUTED, Ref

# Families whose linear layers are stored (in, out): Conv1D of transformers. Where a weight is square its
# shape does not tell, so the family must.
_TRANSPOSED_FAMILIES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_TRANSPOSED_NAMES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})

_EMBEDDINGS = frozenset(
    {"embed_tokens", "lm_head", "wte", "embed_in", "embed_out", "word_embeddings", "tok_embeddings", "shared"}
)
# Tensors that stand beside a weight `<stem>weight` that holds codes: scales and the like.
_CODE_ENDINGS = (
    "weight_scale", "weight_scale_inv", "weight_packed", "weight.absmax", "weight.quant_map", "weight.SCB", "SCB",
    "qweight", "scales",
)  # fmt: skip
_SHOWN = 8  # unmatched modules that an error lists in full


def resolve(base: Checkpoint, adapter: Adapter) -> Mapping[str, list[Module]]:
    """Base tensor name -> the modules of `adapter` that change it, replacements before deltas.

    Raises MismatchError for modules without a tensor (with the nearest names) and for shapes that do not fit,
    UnsupportedError for a base whose weights cannot be edited as they are stored.
    """
    unmatched = [module for module in adapter.modules if module.target not in base.tensors]
    if unmatched:
        if method := _quantisation(base):
            raise UnsupportedError(f"{base.path} is quantised ({method}).\n{_unmatched(base, adapter, unmatched)}")
        raise MismatchError(_unmatched(base, adapter, unmatched))
    resolved: dict[str, list[Module]] = {}
    stems = quantised_stems(base)
    for module in adapter.modules:
        ref = base.tensors[module.target]
        refuse_quantised(base, ref, stems)
        _check_shapes(ref, module)
        _refuse_tied(base, ref)
        _check_orientation(base, ref, module)
        resolved.setdefault(module.target, []).append(module)
    for modules in resolved.values():
        modules.sort(key=lambda module: not BY_NAME[module.kind].elementwise)  # a saved weight, then the delta on it
    return resolved


def quantised_stems(base: Checkpoint) -> Mapping[str, str]:
    """Stem of a quantised weight -> the tensor beside it that shows this."""
    stems = {}
    for name in base.tensors:
        if name.endswith(_CODE_ENDINGS):
            ending = max((ending for ending in _CODE_ENDINGS if name.endswith(ending)), key=len)
            stems[name.removesuffix(ending)] = name
    return stems


def _quantisation(base: Checkpoint) -> str | None:
    """What config.json says of quantisation."""
    config = base.config or {}
    settings = config.get("quantization_config") or config.get("compression_config")
    if not settings:
        return None
    return (
        f"config.json: quant_method {shown(settings.get('quant_method') if isinstance(settings, dict) else settings)}"
    )


def refuse_quantised(base: Checkpoint, ref: Ref, stems: Mapping[str, str]) -> None:
    """Refuse to edit a tensor whose stored numbers are codes, not weights. `stems`: from quantised_stems."""
    name = ref.spec.name
    if method := _quantisation(base):
        why = method
    elif ref.spec.dtype not in COMPUTED:
        why = f"it is stored as {ref.spec.dtype}"
    elif stems and name.endswith("weight") and name.removesuffix("weight") in stems:
        why = f"{shown(stems[name.removesuffix('weight')])} stands beside it"
    else:
        return
    raise UnsupportedError(
        f"{ref.path}: {shown(name)} looks quantised ({why}); arithmetic on quantised weights is not supported: "
        "use the checkpoint that it was made from"
    )


def _refuse_tied(base: Checkpoint, ref: Ref) -> None:
    """Refuse to edit an embedding or output head that may be tied: loaders would apply it twice or not at all."""
    if base.config is None:
        # No flag to read. A file that holds both ends of the model does not tie them.
        ends = [name for name in base.tensors if _EMBEDDINGS.intersection(name.split("."))]
        tied, why = ref.spec.name in ends and len(ends) < 2, "the file holds no other, and there is no config.json"
    else:
        tied = _is_embedding(base.config, ref) and _may_be_tied(base.config)
        why = "config.json does not say tie_word_embeddings: false"
    if tied:
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)} is an embedding or output head, and may be tied: {why}; "
            "edits of tied embeddings are not supported yet"
        )


def _is_embedding(config: Mapping[str, Any], ref: Ref) -> bool:
    sizes = [part.get("vocab_size") for part in _parts(config)]
    shape, name = ref.spec.shape, ref.spec.name
    return (len(shape) == 2 and shape[0] in sizes) or bool(_EMBEDDINGS.intersection(name.split(".")))


def _may_be_tied(config: Mapping[str, Any]) -> bool:
    flags = [part["tie_word_embeddings"] for part in _parts(config) if "tie_word_embeddings" in part]
    return not flags or any(flag is not False for flag in flags)


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The config of the model and, below it, of those that it is made of: text_config, decoder, ..."""
    return [config, *(deep for part in config.values() if isinstance(part, dict) for deep in _parts(part))]


def _check_shapes(ref: Ref, module: Module) -> None:
    kind = BY_NAME[module.kind]
    shapes = {role: factor.spec.shape for role, factor in module.factors.items()}
    expected = kind.expected(ref.spec.shape, shapes)
    where = f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}"
    if expected is None:
        raise UnsupportedError(f"{where}; {kind.name} on a weight of that shape is not supported yet")
    for role, factor in module.factors.items():
        if factor.spec.shape != expected[role]:
            wanted = "×".join(map(str, expected[role])) or "scalar"
            raise MismatchError(
                f"{where}, so {shown(factor.spec.name)} must be {wanted}, but it is {factor.spec} in {factor.path}; "
                "is this adapter for another model?"
            )


def _check_orientation(base: Checkpoint, ref: Ref, module: Module) -> None:
    """Refuse a square weight that may be stored (in, out): the delta would be added transposed, in silence."""
    if BY_NAME[module.kind].elementwise:
        return
    families = {part["model_type"] for part in _parts(base.config or {}) if isinstance(part.get("model_type"), str)}
    if transposed := _TRANSPOSED_FAMILIES.intersection(families):
        family = min(transposed)
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)}: models of the family {family} store layers transposed (Conv1D); "
            "that is not supported yet"
        )
    if not families and ref.spec.shape[0] == ref.spec.shape[1] and module.name.split(".")[-1] in _TRANSPOSED_NAMES:
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)} is square and its name is one that GPT-2 stores transposed; "
            "without a config.json that gives model_type the direction is unknown"
        )


def _unmatched(base: Checkpoint, adapter: Adapter, modules: Sequence[Module]) -> str:
    lines = [f"{len(modules)} of {len(adapter.modules)} modules of {adapter.path} have no tensor in {base.path}:"]
    for module in modules[:_SHOWN]:
        near = nearest(module.target, base.tensors)
        lines.append(f"  {shown(module.target)}" + (f"  nearest: {', '.join(map(shown, near))}" if near else ""))
    if len(modules) > _SHOWN:
        lines.append(f"  and {len(modules) - _SHOWN} more")
    lines.append("is this adapter for another model? Nothing was written.")
    return "\n".join(lines)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Up to three of `names` that are most like `name`; those that end alike are looked at first."""
    pool = list(names)
    for parts in (3, 2, 1):
        ending = "." + ".".join(name.split(".")[-parts:])
        alike = [candidate for candidate in pool if candidate.endswith(ending)]
        if alike:
            pool = alike
            break
    return difflib.get_close_matches(name, pool[:2000], n=3, cutoff=0.5)
