"""The changes of an adapter whose kind peft_type alone tells, as the kind is spelled (kinds.spelling)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.files.reader import same_bytes
from adaptertool.formats.format import BaseHas
from adaptertool.formats.peft.config import LoraConfig
from adaptertool.formats.peft.modules import rank_of
from adaptertool.formats.peft.patterns import is_named
from adaptertool.kinds import BY_NAME, Kind
from adaptertool.kinds.made import made, whole
from adaptertool.kinds.spelling import COUNT, Spelling
from adaptertool.spec.adapter import Module
from adaptertool.spec.tensors import Ref


def apart(config: LoraConfig, tensors: Mapping[str, Ref]) -> tuple[Mapping[str, Ref], Mapping[str, Ref]]:
    """The tensors of modules by their keys, and those that all modules have in common by role, or, of modules of one
    sort, by key. Raises UnsupportedError
    for a shared one that is refused by name, and InputError where a copy of one differs."""
    if config.spelled is None or not ((shared := config.spelled[1].shared) or config.spelled[1].of_sorts):
        return tensors, {}
    own, found = dict(tensors), dict[str, Ref]()
    begins = tuple(config.spelled[1].of_sorts)
    found |= {key: own.pop(key) for key in tensors if begins and key.startswith(begins)}
    for key in tensors.keys() - shared.keys():
        for begin, why in config.spelled[1].refused.items():
            if begin.startswith("base_model.") and key.startswith(begin):
                raise UnsupportedError(f"{config.path.parent}: {shown(key)}: {why}")
    for key, role in shared.items():
        for other in [
            name for name in own if key in own and name.endswith(f".{key.rpartition('.')[2]}") and name != key
        ]:
            # PEFT 0.21.2 saves some shared tensors again with each module
            if own[other].spec[1:] != own[key].spec[1:] or not same_bytes(own[other], own[key]):
                raise InputError(f"{own[key].path}: {shown(other)} and {shown(key)} are one tensor, and differ")
            del own[other]
        if key in own:
            found[role] = own.pop(key)
    for begin, role in config.spelled[1].numbered.items():
        if several := {key: own.pop(key) for key in list(own) if key.startswith(begin)}:
            found[role] = _stacked(begin, [found[role], *several.values()] if role in found else [*several.values()])
    return own, found


def _stacked(begin: str, refs: Sequence[Ref]) -> Ref:
    """Vectors that are numbered from 0 on, as one tensor with a row for each."""
    by_key = {ref.spec.name: ref for ref in refs}
    some = [by_key.get(f"{begin}{number}") for number in range(len(refs))]
    known = [ref for ref in some if ref is not None]
    if len(known) < len(refs) or len({ref.spec[1:] for ref in refs}) > 1 or len(refs[0].shape) != 1:
        raise InputError(f"{refs[0].path}: {shown(begin)}... must be vectors of one size and dtype, numbered from 0 on")
    size = refs[0].shape[0]
    return made(known, (len(known), size), lambda read, a, b: np.stack([whole(read, ref) for ref in known[a:b]]))


def spelled(
    config: LoraConfig,
    file: Path,
    factors: Mapping[str, Mapping[str, Ref]],
    shared: Mapping[str, Ref],
    base_has: BaseHas,
) -> list[Module]:
    """The changes, in the order of the file: of weights, and of the biases that the same factors change.

    factors: by module and role; shared: as `apart` has them
    Raises InputError for a module that lacks a factor, or a tensor of none, MismatchError for one of another rank.
    """
    assert config.spelled is not None
    kind, spelling = config.spelled
    if spelling.numbered:
        config = replace(config, settings={**config.settings, COUNT: len(factors)})
    if spelling.of_sorts:
        in_common = {name: _of_sort(spelling, name, shared) for name in factors}
        used = {ref.spec.name for refs in in_common.values() for ref in refs.values()}
        if unused := sorted(shared.keys() - used):
            raise InputError(f"{file}: {shown(unused[0])} belongs to no module")
    else:
        in_common = dict.fromkeys(factors, shared)
    return [
        module
        for name, roles in factors.items()
        for module in _modules(config, file, (kind, spelling), name, {**roles, **in_common[name]}, base_has)
    ]


def _of_sort(spelling: Spelling, module: str, shared: Mapping[str, Ref]) -> Mapping[str, Ref]:
    """What a module has in common with others of its sort, by role."""
    keys = {role: begin + spelling.sort(module) for begin, role in spelling.of_sorts.items()}
    return {role: shared[key] for role, key in keys.items() if key in shared}


def _modules(
    config: LoraConfig,
    file: Path,
    as_spelled: tuple[Kind, Spelling],
    name: str,
    roles: Mapping[str, Ref],
    base_has: BaseHas,
) -> Iterator[Module]:
    kind, spelling = as_spelled
    if other := spelling.instead is not None and is_named(f"{config.path}: {spelling.instead[0]}", config.others, name):
        assert spelling.instead is not None
        kind = BY_NAME[spelling.instead[1]]
    if spelling.variant is not None and not roles.keys().isdisjoint(spelling.variant[0].values()):
        kind = BY_NAME[spelling.variant[1]]
    if missing := kind.roles - kind.optional - roles.keys():
        raise InputError(f"{file}: module {shown(name)} has no {', '.join(sorted(missing))}")
    columns = [ref for role, ref in roles.items() if role in kind.by_column | spelling.ranked]
    ranks = [rank_of(config, file, name, ref) for ref in columns if spelling.rank is not None]
    said = 0 if spelling.rank is None else config.rank_of(name)
    rank = max(ranks, default=max((ref.shape[0] for ref in columns if ref.shape), default=said))
    shapes = {role: ref.shape for role, ref in roles.items()}
    if why := spelling.fits(config.settings, shapes):
        raise MismatchError(
            f"{file}: module {shown(name)}: {why}; {config.path.name} and the tensors do not go together"
        )
    looked_up = any(ref.spec.name.endswith(ending) for ref in roles.values() for ending in spelling.embedding)
    # An embedding looks up rows of (vocabulary, d): the transpose of the layer that its factors describe
    turned = True if looked_up else None
    module = Module(
        name,
        f"{name}.weight",
        kind.name,
        roles,
        config.scale_of(name),
        rank,
        transposed=turned,
        layer=name,
        settings=config.settings,
    )
    own = None if spelling.bias is None or other else BY_NAME[spelling.bias]
    of_bias = {} if own is None else {role: ref for role, ref in roles.items() if role in own.roles}
    if not spelling.only_bias:
        yield module._replace(
            factors={role: ref for role, ref in roles.items() if role not in of_bias.keys() - kind.roles}
        )
    if own is not None and base_has(f"{name}.bias"):
        if of_bias and own.roles - own.optional <= of_bias.keys():
            yield module._replace(target=f"{name}.bias", kind=own.name, factors=of_bias, transposed=None)
    elif alone := sorted(of_bias.keys() - kind.roles):
        raise MismatchError(
            f"{file}: {shown(name)} has {', '.join(alone)}, for a bias, and the base has none there; is this adapter "
            "for another model?"
        )
    elif spelling.only_bias:
        raise UnsupportedError(
            f"{file}: {shown(name)} has no bias in the base, so there is none to change, and PEFT cannot merge it "
            "either; give it a bias of zeros there, if the architecture can have one"
        )
