"""PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.<suffix>`. The suffixes read here stand in _FACTORS; `base_layer.weight` and
`base_layer.bias` of a targeted layer, and any plain tensor name (modules_to_save, biases), replace the base's
tensor. All others are refused by name. As PEFT 0.21.2 writes them.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.hints import found_below, from_pickle, not_there
from adaptertool.files.parsed import Parsed
from adaptertool.formats.beside import Beside, read_beside
from adaptertool.formats.format import BaseHas
from adaptertool.formats.peft.config import LoraConfig, parse_config
from adaptertool.formats.peft.keys import CONFIG, FILES, PREFIX, WEIGHTS, plain_keys
from adaptertool.formats.peft.parameters import on_parameter, packing_notes, parameters_in
from adaptertool.formats.peft.saved import OUT_PROJ, OUT_PROJ_TIMES, Saved
from adaptertool.kinds import DORA, FULL, LORA, OFFSET
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.offset import BIAS
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import COMPUTED, Ref

NAME = "peft"
_TOKENS = ".token_adapter.trainable_tokens_delta"  # replacement rows, for all their name
_MARK = ".lora_"
_FACTORS = {  # what follows the name of a module, from the mark on
    ".lora_A.weight": A,
    ".lora_B.weight": B,
    ".lora_embedding_A": A,
    ".lora_embedding_B": B,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,  # PEFT before 0.12
    ".lora_B.bias": BIAS,
}

# Up to this version lora_A of fused experts belonged to their first dimension; of such as transformers marks
# (is_transposed) up to the second one. Later it still does so under transformers 5, but not under 4, which has no mark.
_LAST_ON_FIRST = (0, 19, 0)
_LAST_MARKED_ON_FIRST = (0, 18, 1)


# Fields that make a merge wrong, and leave it clear what B·A is.
_CLEAR = {"init_lora_weights": True, "alora_invocation_tokens": None, "layer_replication": None}


def recognise(path: Path) -> bool:
    return os.path.exists(path / CONFIG)


def read_adapter(
    files: Parsed,
    base_has: BaseHas,
    *,
    base: Checkpoint | None = None,
    leave_out: Sequence[str] | None = (),
    expert_layout: str | None = None,
    instead: Mapping[str, Any] | None = None,
) -> Adapter:
    """The adapter that config and header describe, with what lies beside them; no factor is read. Raises InputError.

    The arguments are those of `formats.format.Read`; instead: fields that count in the place of the config's.
    """
    path = files.path
    _check_present(path)
    fields = files.json(CONFIG)
    config = parse_config(path / CONFIG, {**fields, **(instead or {})}, expert_layout)
    header = files.header(WEIGHTS)
    factors: dict[str, dict[str, Ref]] = {}
    embeddings: set[str] = set()
    saved, tokens = Saved(header.path), dict[str, Ref]()
    tensors, read_so = plain_keys(header.path, header.tensors)
    for key, ref in tensors.items():
        _require_numbers(header.path, ref)
        _file(header.path, key.removeprefix(PREFIX), ref, factors, saved, tokens)
        if ".lora_embedding_" in key:
            embeddings.add(key.removeprefix(PREFIX).rpartition(".")[0])
    modules = _low_rank(config, header.path, factors, embeddings, base_has)
    notes = packing_notes(config, modules)
    ignored = saved.without_copies()
    saved.refuse_beside({module.target: config.saves(module.layer) for module in modules})
    modules += [Module(name, name, FULL.name, {TUNED: ref}, 1.0) for name, ref in saved.tensors.items()]
    modules += _token_rows(config, header.path, tokens)
    if not modules:
        raise InputError(f"{header.path} holds no tensors")
    beside = Beside() if leave_out is None else read_beside(files, FILES, modules, base, base_has, leave_out)
    return Adapter(
        path,
        {path / CONFIG: files.stamp(CONFIG), header.path: header.stamp, **beside.files},
        (*modules, *beside.modules),
        config.task,
        config.base,
        experts_on_first=None if config.version is None else config.version <= _LAST_ON_FIRST,
        marked_on_first=True if config.version is not None and config.version <= _LAST_MARKED_ON_FIRST else None,
        ties_ends=config.ties_ends,
        claims_transposed=config.fan_in_fan_out,
        ignored=frozenset(ignored),
        left=beside.left,
        notes=(
            *read_so,
            *notes,
            *(f"{header.path}: {shown(key)} is not needed: it is {what}" for key, what in ignored.items()),
            *beside.notes,
        ),
        format=NAME,
        fields=fields,
        tensors=tensors,
        metadata=header.metadata,
    )


def read_as_far_as_clear(files: Parsed, base_has: BaseHas, expert_layout: str | None) -> Adapter:
    """The adapter without what lies beside it, also where only its base was changed. Raises InputError."""
    return read_adapter(files, base_has, leave_out=None, expert_layout=expert_layout, instead=_CLEAR)


def _check_present(path: Path) -> None:
    if not os.path.exists(path):
        raise InputError(not_there(path))
    if not os.path.isdir(path):
        raise InputError(f"{path} is not a directory; an adapter is a directory with {CONFIG} and {WEIGHTS}")
    if not recognise(path):
        hint = found_below(path, (CONFIG,))
        if any(path.glob("*.safetensors")):
            hint = "; a fine-tuned checkpoint is combined with its base by `adaptertool wise`"
        raise InputError(f"{path} is not an adapter: it has no {CONFIG}{hint}")
    if not (path / WEIGHTS).exists():
        pickle, hint = path / "adapter_model.bin", ""
        if pickle.exists():
            hint = (
                f", only {pickle.name}, a pickle, and pickles are never opened. This makes a safetensors file of it:\n"
            )
            hint += f"  {from_pickle(pickle, path / WEIGHTS)}"
        raise InputError(f"{path} has no {WEIGHTS}{hint}")


def _require_numbers(file: Path, ref: Ref) -> None:
    if ref.spec.dtype not in COMPUTED:
        raise UnsupportedError(f"{file}: {shown(ref.spec.name)} is {ref.spec.dtype}; factors are {', '.join(COMPUTED)}")
    if ref.shape == (0,):
        raise InputError(
            f"{file}: {shown(ref.spec.name)} has no elements, as where ZeRO-3 or FSDP saved without gathering: save it "
            "again with stage3_gather_16bit_weights_on_model_save, or take it out of the trainer's checkpoint by "
            "zero_to_fp32.py"
        )


def _file(
    file: Path, key: str, ref: Ref, factors: dict[str, dict[str, Ref]], saved: Saved, tokens: dict[str, Ref]
) -> None:
    """Put one tensor where it belongs: the factor of a module, token rows, or a saved tensor."""
    mark = key.rfind(_MARK)
    if role := _FACTORS.get(key[mark:]):
        name = key[:mark]
        roles = factors.setdefault(name, {})
        if role in roles:
            raise InputError(f"{file} holds two tensors for {role} of {shown(name)}")
        roles[role] = ref
    elif key.endswith(_TOKENS):
        tokens[key.removesuffix(_TOKENS)] = ref
    else:
        saved.add(key, ref)


def _low_rank(
    config: LoraConfig,
    file: Path,
    factors: Mapping[str, Mapping[str, Ref]],
    embeddings: Collection[str],
    base_has: BaseHas,
) -> list[Module]:
    """The low-rank changes, in the order of the file."""
    wrapped = parameters_in(config, file, factors, base_has)
    attentions = {name.removesuffix(OUT_PROJ) for name in factors if name.endswith(OUT_PROJ)}
    if halves := attentions - factors.keys():
        raise InputError(f"{file} holds factors for out_proj of {shown(min(halves))}, but none for its in_proj")
    modules: list[Module] = []
    for name, roles in factors.items():
        if name in wrapped:
            modules.append(on_parameter(config, file, wrapped[name], roles))
        elif name.removesuffix(OUT_PROJ) in attentions:
            modules.append(_in_attention(config, file, name, roles))
        else:
            modules += _lora_modules(config, file, name, roles, embedding=name in embeddings)
    return modules


def _rank(config: LoraConfig, file: Path, name: str, a: Ref) -> int:
    rank = config.rank_of(name)
    if a.spec.shape[:1] != (rank,):
        raise MismatchError(
            f"{file}: {shown(a.spec.name)} is {a.spec}, but {config.path.name} gives the module rank {rank} "
            "(r and rank_pattern); the scale alpha/r would be ambiguous"
        )
    return rank


def _in_attention(config: LoraConfig, file: Path, name: str, roles: Mapping[str, Ref]) -> Module:
    """The change of one of the two projections of a MultiheadAttention."""
    module = name.removesuffix(OUT_PROJ)
    if roles.keys() != LORA.needs:
        raise InputError(f"{file}: {shown(name)} has {', '.join(sorted(roles))}, not {A} and {B}")
    rank, scale = _rank(config, file, module, roles[A]), config.scale_of(module)
    if name == module:
        return Module(name, f"{module}.in_proj_weight", LORA.name, roles, scale, rank, layer=module)
    return Module(name, f"{module}.out_proj.weight", LORA.name, roles, scale * OUT_PROJ_TIMES, rank, layer=module)


def _token_rows(config: LoraConfig, file: Path, tokens: Mapping[str, Ref]) -> list[Module]:
    """The trained rows of each embedding. Of tied ends with the same rows PEFT saves one."""
    rows = {name: config.tokens_of(name) for name in tokens}
    if lost := [name for name, own in rows.items() if own is None]:
        raise InputError(f"{file}: {shown(lost[0])} has no rows in trainable_token_indices of {config.path.name}")
    shared = set()
    for said, own in config.tokens.items():
        if not any(not said or name == said or name.endswith(f".{said}") for name in tokens):
            if own not in rows.values():
                raise InputError(
                    f"{file} holds {len(tokens)} sets of token rows, but its config names {len(config.tokens)}"
                )
            shared.add(own)
    return [
        Module(name, f"{name}.weight", FULL.name, {TUNED: ref}, 1.0, rows=rows[name], shared=rows[name] in shared)
        for name, ref in tokens.items()
    ]


def _lora_modules(
    config: LoraConfig, file: Path, name: str, roles: Mapping[str, Ref], *, embedding: bool
) -> Iterator[Module]:
    """The low-rank change of a module's weight, and with `lora_bias` that of its bias."""
    kind = DORA if config.dora else LORA
    expected = kind.needs | {BIAS} if config.bias else kind.needs
    if roles.keys() != expected:
        missing, more = ", ".join(sorted(expected - roles.keys())), ", ".join(sorted(roles.keys() - expected))
        what = f"has no {missing}" if missing else f"has {more}, which {config.path.name} does not announce"
        raise InputError(f"{file}: module {shown(name)} {what}")
    if config.dora and config.bias:
        raise UnsupportedError(f"{config.path}: use_dora and lora_bias together have no agreed meaning")
    weight = {role: ref for role, ref in roles.items() if role != BIAS} if config.bias else roles
    rank = _rank(config, file, name, weight[A])
    scale = config.scale_of(name)
    # An embedding looks up rows of (vocabulary, d): the transpose of the layer that its factors describe.
    turned = True if embedding else None
    yield Module(name, f"{name}.weight", kind.name, weight, scale, rank, transposed=turned, layer=name)
    if config.bias:
        yield Module(name, f"{name}.bias", OFFSET.name, {BIAS: roles[BIAS]}, scale, layer=name)
