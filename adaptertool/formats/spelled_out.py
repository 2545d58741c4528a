"""What writers of formats with keys (module, dot, what the tensor is to it) share: a change as tensors."""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from adaptertool.errors import UnsupportedError, shown
from adaptertool.formats.differences import as_differences, dtype_of_difference
from adaptertool.formats.saving import drafted, number, refuse
from adaptertool.kinds import kind_of
from adaptertool.kinds.difference import DELTA
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.dora_scale import SCALE
from adaptertool.kinds.equivalent import reshaped, spelled_as
from adaptertool.kinds.lokr import W1
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.lycoris_oft import BOUND
from adaptertool.kinds.offset import BIAS
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.portable import Drafted, Portable
from adaptertool.spec.tensors import Ref

FAMILY = "kohya"  # whose endings of keys both have
ALPHA = ".alpha"
_TAKES_SCALE = (B, "hada_w1_a", W1, "lokr_w1_a", DELTA, BIAS)  # what is multiplied by a scale that nothing else says
_ON_BIAS = {".diff": ".diff_b", ".w_norm": ".b_norm"}
_LEAST, _LARGEST = 2.0**-126, 3.4e38  # that float32 holds in full, about


class Said(NamedTuple):
    """How the scale of a change is said."""

    alpha: float | None  # by this number, which stands beside the factors; None: none
    times: float = 1.0  # and what one of the factors is multiplied by
    exact: bool = True  # what all that comes to is the scale, as float64


class Spelt(NamedTuple):
    """A change as a format has it: by a kind that it spells, under its name."""

    change: Module
    key: str  # what its keys begin with
    endings: Mapping[str, str]  # role -> what follows in a key
    scale: Said


def on_layers(portable: Portable, what: str, *, replacing: bool = False, differences: bool = False) -> None:
    """Refuse what is no change of a layer's weight or bias: saved tensors, token rows, parameters and experts,
    embeddings.

    what: the format; replacing: it has whole tensors that take the place of the base's; differences: such as a base
    tells. Raises UnsupportedError.
    """
    saved = [change for change in portable.changes if kind_of(change).replaces]
    if whole := [change for change in saved if not replacing or change.rows is not None]:
        why = (
            f"saved whole, to take the place of the base's, which {what} has no place for: merge it into its base"
            + differences * "; or give --base, and the difference to that is written"
        )
        refuse(portable, whole, why)
    for change in portable.changes:
        if kind_of(change).replaces:
            continue
        path, _, parameter = change.target.rpartition(".")
        if parameter not in ("weight", "bias") or path != change.name or change.grouped:
            refuse(
                portable,
                [change],
                f"a change of {shown(change.target)}, a parameter of its own, which {what} has no names for",
            )
        if change.transposed and kind_of(change).pair:
            refuse(portable, [change], f"factors of an embedding, which the tools of {what} do not read")


def in_family(portable: Portable, change: Module, whose: str, what: str) -> Module:
    """The change by a kind that has a spelling. Raises UnsupportedError where none is the same."""
    if empty := next((ref for ref in change.factors.values() if not ref.spec.numel), None):
        refuse(portable, [change], f"with {shown(empty.spec.name)} of no elements, so it changes nothing: take it out")
    found = spelled_as(change, whose)
    if found is None:
        refuse(
            portable,
            [change],
            f"of kind {change.kind}, which {what} has no place for: merge it into its base, and extract a LoRA",
        )
    weight = portable.stored.get(change.target)
    return found if weight is None else _of_dimensions(found, weight)


def _of_dimensions(change: Module, weight: Ref) -> Module:
    """A product, and a norm over it, whose factors have as many dimensions as the weight: layers are linear for one
    tool, and convolutions of size 1 for another."""
    if change.factors.keys() - {MAGNITUDE, SCALE} != {A, B} or len(weight.shape) < 2:
        return change
    a, b, ones = change.factors[A], change.factors[B], [1] * (len(weight.shape) - 2)
    shapes = {A: (a.shape[0], *weight.shape[1:]), B: (weight.shape[0], a.shape[0], *ones)}
    if any(math.prod(shapes[role]) != ref.spec.numel for role, ref in ((A, a), (B, b))):
        return change  # stored transposed, or part of it
    if MAGNITUDE in change.factors:
        shapes[MAGNITUDE] = (1, weight.shape[0], *ones) if ones else (weight.shape[0],)
    elif (m := change.factors.get(SCALE)) is not None:
        by_row = m.shape == (weight.shape[0], *[1] * (len(m.shape) - 1))
        shapes[SCALE] = (weight.shape[0], 1, *ones) if by_row else (1, weight.shape[1], *ones)
    new = {role: reshaped(change.factors[role], shape) for role, shape in shapes.items()}
    return change._replace(factors={**change.factors, **new})


def endings_of(change: Module, whose: str) -> Mapping[str, str]:
    """Role -> what follows the name of a module in the key of a factor, of a kind that has a spelling; where there are
    several, what it was before, or the first."""
    found: dict[str, str] = {}
    for ending, role in kind_of(change).spellings[whose].keys.items():
        own = _ON_BIAS.get(ending, ending) if change.target.endswith(".bias") else ending
        if role in change.factors and (role not in found or change.factors[role].spec.name.endswith(own)):
            found[role] = own
    return found


def by_alpha(change: Module, whose: str) -> Said:
    """The scale of a change as an alpha in float32, where it has a rank. An alpha of 0 is not written, since some take
    it for the rank. Raises UnsupportedError where it would be a bound."""
    spelling = kind_of(change).spellings[whose]
    rank = spelling.rank_of({role: ref.shape for role, ref in change.factors.items()})
    if spelling.unbounded:
        if change.settings.get(BOUND):
            raise UnsupportedError(
                f"{shown(change.name)}: OFT with a bound: nothing in a converted file would tell it from that of "
                "sd-scripts: merge it into its base, and extract a LoRA"
            )
        return Said(0.0)
    if not rank or not change.scale:
        return Said(rank and float(rank), change.scale)
    if not _LEAST <= abs(change.scale * rank) <= _LARGEST:
        return Said(float(rank), change.scale)
    (alpha,) = struct.unpack("f", struct.pack("f", change.scale * rank))
    return Said(alpha, exact=spelling.scaling(alpha, rank) == change.scale)


def tensors_of(one: Spelt) -> Iterator[Drafted]:
    """The factors of a change under its keys, and its alpha, and what else is told by a number."""
    change, alpha, path = one.change, one.scale.alpha, next(iter(one.change.factors.values())).path
    scaled = next((role for role in _TAKES_SCALE if role in change.factors), None)
    for role, ref in change.factors.items():
        dtype = dtype_of_difference(ref) if role == DELTA else None
        times = one.scale.times if role == scaled else 1.0
        yield drafted(f"{one.key}{one.endings[role]}", ref, dtype=dtype, times=times)
    if alpha is not None:
        yield number(f"{one.key}{ALPHA}", alpha, path)
    for name, value in change.settings.items():
        yield number(f"{one.key}.{name}", float(value), path)


def spelt_out(
    portable: Portable, what: str, key_of: Callable[[Module], str], *, replacing: str | None = None
) -> list[Spelt]:
    """All changes as files with an alpha for each layer have them: kohya's, and ComfyUI's.

    key_of: what the keys of a change begin with; replacing: whose spelling tensors have that take the place of the
        base's, where there is one

    Raises UnsupportedError for what these cannot hold.
    """
    if replacing is None:
        portable = as_differences(portable)
    on_layers(portable, what, replacing=replacing is not None, differences=replacing is None and not portable.stored)
    found = []
    for one in portable.changes:
        if kind_of(one).follows:
            found.append(Spelt(one, key_of(one), {BIAS: _ON_BIAS[".diff"]}, Said(None, one.scale)))
            continue
        whose = replacing if replacing is not None and kind_of(one).replaces else FAMILY
        change = in_family(portable, one, whose, what)
        said = by_alpha(change, whose)
        if said.times != 1 and not any(role in change.factors for role in _TAKES_SCALE):
            refuse(
                portable, [one], f"with a scale of {one.scale:g}, which no alpha of {what} says, and no factor takes"
            )
        found.append(Spelt(change, key_of(one), endings_of(change, whose), said))
    require_apart(portable, found)
    return found


def notes_on(spelt: Sequence[Spelt]) -> list[str]:
    """What to say of scales that an alpha does not say exactly."""
    if not (near := [one for one in spelt if not one.scale.exact]):
        return []
    return [
        f"the scale of {len(near)} of {len(spelt)} layers, {shown(near[0].change.name)} the first, is rounded: alpha "
        "is stored as F32, which moves these changes by 6e-8 of themselves at most"
    ]


def kept_metadata(adapter: Adapter) -> dict[str, str]:
    """What the metadata of a file says of its training, which stays true in any format."""
    return {key: value for key, value in adapter.metadata.items() if key.startswith(("ss_", "modelspec."))}


def ranks_and_alphas(spelt: Sequence[Spelt]) -> tuple[set[int], set[float]]:
    """Those of all layers that have both."""
    both = [(one.change, one.scale.alpha) for one in spelt if one.scale.alpha is not None]
    ranks = {change.rank for change, _ in both if change.rank}
    return ranks, {alpha for _, alpha in both if alpha is not None}


def require_apart(portable: Portable, spelt: Sequence[Spelt]) -> None:
    """Raises UnsupportedError where two changes would have one name, or one would take the place of what another
    changes."""
    targets = Counter(one.change.target for one in spelt)
    for one in spelt:
        if kind_of(one.change).replaces and targets[one.change.target] > 1:
            refuse(portable, [one.change], "saved whole, and changed as well, of which such a file has one")
    names: dict[tuple[str, str], Module] = {}
    for one in spelt:
        for ending in one.endings.values():
            other = names.setdefault((one.key, ending), one.change)
            if other is not one.change:
                refuse(portable, [other, one.change], f"both would be {shown(one.key + ending)}")
