"""Changes of layers that are one where they are to be written: one change of that.

Of products the rows of A follow each other, and B has each part's own in its rows and columns, with zeros elsewhere: so
ranks add up, and every element of the change is the one that it was. Rows of parts that are not changed are zeros. Of
DoRA, and of saved tensors, every part must be there.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptertool.architectures.conversion import Part
from adaptertool.errors import UnsupportedError, shown
from adaptertool.formats.peft.format import PEFT
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.equivalent import spelled_as
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import made
from adaptertool.numerics.error_bound import Array
from adaptertool.numerics.scaled import scaled
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import ReadRows, Ref


class Block(NamedTuple):
    """A change of some rows of a layer. module: under the name of that layer"""

    part: Part
    module: Module


class _Own(NamedTuple):
    """What a block has of a factor. rows, columns: where, in that of all of them; times: what it is multiplied by."""

    ref: Ref
    rows: range
    columns: range
    times: float


def joined(adapter: Adapter, blocks: Sequence[Block]) -> Iterator[Module]:
    """One change for all blocks of a tensor. Raises UnsupportedError for kinds that are not joined."""
    by_target: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        if block.part.whole:
            yield block.module
        else:
            by_target[block.module.target].append(block)
    for own in by_target.values():
        yield _of_one(adapter, sorted(own, key=lambda block: block.part.index))


def _of_one(adapter: Adapter, blocks: Sequence[Block]) -> Module:
    def refuse(why: str) -> UnsupportedError:
        names = " + ".join(ref.spec.name for one in blocks for ref in itertools.islice(one.module.factors.values(), 1))
        return UnsupportedError(
            f"{adapter.path}: {shown(names)}: parts of {shown(blocks[0].module.target)}, as that is to be written, and "
            f"{why}: merge it into its base, and extract a LoRA"
        )

    modules = [spelled_as(block.module, PEFT.name) or block.module for block in blocks]
    names, kind = sorted({module.kind for module in modules}), kind_of(modules[0])
    if len(names) > 1:
        raise refuse(f"of the kinds {', '.join(names)}, which are not one change")
    if not _is_joined(modules[0]):
        raise refuse(f"of kind {kind.name}, which is not joined")
    size = _size(blocks, modules)
    rows = [block.part.of(size or 0) for block in blocks]
    if size is None or any(len(own) != _height(module) for own, module in zip(rows, modules, strict=True)):
        raise refuse("their sizes are not those of its parts")
    if (kind.norms or kind.replaces) and sum(map(len, rows)) != size:  # nothing says what the other rows are
        raise refuse(f"not all of its parts are changed, which a change of kind {kind.name} needs")
    scale, times = _common([module.scale for module in modules])
    if any(_rounds(one) for one in times) and any(r.spec.dtype == "F64" for m in modules for r in m.factors.values()):
        raise refuse("their scales are not the same, where factors of F64 leave no room for them")
    factors = _factors(modules, rows, size, times)
    return modules[0]._replace(factors=factors, scale=scale, rank=sum(module.rank for module in modules))


def _is_joined(module: Module) -> bool:
    """Whether it is a product, one with a norm of each row over it, or what is one tensor."""
    kind, roles = kind_of(module), list(module.factors)
    if kind.pair is None:
        return len(roles) == 1 and (kind.elementwise or kind.follows or (kind.replaces and module.rows is None))
    of_product = kind.norms is not None and kind.norms.of_product
    expected = {*kind.pair, MAGNITUDE} if of_product else set(kind.pair)
    return (of_product or kind.is_product) and set(roles) == expected


def _height(module: Module) -> int:
    """The rows of the weight, or of the bias, that a change is of."""
    role = B if kind_of(module).pair else next(iter(module.factors))
    return module.factors[role].shape[0] if module.factors[role].shape else 0


def _size(blocks: Sequence[Block], modules: Sequence[Module]) -> int | None:
    """The rows of all of the tensor; None where the blocks do not agree."""
    sizes = {
        _height(module) * block.part.count / (block.part.end - block.part.index)
        for block, module in zip(blocks, modules, strict=True)
    }
    return int(*sizes) if len(sizes) == 1 else None


def _common(scales: Sequence[float]) -> tuple[float, list[float]]:
    """(the scale of all, what each part is multiplied by): exact where they differ by powers of two."""
    if len({abs(math.frexp(scale)[0]) for scale in scales}) == 1 and scales[0]:
        return scales[0], [scale / scales[0] for scale in scales]
    return 1.0, list(scales)


def _rounds(times: float) -> bool:
    return abs(math.frexp(times)[0]) not in (0.0, 0.5)


def _factors(modules: Sequence[Module], rows: Sequence[range], size: int, times: Sequence[float]) -> Mapping[str, Ref]:
    if not kind_of(modules[0]).pair:
        role, some = next(iter(modules[0].factors)), [next(iter(module.factors.values())) for module in modules]
        rest = some[0].shape[1:]
        across = range(math.prod(rest))
        own = [_Own(ref, at, across, by) for ref, at, by in zip(some, rows, times, strict=True)]
        return {role: _blocks(own, (size, *rest))}
    pairs = [(module.factors[A], module.factors[B]) for module in modules]
    ends = list(itertools.accumulate((a.shape[0] for a, _ in pairs), initial=0))
    ranks, wide = [range(*two) for two in itertools.pairwise(ends)], math.prod(pairs[0][0].shape[1:])
    a_own = [_Own(a, at, range(wide), 1.0) for (a, _), at in zip(pairs, ranks, strict=True)]
    b_own = [_Own(b, at, own, by) for (_, b), at, own, by in zip(pairs, rows, ranks, times, strict=True)]
    factors = {A: _blocks(a_own, (ends[-1], wide)), B: _blocks(b_own, (size, ends[-1]))}
    if MAGNITUDE in modules[0].factors:
        m_own = [_Own(one.factors[MAGNITUDE], at, range(1), 1.0) for one, at in zip(modules, rows, strict=True)]
        factors[MAGNITUDE] = _blocks(m_own, (size,))
    return factors


def _blocks(some: Sequence[_Own], shape: tuple[int, ...]) -> Ref:
    """A tensor of these blocks, and zeros. A product that float64 does not hold is rounded to odd, so that it is
    rounded once when it is stored in fewer bits, and counted."""

    def rows(read: ReadRows, first: int, last: int) -> Array:
        found = np.zeros((last - first, math.prod(shape[1:])))
        for own in some:
            begin, end = max(first, own.rows.start), min(last, own.rows.stop)
            if begin >= end:
                continue
            values = read(own.ref, begin - own.rows.start, end - own.rows.start)
            columns = slice(own.columns.start, own.columns.stop)
            found[begin - first : end - first, columns] = scaled(values, own.times, rounded_again=True)[0]
        return found

    return made([source for own in some for source in own.ref.stored], shape, rows)
