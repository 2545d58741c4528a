"""The changes that the factors of a file make, module by module."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Set
from pathlib import Path

from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.formats.format import BaseHas
from adaptertool.formats.peft.config import LoraConfig
from adaptertool.formats.peft.parameters import on_parameter, parameters_in
from adaptertool.formats.peft.saved import OUT_PROJ, OUT_PROJ_TIMES
from adaptertool.kinds import DORA, FULL, LORA, OFFSET, Kind
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.kasa import KASA
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.offset import BIAS
from adaptertool.spec.adapter import Module
from adaptertool.spec.tensors import Ref

# Without the function of the class itself, which takes three times as long: there may be hundreds of thousands
_new_module = functools.partial(tuple.__new__, Module)
_LAYER = Module._fields.index("layer")


def low_rank(
    config: LoraConfig,
    file: Path,
    factors: Mapping[str, Mapping[str, Ref]],
    embeddings: Collection[str],
    base_has: BaseHas,
) -> list[Module]:
    """The low-rank changes, in the order of the file. Raises InputError for one half of an attention without the
    other."""
    wrapped = parameters_in(config, file, factors, base_has)
    attentions = {name.removesuffix(OUT_PROJ) for name in factors if name.endswith(OUT_PROJ)}
    if halves := attentions - factors.keys():
        raise InputError(f"{file} holds factors for out_proj of {shown(min(halves))}, but none for its in_proj")
    modules: list[Module] = []
    kind = _kind(config)
    expected = kind.roles | ({BIAS} if config.bias else set())
    # Of most adapters all modules have one rank and scale: hundreds of thousands that need not be asked for one by one
    several = attentions or config.blocks or config.bias or config.rank_pattern or config.alpha_pattern
    rank, scale = (None, 0.0) if wrapped or several else (config.rank_of(""), config.scale_of(""))
    usual = Module("", "", kind.name, {}, scale, rank or 0)
    before, after = usual[4:_LAYER], usual[_LAYER + 1 :]
    for name, roles in factors.items():
        if rank and roles.keys() == expected and roles[A].spec.shape[:1] == (rank,) and name not in embeddings:
            modules.append(_new_module((name, f"{name}.weight", kind.name, roles, *before, name, *after)))
        elif name in wrapped:
            modules.append(on_parameter(config, file, wrapped[name], roles))
        elif attentions and name.removesuffix(OUT_PROJ) in attentions:
            modules.append(_in_attention(config, file, name, roles))
        else:
            whole = roles if config.blocks is None else config.blocks.whole(file, name, roles)
            modules += _lora_modules(config, file, name, whole, expected, embedding=name in embeddings)
    return modules


def rank_of(config: LoraConfig, file: Path, name: str, a: Ref) -> int:
    """The rank of a module. Raises MismatchError where its factor, whose rows are so many, has another."""
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
    if roles.keys() != LORA.roles:
        raise InputError(f"{file}: {shown(name)} has {', '.join(sorted(roles))}, not {A} and {B}")
    rank, scale = rank_of(config, file, module, roles[A]), config.scale_of(module)
    if name == module:
        return Module(name, f"{module}.in_proj_weight", LORA.name, roles, scale, rank, layer=module)
    return Module(name, f"{module}.out_proj.weight", LORA.name, roles, scale * OUT_PROJ_TIMES, rank, layer=module)


def token_rows(config: LoraConfig, file: Path, tokens: Mapping[str, Ref]) -> list[Module]:
    """The trained rows of each embedding. Of tied ends with the same rows PEFT saves one. Raises InputError where the
    config does not match them."""
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


def _kind(config: LoraConfig) -> Kind:
    return DORA if config.dora else KASA if config.truncated else LORA


def _lora_modules(
    config: LoraConfig, file: Path, name: str, roles: Mapping[str, Ref], expected: Set[str], *, embedding: bool
) -> list[Module]:
    """The low-rank change of a module's weight, and with `lora_bias` that of its bias. expected: the roles of each"""
    if roles.keys() != expected:
        missing, more = ", ".join(sorted(expected - roles.keys())), ", ".join(sorted(roles.keys() - expected))
        what = f"has no {missing}" if missing else f"has {more}, which {config.path.name} does not announce"
        raise InputError(f"{file}: module {shown(name)} {what}")
    if config.dora and config.bias:
        raise UnsupportedError(f"{config.path}: use_dora and lora_bias together have no agreed meaning")
    weight = {role: ref for role, ref in roles.items() if role != BIAS} if config.bias else roles
    rank = rank_of(config, file, name, weight[A])
    scale = config.scale_of(name)
    # An embedding looks up rows of (vocabulary, d): the transpose of the layer that its factors describe.
    turned = True if embedding else None
    kind = _kind(config)
    modules = [Module(name, f"{name}.weight", kind.name, weight, scale, rank, transposed=turned, layer=name)]
    if config.bias:
        modules.append(Module(name, f"{name}.bias", OFFSET.name, {BIAS: roles[BIAS]}, scale, layer=name))
    return modules
