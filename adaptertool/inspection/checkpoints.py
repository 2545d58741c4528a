"""A checkpoint's tensors by shard, dtype and family, and what its config and manifest say. Headers only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adaptertool.architectures.coded import formats_of
from adaptertool.architectures.conversion import architecture_of
from adaptertool.architectures.families import SHOWN_FIRST, family_of
from adaptertool.architectures.gguf import ARCHITECTURE
from adaptertool.architectures.traits import read_traits
from adaptertool.errors import InputError, shown
from adaptertool.files import store_of
from adaptertool.files.checkpoint import MANIFEST, Checkpoint, has_manifest, load_manifest
from adaptertool.files.gguf import BLOCKS
from adaptertool.files.reader import open_input
from adaptertool.files.store import FILE
from adaptertool.reports.inspect import CheckpointFacts, Portion
from adaptertool.resolution.resolve import open_base
from adaptertool.spec.tensors import Ref

# Fields of a config that tell the architecture, in the order in which they are shown
_FIELDS = (
    "model_type", "_class_name", "architectures", "num_hidden_layers", "n_layer", "hidden_size", "n_embd",
    "intermediate_size",
    "num_attention_heads", "n_head", "num_key_value_heads", "head_dim", "num_experts", "num_local_experts",
    "n_routed_experts", "num_experts_per_tok", "vocab_size", "max_position_embeddings", "dtype", "torch_dtype",
    "transformers_version",
)  # fmt: skip


def checkpoint_facts(checkpoint: Checkpoint) -> CheckpointFacts:
    refs = checkpoint.tensors.values()
    shards = [_portion(checkpoint.name_of(header), header.tensors.values()) for header in checkpoint.headers]
    families = _grouped(refs, lambda ref: family_of(ref.spec.name))
    return CheckpointFacts(
        tensors=len(refs),
        parameters=sum(ref.spec.numel for ref in refs),
        bytes=sum(header.size for header in checkpoint.headers),
        shards=tuple(shards),
        dtypes=tuple(sorted(_grouped(refs, lambda ref: ref.spec.dtype), key=lambda one: -one.bytes)),
        families=tuple(sorted(families, key=lambda one: SHOWN_FIRST.index(one.name))),
        config=(
            _config(checkpoint.config or {}, checkpoint.components)
            if checkpoint.gguf is None
            else _fields(checkpoint.gguf)
        ),
        tied=_tied(checkpoint),
        quantised=_quantised(checkpoint),
        stray=checkpoint.left,
        assets=len(checkpoint.assets),
        manifest=_manifest(checkpoint),
    )


def _portion(name: str, refs: Iterable[Ref]) -> Portion:
    some = list(refs)
    return Portion(name, len(some), sum(ref.spec.numel for ref in some), sum(ref.spec.nbytes for ref in some))


def _grouped(refs: Iterable[Ref], key: Callable[[Ref], str]) -> list[Portion]:
    groups: dict[str, list[Ref]] = {}
    for ref in refs:
        groups.setdefault(key(ref), []).append(ref)
    return [_portion(name, some) for name, some in groups.items()]


def _class_of(config: Mapping[str, Any]) -> str:
    return shown(str(config.get("_class_name") or architecture_of(config) or "not named"))


def _config(config: Mapping[str, Any], components: Sequence[str]) -> dict[str, Any]:
    """The fields of a config that are shown; of a pipeline the classes of its models. A model that is made of parts
    (text, vision) has those of its text where it has none of its own."""
    if components:
        return {"model_type": ", ".join(f"{name} ({_class_of(config[name])})" for name in components)}
    text = config.get("text_config")
    whole = {**(text if isinstance(text, dict) else {}), **config}
    return {name: whole[name] for name in _FIELDS if isinstance(whole.get(name), str | int | float | bool | list)}


def _fields(gguf: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a GGUF file that tell the architecture: numbers and texts, and none of the tokenizer's."""
    arch = f"{gguf.get(ARCHITECTURE)}."
    return {
        key: value
        for key, value in gguf.items()
        if isinstance(value, str | int | float) and (key.startswith(arch) or key in (ARCHITECTURE, "general.name"))
    }


def _tied(checkpoint: Checkpoint) -> str:
    subject = open_base(checkpoint)
    if subject.ends:
        return ", ".join(f"{shown(end)} is {shown(source)}" for end, source in subject.ends.items())
    return f"may be: {subject.traits.why_tied}" if subject.traits.why_tied else "no"


def _quantised(checkpoint: Checkpoint) -> str | None:
    traits = read_traits(checkpoint)
    if traits.quantisation:
        return (
            _formats(checkpoint, traits.quantisation)
            if traits.has_codes
            else f"{traits.quantisation}, but no tensor is"
        )
    blocks = Counter(ref.spec.dtype for ref in checkpoint.tensors.values() if ref.spec.dtype in BLOCKS)
    if blocks:
        return "in blocks: " + ", ".join(f"{count:,} tensors of {dtype}" for dtype, count in sorted(blocks.items()))
    beside = next(iter(traits.codes.values()), None)
    return None if beside is None else f"{len(traits.codes):,} weights have scales beside them ({shown(beside)})"


def _formats(checkpoint: Checkpoint, said: str) -> str:
    """What the config says, and how many weights are codes of which formats; or that these are not decoded."""
    try:
        formats, others = formats_of(checkpoint)
    except InputError:
        return f"{said}, which --dtype does not decode"
    whole = others + sum(own.numbers for own in formats.values())
    told = []
    for name, own in formats.items():
        facts = [
            f"{8 * own.stored / own.numbers:.4g} bits each with scales",
            f"{own.numbers / whole:.1%} of all numbers",
        ]
        facts = [f"a scale for {' or '.join(own.blocks)}", *facts] if own.blocks else facts
        told.append(f"{own.weights:,} weight{'s' if own.weights > 1 else ''} in {name} ({', '.join(facts)})")
    return f"{said}: {', '.join(told)}"


def _manifest(checkpoint: Checkpoint) -> dict[str, Any] | None:
    """What the manifest says, and which of its files are not as it says, by their sizes."""
    path = checkpoint.path / MANIFEST
    if not has_manifest(checkpoint):
        return None
    content = load_manifest(checkpoint.path)
    files, recipe = content.get("files"), content.get("recipe")
    if not isinstance(files, dict) or not isinstance(recipe, dict):
        raise InputError(f"{path} has no recipe or no files: it is no manifest of this version of adaptertool")
    changed = [
        name
        for name, facts in files.items()
        if not isinstance(facts, dict) or _size(checkpoint, name) != facts.get("size")
    ]
    return {"adaptertool": content.get("adaptertool"), "recipe": recipe, "changed": changed}


def _size(checkpoint: Checkpoint, name: str) -> int | None:
    path = checkpoint.path / name
    if store_of(path).look(path) != FILE:
        return None
    with open_input(path) as file:
        return file.size
