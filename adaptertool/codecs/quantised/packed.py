"""Integers of 2 to 8 bits that are packed into words of 32: compressed-tensors, pack-quantized (Kimi-K2 and others).

    X.weight_packed      I32 (out, ⌈in·bits / 32⌉): code + 2^(bits − 1), low bits first, without gaps
    X.weight_scale       (out, groups), of groups of columns that follow one another, or (out, 1)
    X.weight_shape       (2,): out, in
    X.weight_zero_point  I32 (⌈out·bits / 32⌉, groups), packed the same along the rows; where it is not symmetric
    X.weight_g_idx       I32 (in,): the group of each column, where those do not follow one another; or −1

W[i, j] = (code[i, j] − zero[i, g])·scale[i, g]: exact in float64 (at most 9 and 24 bits).

Source: compressed-tensors 0.20 (compressors/pack_quantized).
"""

from __future__ import annotations

import numpy as np

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.numbers import doubles
from adaptertool.codecs.quantised.grid import Grid
from adaptertool.codecs.quantised.integers import require_symmetric
from adaptertool.codecs.quantised.lattice import Lattice
from adaptertool.codecs.quantised.misfit import misfit
from adaptertool.codecs.quantised.record import Decoded, Format, Rows, Stored, Weight
from adaptertool.codecs.quantised.tables import packed_pairs, padded, paired, unpacked
from adaptertool.errors import UnsupportedError, by, shown
from adaptertool.numerics.decoding import Coded
from adaptertool.numerics.rounding import Array
from adaptertool.spec.tensors import ReadStored, Ref

_WORD = 32  # bits
_BITS = range(2, 9)
_NIBBLE = 4


def _find(stored: Stored, codes: Ref, name: str) -> Weight | None:
    weight = f"{name}weight"
    scale = stored.need(codes, f"{weight}_scale", tuple(COMPUTED))
    said = stored.need(codes, f"{weight}_shape", ("I64", "I32"))
    zero = stored.get(f"{weight}_zero_point", ("I32",))
    order = stored.get(f"{weight}_g_idx", ("I32",))
    shape = _shape(stored, said)
    bits = _bits_of(stored, codes, shape)
    groups = scale.spec.shape[-1] if len(scale.spec.shape) == 2 else 0
    if codes.spec.shape != (shape[0], _words(shape[1], bits)) or scale.spec.shape != (shape[0], groups) or not groups:
        misfit(
            scale, f"{shown(codes.spec.name)} is {codes.spec}, and the weight {by(shape)} by {shown(said.spec.name)}"
        )
    if zero is None:
        require_symmetric(stored, codes, bits, f"{weight}_zero_point")
    elif zero.spec.shape != (_words(shape[0], bits), groups):
        misfit(zero, f"and {shown(scale.spec.name)} is {scale.spec}, of {bits} bits")
    if order is not None and order.spec.shape != (shape[1],):
        misfit(order, f"and the weight is {by(shape)}")
    if order is None and groups > 1 and _reordered(stored, bits):
        stored.need(codes, f"{weight}_g_idx")
    size = _group(stored, scale, shape[1], groups)
    rows = _rows((codes, scale, zero, order), shape, bits, size)
    parts = tuple(ref for ref in (codes, scale, zero, order) if ref is not None)
    called = f"INT{bits}{' with zero points' * (zero is not None)}{' and an order of columns' * (order is not None)}"
    lattice = None if zero is not None or order is not None else _lattice(codes, scale, shape, bits, size)
    return Weight(weight, shape, called, parts, rows, shape[1], (said.spec.name,), lattice)


def _lattice(codes: Ref, scale: Ref, shape: tuple[int, int], bits: int, size: int) -> Lattice | None:
    if bits not in (_NIBBLE, 8):
        return None
    words, (rows, columns) = codes.spec.shape[1], shape

    def own(read: ReadStored, first: int, last: int) -> Array:
        return unpacked(read(codes, words, first, last), bits, columns)

    def stored(some: Array) -> Array:
        """What is left of the last word is 0."""
        whole = np.zeros((len(some), words * _WORD // bits), np.uint8)
        whole[:, :columns] = some
        return packed_pairs(whole) if bits == _NIBBLE else np.ravel(whole)

    grid = Grid(scale, rows, columns, (1, size), (rows, scale.spec.shape[1]))
    return Lattice(_table(bits), own, stored, grid)


def _table(bits: int) -> Array:
    """Codes are offset by 2^(bits − 1)."""
    return np.arange(1 << bits) - 2.0 ** (bits - 1)


def _shape(stored: Stored, said: Ref) -> tuple[int, int]:
    numbers = np.frombuffer(stored.content(said), "<i8" if said.spec.dtype == "I64" else "<i4").tolist()
    if len(numbers) != 2 or min(numbers) < 1:
        misfit(said, f"and says {shown(numbers)}: no shape of a matrix")
    return numbers[0], numbers[1]


def _words(count: int, bits: int) -> int:
    return -(-count * bits // _WORD)


def _bits_of(stored: Stored, codes: Ref, shape: tuple[int, int]) -> int:
    """Raises UnsupportedError where neither config nor shapes tell."""
    said = {bits for bits in _BITS if any(group.get("num_bits") == bits for group in stored.settings.groups())}
    fits = [bits for bits in said or _BITS if codes.spec.shape[-1:] == (_words(shape[1], bits),)]
    if len(fits) != 1:
        raise UnsupportedError(
            f"{codes.path}: {shown(codes.spec.name)} is {codes.spec} for a weight of {by(shape)}, and "
            f"{stored.settings.where} does not say of how many bits (num_bits: {', '.join(map(str, said)) or 'none'})"
        )
    return fits[0]


def _reordered(stored: Stored, bits: int) -> bool:
    """Whether the config says of all weights of so many bits that the columns of a group do not follow one another."""
    orders = [group.get("actorder") for group in stored.settings.groups() if group.get("num_bits") == bits]
    return bool(orders) and all(str(order).lower() in ("group", "dynamic", "true") for order in orders)


def _group(stored: Stored, scale: Ref, columns: int, groups: int) -> int:
    """How many columns have a scale in common. Raises MismatchError where that is not clear."""
    fits = {size for size in stored.group_sizes if -(-columns // size) == groups}
    if groups == 1 or (not stored.group_sizes and columns % groups == 0):
        fits = fits or {columns // groups}
    if len(fits) != 1:
        misfit(scale, f"and {stored.settings.where} names no group_size by which {columns} columns have so many scales")
    return fits.pop()


def _rows(parts: tuple[Ref, Ref, Ref | None, Ref | None], shape: tuple[int, int], bits: int, size: int) -> Rows:
    codes, scale, zero, order = parts
    words, groups, table = codes.spec.shape[1], scale.spec.shape[1], _table(bits)

    def coded(read: ReadStored, first: int, last: int) -> Coded:
        scales = doubles(read(scale, groups, first, last), scale.spec.dtype)
        zeros = None if zero is None else table[_zeros(read, zero, bits, first, last)]
        index = None if order is None else groups_of(read, order, shape[1], groups)
        return by_group(read(codes, words, first, last), bits, table, (scales, zeros), index, (size, shape[1]))

    return Decoded(coded)


def by_group(
    words: Array,
    bits: int,
    table: Array,
    numbers: tuple[Array, Array | None],
    index: Array | None,
    sizes: tuple[int, int],
) -> Coded:
    """Codes of rows of words, low bits first, with scales, and zeros or None, of each row's groups. index: the group of
    each column, or None where `size` columns that follow one another are one; sizes: that, and the columns."""
    (scales, zeros), (size, columns) = numbers, sizes
    if index is not None and not np.array_equal(index, np.arange(columns) // size):
        scales, zeros, size = scales[:, index], None if zeros is None else zeros[:, index], 1
    if bits == _NIBBLE and columns % 2 == 0 and size % 2 == 0:
        codes, table = np.ascontiguousarray(words).view(np.uint8)[:, : columns // 2], paired(table, low_first=True)
    else:
        codes, table = unpacked(words, bits, columns), padded(table)
    which = np.arange(len(codes), dtype=np.int32)
    scales, zeros = np.ascontiguousarray(scales), None if zeros is None else np.ascontiguousarray(zeros)
    return Coded(np.ascontiguousarray(codes), table, which, scales, size, columns, zeros)


def groups_of(read: ReadStored, order: Ref, columns: int, groups: int) -> Array | None:
    """The group of each column; None where those of a group follow one another (−1). Raises MismatchError for one that
    is not there."""
    index: Array = read(order, columns, 0, 1)[0].view(np.int32)
    if (index == -1).all():
        return None
    if index.min() < 0 or index.max() >= groups:
        misfit(order, f"and names the group {index.max() if index.min() >= 0 else index.min()} of {groups}")
    return index


def _zeros(read: ReadStored, zero: Ref, bits: int, first: int, last: int) -> Array:
    """Codes (last − first, groups). 32 rows lie in `bits` words without gaps."""
    begin, groups = first // _WORD, zero.spec.shape[1]
    end = min(-(-last // _WORD) * bits, zero.spec.shape[0])
    words = read(zero, groups, begin * bits, end)
    codes = unpacked(np.ascontiguousarray(words.T), bits, last - begin * _WORD).T
    return codes[first - begin * _WORD :]


PACKED = Format(
    name="pack-quantized",
    methods=frozenset({"compressed-tensors"}),
    ends=("weight_packed",),
    dtypes=frozenset({"I32"}),
    find=_find,
)
