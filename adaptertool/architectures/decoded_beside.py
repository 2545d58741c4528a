"""A quantised checkpoint beside one that is not: decoded, so that their tensors are the same ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from adaptertool.architectures.quantised import CONFIG, OF_MODELOPT, QUANTISED_BY, decoded
from adaptertool.architectures.traits import NOT_CODES
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


def _told(checkpoint: Checkpoint) -> Checkpoint:
    note = f"{checkpoint.path} is quantised: its numbers are compared, decoded"
    return dataclasses.replace(decoded(checkpoint, "bf16"), notes=(*checkpoint.notes, note))


def _has_codes(checkpoint: Checkpoint) -> bool:
    return any(ref.spec.dtype not in NOT_CODES for ref in checkpoint.tensors.values())
