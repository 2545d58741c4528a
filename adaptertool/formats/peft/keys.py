"""The keys of an adapter's file as PEFT saves them, of one that other tools wrote: with a wrapper's prefix, without
PEFT's, or with the adapter's name inside, as a model in memory has them. PEFT itself warns of such keys, and loads
nothing of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.formats.format import FileNames
from adaptertool.patterns import regex
from adaptertool.spec.tensors import Ref

CONFIG, WEIGHTS, PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
FILES = FileNames(CONFIG, WEIGHTS, PREFIX, patterns=(CONFIG, "adapter_model.*"))

# Modules that wrap others, and have no tensors of their own: torch.compile, FSDP, activation checkpointing, DDP.
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_WRAPPER = regex(rf"(?:(?<=\.)|^)(?:{'|'.join(_WRAPPERS)})\.")
# The head, in Tinker's raw adapters (tinker-cookbook 0.6)
_HEAD_OF_TINKER = "unembed_tokens"
_HEAD = regex(rf"(?:^|(?<=\.))model\.(?:language_model\.)?{_HEAD_OF_TINKER}\.")
_IN_FRONT = "module."
_PREFIXED = regex(r"((?:.*?\.)?)base_model\.model\.")

_USUAL = (".lora_A.weight", ".lora_B.weight")
_NAMED = regex(
    r"(.*\.lora_(?:A|B))\.(?P<linear>[^.]+)(\.(?:weight|bias))|(.*\.lora_embedding_[AB])\.(?P<embedding>(?!weight$)[^.]+)()"
    r"|(.*\.lora_(?:magnitude_vector|diag))\.(?P<magnitude>(?!weight$)[^.]+)(\.weight)?"
)
_FACTOR = regex(r"\.lora_(A|B|embedding_A|embedding_B|magnitude_vector|diag)\b")

# Parameters of PEFT's tuners (0.21.2), as parts of a key: never plain tensors of a model.
TUNER_PARAMETER = regex(
    r"lora_.*|ada_(?:lora_)?[ABE]|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|oft_(?:embedding_)?[RSr]"
    r"|boft_[RSs]|ia3_l|p?vera_(?:[AB]|lambda_[bd])|hira_(?:embedding_)?[AB]|glora_[A-E].*"
    r"|randlora_(?:[AB]|lambda|gamma)|vblora_.*|unilora_.*|fourierft_spectrum|hra_u|miss_block|bone_(?:block|weight)"
    r"|shira_(?:weight|indices)|c3a_kernel|road_(?:theta|alpha)|delora_(?:[AB]|lambda|w_norm)|gralora_[AB].*"
    r"|tinylora_.*|psoft_.*|osf_.*|waveft_spectrum|frod_(?:lambda|[UVs]_?).*|beft_bias|ln_tuning_layers"
    r"|trainable_tokens_delta|supertuning_.*|lily_(?:[AB]|router)|peanut_(?:[AB]|encoders|decoders)|deft_[PR]"
    r"|adamss_(?:[AB]|newB)|poly_(?:lora_[AB]|router)|shadow_(?:down|up|update_transform|update_gate|dropout)"
)


def plain_keys(file: Path, tensors: Mapping[str, Ref]) -> tuple[Mapping[str, Ref], list[str]]:
    """The tensors by the keys that PEFT would have saved, which their specs have too; and a note of what was not so.

    Raises UnsupportedError where only some keys have PEFT's prefix, or there are several adapters; InputError where two
    keys become one.
    """
    text = "\n".join(tensors)  # looked through at once: there may be hundreds of thousands
    wrapped = any(wrapper in text for wrapper in (*_WRAPPERS, _HEAD_OF_TINKER))
    begun, ended = f"\n{text}".count(f"\n{PREFIX}"), sum(f"{text}\n".count(f"{end}\n") for end in _USUAL)
    if not wrapped and begun == ended == len(tensors) == text.count("\n") + 1:
        return tensors, []
    keys, said = dict(zip(tensors, tensors, strict=True)), list[str]()
    for step in (_unwrapped, _unprefixed, _unnamed, _with_head):
        new, what = step(file, keys)
        keys, said = new, said + what
    if not said:
        return tensors, []
    plain: dict[str, Ref] = {}
    for key, ref in tensors.items():
        name = keys[key]
        if name in plain:
            raise InputError(f"{file} holds two tensors for {shown(name)}; one of them is {shown(key)}")
        plain[name] = ref.renamed(name)
    return plain, [f"{file}: its keys are not as PEFT saves them, and are read {', '.join(said)}"]


def _unwrapped(file: Path, keys: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:  # noqa: ARG001
    plain = {key: _WRAPPER.sub("", name) for key, name in keys.items()}
    found = [wrapper for wrapper in _WRAPPERS if any(f"{wrapper}." in name for name in keys.values())]
    return plain, [f"without {wrapper}" for wrapper in found] if plain != keys else []


def _unprefixed(file: Path, keys: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Before PEFT's prefix there may be others. Where no key has that, it is added."""
    fronts = {key: match[1] if (match := _PREFIXED.match(name)) else None for key, name in keys.items()}
    if without := [key for key, front in fronts.items() if front is None]:
        if len(without) < len(keys) or not any(map(_FACTOR.search, keys.values())):
            others = ", as others do" if len(without) < len(keys) else ", and there are no factors of LoRA"
            raise UnsupportedError(f"{file}: the key {shown(without[0])} does not begin with {PREFIX}{others}")
        wrapped = all(name.startswith(_IN_FRONT) for name in keys.values())
        plain = {key: PREFIX + (name.removeprefix(_IN_FRONT) if wrapped else name) for key, name in keys.items()}
        return plain, [*(["without module"] if wrapped else []), f"with {PREFIX[:-1]} before them"]
    found = sorted({front for front in fronts.values() if front})
    if len(found) > 1 or (found not in ([], [_IN_FRONT]) and "" in fronts.values()):
        raise UnsupportedError(
            f"{file}: some keys have {shown(found[0][:-1])} before {PREFIX[:-1]}, and others have not; of one adapter "
            "all are alike"
        )
    plain = {key: name.removeprefix(fronts[key] or "") for key, name in keys.items()}
    return plain, [f"without {shown(front[:-1])}" for front in found]


def _unnamed(file: Path, keys: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The keys without the name of the adapter, which stands behind every factor or none."""
    names = {key: _name_in(name) for key, name in keys.items() if _FACTOR.search(name)}
    if not any(names.values()):
        return dict(keys), []
    if bare := [key for key, name in names.items() if name is None]:
        other = next(key for key, name in names.items() if name)
        raise UnsupportedError(f"{file}: {shown(other)} has an adapter's name in it, and {shown(bare[0])} has none")
    found = sorted({name for name in names.values() if name})
    if len(found) > 1:
        raise UnsupportedError(
            f"{file} holds several adapters, {', '.join(map(shown, found[:5]))}: give a file with the keys of one"
        )
    plain = {key: _without(name, found[0]) for key, name in keys.items()}
    return plain, [f"without the adapter's name, {shown(found[0])}"]


def _with_head(file: Path, keys: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:  # noqa: ARG001
    """The keys with the name that transformers has for the head, where Tinker has its own."""
    plain = {key: PREFIX + _HEAD.sub("lm_head.", name.removeprefix(PREFIX)) for key, name in keys.items()}
    return plain, [f"with lm_head for {_HEAD_OF_TINKER}"] if plain != keys else []


def _name_in(key: str) -> str | None:
    match = _NAMED.fullmatch(key)
    return None if match is None else next(name for name in match.groupdict().values() if name)


def _without(key: str, name: str) -> str:
    if match := _NAMED.fullmatch(key):
        return "".join(part for part in match.group(1, 3, 4, 6, 7, 9) if part)
    # Saved modules and token rows, which a model in memory has by the adapter's name too
    rows = f"trainable_tokens_delta.{name}"
    return key.removesuffix(f".{name}") if key.endswith(rows) else key.replace(f".modules_to_save.{name}.", ".", 1)
