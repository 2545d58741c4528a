"""A quantised checkpoint that is only read: decoded, so that its tensors are those of a dense one."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from adaptertool.architectures.decoded_gguf import decoded_gguf
from adaptertool.architectures.quantised import QUANTISED_BY, decoded
from adaptertool.architectures.traits import NOT_CODES
from adaptertool.codecs import BY_DTYPE
from adaptertool.errors import MismatchError, UnsupportedError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.jsonfile import objects
from adaptertool.spec.choices import DTYPES
from adaptertool.spec.tensors import DTYPE_BITS


class Alike(NamedTuple):
    """A base and a candidate as `verify` holds them against each other."""

    base: Checkpoint
    candidate: Checkpoint
    problems: tuple[str, ...] = ()  # what is wrong with the codes of the candidate as a whole


def alike(base: Checkpoint, candidate: Checkpoint) -> Alike:
    """Both with their weights decoded where they are codes; as they are where both are codes, and the base's are
    not decoded: then these are compared as bytes. Raises UnsupportedError and MismatchError for a base that is not
    decoded beside a dense candidate, UnsupportedError for such a candidate."""
    stored = base
    if _has_codes(base):
        if base.components or (base.gguf is not None and (candidate.gguf is None or _has_codes(candidate))):
            return Alike(base, candidate)
        try:
            base = (decoded if base.gguf is None else decoded_gguf)(base, _most_stored(candidate))
        except (UnsupportedError, MismatchError):
            if not _has_codes(candidate):
                raise
            return Alike(base, candidate)
    if not _has_codes(candidate) or candidate.gguf is not None or candidate.components:
        return Alike(base, candidate)
    try:
        # With notes of their own: those of decoding speak of a dense checkpoint that would be stored
        numbers = _told(candidate)
        return Alike(base if base is stored else _with_note(base, stored.notes, "compared"), numbers)
    except MismatchError as error:
        return Alike(base, candidate, (_named(candidate, error),))
    except UnsupportedError:
        if _says_quantised(candidate):
            raise
        return Alike(base, candidate)  # some tensors are what they should not be


def _says_quantised(checkpoint: Checkpoint) -> bool:
    return any(part.get(key) for part in objects(checkpoint.config or {}) for key in QUANTISED_BY)


def _named(candidate: Checkpoint, error: MismatchError) -> str:
    """What is wrong with codes that cannot be decoded, with the name of the fault."""
    text = str(error)
    if "is not there" in text or "without a scale" in text:
        return f"scales-missing: {text}"
    return f"{'codes-do-not-fit' if _says_quantised(candidate) else 'config-says-dense'}: {text}"


def _most_stored(checkpoint: Checkpoint) -> str:
    """The key of DTYPES of which a checkpoint has the most numbers; where it holds codes, of 16 bits, since what is
    wider may be scales."""
    counts = {key: 0 for key, dtype in DTYPES.items() if DTYPE_BITS[dtype] == 16 or not _has_codes(checkpoint)}
    for ref in checkpoint.tensors.values():
        for key in counts:
            counts[key] += ref.spec.numel * (ref.spec.dtype == DTYPES[key])
    return max(counts, key=lambda key: counts[key])


def both_dense(one: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints to be compared: those with codes decoded. As they are where both have such, and one of no format
    that is decoded. Raises as `decoded` does."""
    codes = [_has_codes(each) and each.gguf is None and not each.components for each in (one, other)]
    if not all(codes):
        return (_told(one) if codes[0] else one), (_told(other) if codes[1] else other)
    try:
        return _told(one), _told(other)
    except (UnsupportedError, MismatchError):
        return one, other


def as_numbers(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with its weights decoded where they are codes, for commands that read its numbers and do not write
    it. As it is where its codes are of no format that is decoded: who needs these refuses them. Raises MismatchError
    for codes that do not fit together."""
    if not _has_codes(checkpoint) or checkpoint.gguf is not None or checkpoint.components:
        return checkpoint
    try:
        return _told(checkpoint, "used")
    except UnsupportedError:
        return checkpoint


def same_numbers(base: Checkpoint, other: Checkpoint) -> Checkpoint:
    """The other checkpoint to be held against a base: decoded, where it alone is quantised. Raises UnsupportedError
    where the base alone is."""
    codes = [_has_codes(base), _has_codes(other)]
    if codes == [True, False] and base.gguf is None:
        raise UnsupportedError(
            f"{base.path} is quantised, and {other.path} is not: with --dtype bf16 it is decoded, and a dense "
            "checkpoint written"
        )
    return _told(other, "used") if codes == [False, True] and other.gguf is None else other


def _told(checkpoint: Checkpoint, how: str = "compared") -> Checkpoint:
    return _with_note(decoded(checkpoint, "bf16"), checkpoint.notes, how)


def _with_note(checkpoint: Checkpoint, notes: tuple[str, ...], how: str) -> Checkpoint:
    note = f"{checkpoint.path} is quantised: its numbers are {how}, decoded"
    return dataclasses.replace(checkpoint, notes=(*notes, note))


def _has_codes(checkpoint: Checkpoint) -> bool:
    return any(
        ref.spec.dtype not in NOT_CODES and ref.spec.dtype not in BY_DTYPE for ref in checkpoint.tensors.values()
    )
