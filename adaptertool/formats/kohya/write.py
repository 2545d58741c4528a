"""A file as kohya's sd-scripts write it: the factors of each layer under its flat name, and its alpha.

The hashes in its metadata are those of sd-scripts (2026-02, library/train_util.py, precalculate_safetensors_hashes):
of the tensors, and of a piece of the file as it would be with ss_ metadata alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from adaptertool.architectures.flat import flattened, is_flat
from adaptertool.architectures.parts import ONLY_TEXT_ENCODER, PARTS, likely_part, part_of, path_in
from adaptertool.files.header import build_header
from adaptertool.formats.saving import WritingOptions, in_order
from adaptertool.formats.spelled_out import Spelt, kept_metadata, notes_on, ranks_and_alphas, spelt_out, tensors_of
from adaptertool.kinds import kind_of
from adaptertool.patterns import regex
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.portable import Container, Draft, Portable
from adaptertool.spec.tensors import TensorSpec

# Of a transformer under diffusers' names, where those are not the original's: OneTrainer's prefix, which ComfyUI knows
_DIFFUSERS, _OF_DIFFUSERS = "transformer.", "lora_transformer_"
_SPLIT = regex(r"transformer\.single_transformer_blocks\.|\.ff(?:_context)?\.net\.")
_ANY = "lycoris_"  # before the names of any other model
_PLAIN, _OTHERS = "networks.lora", "lycoris.kohya"
_HASHES = {"sshs_model_hash": "0" * 64, "sshs_legacy_hash": "0" * 8}
_FROM, _UP_TO = 0x100000, 0x110000  # the bytes of a file that the legacy hash is of
_AT_ONCE = 1 << 20  # bytes


def draft(portable: Portable, options: WritingOptions) -> Draft:
    """The file. Raises UnsupportedError for what it cannot hold."""
    spelt = spelt_out(portable, "kohya's format", lambda change: name_of(portable, change, options))
    tensors = in_order(tensor for one in spelt for tensor in tensors_of(one))
    told, specs = metadata(portable.adapter, spelt), [tensor.spec for tensor in tensors]
    container = Container(build_header, seal=lambda path, start: hashes(path, start, specs, told))
    return Draft(tensors=tensors, metadata={**told, **_HASHES}, notes=notes_on(spelt), container=container)


def name_of(portable: Portable, change: Module, options: WritingOptions) -> str:
    """The flat name of the layer, prefix included."""
    if is_flat(change.name):
        return change.name
    part, path = part_of(change.name)
    part, as_diffusers = part or likely_part(path), change.name.startswith(_DIFFUSERS)
    if part is not None:
        part, path = path_in(part, path)
    front = _ANY if part is None else part.kohya
    if part is not None and part.name == PARTS[2].name and not portable.parts & {other.name for other in PARTS[3:]}:
        front = ONLY_TEXT_ENCODER
    if as_diffusers and any(_SPLIT.search(other.name) for other in portable.changes):
        front = _OF_DIFFUSERS
    return (front if options.prefix is None else options.prefix) + flattened(path)


def metadata(adapter: Adapter, spelt: Sequence[Spelt]) -> dict[str, str]:
    """What sd-scripts say of a network, with what was said of its training."""
    before = kept_metadata(adapter)
    ranks, alphas = ranks_and_alphas(spelt)
    plain = all(kind_of(one.change).pair for one in spelt)
    return {
        **before,
        "ss_network_module": before.get("ss_network_module", _PLAIN if plain else _OTHERS),
        "ss_network_dim": str(*ranks) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(*alphas) if len(alphas) == 1 else "Dynamic",
    }


def hashes(path: Path, start: int, specs: Sequence[TensorSpec], told: Mapping[str, str]) -> dict[str, str]:
    """The hashes of a file, by the keys that they have in its metadata.

    start: where its tensors begin, which `specs` lists in their order; told: its metadata, of which ss_ keys count
    """
    header = len(build_header(specs, {key: value for key, value in told.items() if key.startswith("ss_")}))
    whole, piece, at = hashlib.sha256(), hashlib.sha256(), header
    with path.open("rb") as file:
        file.seek(start)
        while data := file.read(_AT_ONCE):
            whole.update(data)
            piece.update(data[max(_FROM - at, 0) : max(_UP_TO - at, 0)])
            at += len(data)
    return {"sshs_model_hash": whole.hexdigest(), "sshs_legacy_hash": piece.hexdigest()[:8]}
