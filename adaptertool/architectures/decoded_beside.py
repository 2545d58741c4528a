"""A quantised checkpoint that is only read: decoded, so that its tensors are those of a dense one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from adaptertool.architectures.quantised import CONFIG, OF_MODELOPT, QUANTISED_BY, decoded
from adaptertool.architectures.traits import NOT_CODES
from adaptertool.errors import UnsupportedError
from adaptertool.files.checkpoint import Checkpoint, open_checkpoint
from adaptertool.files.jsonfile import load_json, objects
from adaptertool.files.reader import exists, open_input, read_exact
from adaptertool.spec.choices import DTYPES


def dense_as(base: Path, candidate: Checkpoint) -> str | None:
    """The key of DTYPES by which a quantised base must be decoded to have the tensors of the candidate: None where the
    base is not quantised, or both are. Raises as `open_checkpoint` does."""
    folder = base.parent if base.suffix == ".safetensors" else base
    said = exists(folder / OF_MODELOPT) or (exists(folder / CONFIG) and _says_so(folder / CONFIG))
    if not said or _has_codes(candidate) or not _has_codes(open_checkpoint(base)):
        return None
    counts = dict.fromkeys(DTYPES, 0)
    for ref in candidate.tensors.values():
        for key, dtype in DTYPES.items():
            counts[key] += ref.spec.numel * (ref.spec.dtype == dtype)
    return max(counts, key=lambda key: counts[key])


def _says_so(config: Path) -> bool:
    """Whether a config says that its checkpoint is quantised; it is parsed only where the words stand in it."""
    with open_input(config) as file:
        text = read_exact(file, 0, file.size)
    if not any(key.encode() in text for key in QUANTISED_BY):
        return False
    return any(part.get(key) for part in objects(load_json(config)) for key in QUANTISED_BY)


def both_dense(one: Checkpoint, other: Checkpoint) -> tuple[Checkpoint, Checkpoint]:
    """Two checkpoints to be compared: where one has codes and the other none, that one decoded. Raises as `decoded`
    does."""
    codes = [_has_codes(one), _has_codes(other)]
    return (_told(one) if codes == [True, False] else one), (_told(other) if codes == [False, True] else other)


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
    note = f"{checkpoint.path} is quantised: its numbers are {how}, decoded"
    return dataclasses.replace(decoded(checkpoint, "bf16"), notes=(*checkpoint.notes, note))


def _has_codes(checkpoint: Checkpoint) -> bool:
    return any(ref.spec.dtype not in NOT_CODES for ref in checkpoint.tensors.values())
