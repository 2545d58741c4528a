"""Pipelines of diffusers: a folder with model_index.json, below which each model has a folder of its own; and such a
folder by itself. As diffusers 0.42 and transformers 5.23 save and load them.

A pipeline is opened as one checkpoint. Models that adapters change are read; all else (VAE, scheduler, tokenizers)
travels as files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, shown
from adaptertool.files import store_of
from adaptertool.files.assets import MODEL_INDEX as MODEL_INDEX
from adaptertool.files.assets import lacking, read_assets
from adaptertool.files.checkpoint import INDEX, NAMES, SINGLE, Adapters, Checkpoint, WeightNames, open_directory
from adaptertool.files.header import Header
from adaptertool.files.hub import to_complete
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import exists, names_in
from adaptertool.files.store import FOLDER
from adaptertool.patterns import regex
from adaptertool.spec.tensors import Ref

_STEM = "diffusion_pytorch_model"
_PLAIN = WeightNames(f"{_STEM}.safetensors", f"{_STEM}.safetensors.index.json", NAMES.shard)

# The folders of models that adapters are trained on
_CHANGED = regex(r"(unet|transformer|prior|decoder|text_encoder)(_\d+)?")
# How weights of a folder are called, in the order (stem, variant): model.fp16.safetensors, with shards
# model.fp16-00001-of-00002.safetensors and the index model.safetensors.index.fp16.json
_SINGLE = regex(rf"({_STEM}|model)(\.[\w-]+?)?\.safetensors")
_INDEX = regex(rf"({_STEM}|model)\.safetensors\.index(\.[\w-]+?)?\.json")
_SHARD = regex(r"-\d+-of-\d+")


def is_pipeline(path: Path) -> bool:
    """Whether it is a folder with model_index.json."""
    return store_of(path).look(path / MODEL_INDEX) is not None


def is_component(path: Path) -> bool:
    """Whether it is a folder of one model of diffusers: of such weights, and none of transformers'."""
    look = store_of(path).look
    if look(path) != FOLDER or any(look(path / name) is not None for name in (SINGLE, INDEX)):
        return False
    return bool(_weights_in(path)) and exists(path / "config.json")


def holds_weights(folder: Path) -> bool:
    """Whether a folder is a checkpoint, a pipeline or one model of it, as far as names of files tell."""
    return store_of(folder).look(folder) == FOLDER and (is_pipeline(folder) or bool(_weights_in(folder)))


def open_pipeline(root: Path, adapters: Adapters) -> Checkpoint:
    """All of its models that adapters change, as one checkpoint. Raises InputError; reads no weights."""
    named = load_json(root / MODEL_INDEX)
    folders = [name for name, what in named.items() if _CHANGED.fullmatch(name) and _is_there(what)]
    if gone := [name for name in folders if store_of(root).look(root / name) != FOLDER]:
        where = f"{shown(root / gone[0])} is not there{to_complete(root)}"
        raise InputError(f"{root / MODEL_INDEX} names {shown(gone[0])}, but {where}")
    models = {name: open_component(root / name, adapters) for name in folders}
    if not models:
        raise InputError(f"{root / MODEL_INDEX} names no model that adapters change (unet, transformer, text_encoder)")
    assets, left = read_assets(root, adapters.files, apart=models)
    own = [asset for name, model in models.items() for asset in _inside(name, model)]
    headers = [_prefixed(header, f"{name}.") for name, model in models.items() for header in model.headers]
    notes = [note for model in models.values() for note in model.notes] + lacking(root, adapters.files)
    if left:
        notes.append(f"left out (other copies of the weights, or not part of the model): {', '.join(map(shown, left))}")
    return Checkpoint(
        root,
        tuple(headers),
        {name: ref for header in headers for name, ref in header.tensors.items()},
        {name: dict(model.config or {}) for name, model in models.items()},
        (*assets, *own),
        tuple(notes),
        left=(*left, *(f"{name}/{file}" for name, model in models.items() for file in model.left)),
        components=tuple(models),
    )


def open_component(folder: Path, adapters: Adapters) -> Checkpoint:
    """The model in one folder of a pipeline: what diffusers loads where no variant is named, else whichever variant is
    there. Raises InputError where several are."""
    found = _weights_in(folder)
    plain = [one for one in found if one.single in (_PLAIN.single, SINGLE)]
    if len(plain or found) > 1:
        raise InputError(
            f"{folder} holds {len(found)} variants of one model: {', '.join(shown(one.single) for one in found)}; "
            "which of them is meant? Put the others elsewhere"
        )
    own = next(iter(plain or found), _PLAIN)
    opened = open_directory(folder, adapters, own)
    if len(found) < 2:
        return opened
    note = (
        f"{folder} holds variants of one model: {own.single} is read, as by diffusers where no variant is named; "
        "others would be stale beside what is merged. For one of them, give a folder that has it alone"
    )
    return dataclasses.replace(opened, notes=(note, *opened.notes))


def _is_there(what: object) -> bool:
    """Whether an entry of model_index.json names a class: a pipeline may be without a model that it could have."""
    return isinstance(what, list) and len(what) == 2 and what[1] is not None


def _weights_in(folder: Path) -> list[WeightNames]:
    """The variants of a model's weights in a folder."""
    pairs = {
        (match[1], match[2] or "")
        for name in names_in(folder, "*")
        if (match := _INDEX.fullmatch(name) or (None if _SHARD.search(name) else _SINGLE.fullmatch(name)))
    }
    return [
        WeightNames(
            f"{stem}{variant}.safetensors",
            f"{stem}.safetensors.index{variant}.json",
            re.compile(rf"{re.escape(stem + variant)}{_SHARD.pattern}\.safetensors"),
        )
        for stem, variant in sorted(pairs)
    ]


def _prefixed(header: Header, prefix: str) -> Header:
    tensors: Mapping[str, Ref] = {prefix + name: ref.renamed(prefix + name) for name, ref in header.tensors.items()}
    return dataclasses.replace(header, tensors=tensors)


def _inside(folder: str, model: Checkpoint) -> list[Any]:
    return [dataclasses.replace(asset, name=f"{folder}/{asset.name}") for asset in model.assets]
