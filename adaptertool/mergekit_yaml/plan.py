"""The plan of a configuration of mergekit, from headers and configs alone."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.tokenizer import is_tokenizer_file
from adaptertool.mergekit_yaml.depth import Origin, with_layers
from adaptertool.mergekit_yaml.drawing import Drawn, draw
from adaptertool.mergekit_yaml.layers import stack_of
from adaptertool.mergekit_yaml.opened import Models, open_models
from adaptertool.mergekit_yaml.parameters import check_parameters
from adaptertool.mergekit_yaml.records import DTYPES, Config
from adaptertool.mergekit_yaml.slices import Layer
from adaptertool.mergekit_yaml.vocabulary import Tokens, tokens_of
from adaptertool.methods.method import note_of
from adaptertool.planning.layout import CONFIG, dump, is_index
from adaptertool.planning.sharding import with_shard_size
from adaptertool.resolution.ties import FLAG
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Asset, Output, Plan, Shard
from adaptertool.spec.tensors import Stamp

TEMPLATE = "chat_template.jinja"
SHARD = 5 * 10**9  # bytes of a file where nothing is said, as the libraries split what they save
_DTYPES = ("torch_dtype", "dtype")  # keys of config.json


def plan_config(
    config: Config,
    command: str,
    choices: Mapping[str, object],
    files: Sequence[tuple[str, bytes]] = (),
    *,
    most: int | None = None,
    seed: int = 0,
) -> Plan:
    """The plan of a configuration.

    choices: what manifests say of it
    files: small ones that lie beside the output
    most: bytes of a file; seed: of what is dropped by chance

    Raises InputError, with the line, for what the configuration says wrongly; MismatchError for models that do not fit
    together, and UnsupportedError for what is not built.
    """
    notes = check_parameters(config)
    models = open_models(config)
    tokens = tokens_of(config, models)
    drawn = draw(config, models, tokens)
    first = models.first
    named = {asset.name: asset.source for asset in first.assets} | first.named
    paths = tuple(source.path for source in models.sources)
    method = None if config.method == "passthrough" else config.method  # which computes nothing
    plan = Plan(
        command=command,
        base=first.path,
        sources=paths,
        files=(named, *(_with_tokenizer(path, own, tokens) for path, own in zip(paths, models.files, strict=True))),
        weights=(1.0,) * len(models.sources),
        shards=(_shard(drawn, seed),),
        assets=tuple(one for one in _assets(config, first, drawn, tokens) if one.name not in dict(files)),
        outputs=(Output("", 1.0, (*files, *_template(config))),),
        inputs=_inputs(models, tokens),
        equal=tuple(drawn.equal),
        tuned_is_checkpoint=not all(isinstance(source, Adapter) for source in models.sources),
        single_file=False,
        notes=(
            *models.notes,
            *notes,
            *drawn.notes,
            *(tokens.notes if tokens else ()),
            *_said(drawn),
            *(() if method is None else (note_of(method),)),
        ),
        choices=choices,
        method=method,
    )
    return with_shard_size(plan, first, most or SHARD)


def _shard(drawn: Drawn, seed: int) -> Shard:
    """All tensors as of one file, to be divided."""
    steps = drawn.steps
    if seed:
        steps = [
            step._replace(blend=step.blend._replace(settings={**step.blend.settings, "seed": seed}))
            if step.blend is not None and "seed" in step.blend.settings
            else step
            for step in steps
        ]
    return Shard(steps[0].base.path, 0, sum(step.spec.nbytes for step in steps), tuple(steps))


def _assets(config: Config, first: Checkpoint, drawn: Drawn, tokens: Tokens | None) -> tuple[Asset, ...]:
    """Those of the first model; its config.json follows."""
    assert first.config is not None
    new: dict[str, Any] = dict(first.config)
    if drawn.layers is not None:
        origins = [_origin(layer) for layer in drawn.layers]
        new = with_layers(new, stack_of(first)[1], origins)
    if config.dtype is not None:
        said = next(name for name, dtype in DTYPES.items() if dtype == config.dtype)
        new = _with_dtype(new, said)
    if drawn.has_head:
        new = {**new, FLAG: False}
    if tokens is not None:
        new = {**new, "vocab_size": tokens.size}
    assets = [asset for asset in first.assets if not is_index(asset.name)]
    if tokens is not None and tokens.files is not None:
        assets = [asset for asset in assets if not is_tokenizer_file(asset.name)]
        assets += tokens.files.values()
    if config.chat_template is not None:
        assets = [asset for asset in assets if asset.name != TEMPLATE]
    if new == first.config:
        return tuple(assets)
    content = dump(new)
    return tuple(
        dataclasses.replace(asset, content=content, size=len(content)) if asset.name == CONFIG else asset
        for asset in assets
    )


def _origin(layer: Layer) -> Origin:
    source, opened = layer.part.inputs[layer.part.anchor], layer.part.opened[layer.part.anchor]
    assert source.layers is not None
    return Origin(opened.config, str(opened.model), source.layers.start + layer.offset)


def _with_dtype(config: Mapping[str, Any], said: str) -> dict[str, Any]:
    def follow(part: Mapping[str, Any]) -> dict[str, Any]:
        return {
            key: said
            if key in _DTYPES and isinstance(value, str)
            else follow(value)
            if isinstance(value, dict)
            else value
            for key, value in part.items()
        }

    return follow(config)


def _template(config: Config) -> list[tuple[str, bytes]]:
    """The chat template, where the configuration has one. Raises UnsupportedError where it just names one."""
    text = config.chat_template
    if text is None:
        return []
    if "{" not in text:
        raise UnsupportedError(
            f"{config.at}: chat_template {shown(text)!r}: templates by name, and auto, are not built: write the "
            "template itself, or leave it out, and the first model's stays"
        )
    return [(TEMPLATE, text.encode())]


def _inputs(models: Models, tokens: Tokens | None) -> dict[Path, Stamp]:
    files = {asset.source: asset.stamp for asset in models.first.assets}
    for opened in models.opened.values():
        files |= {header.path: header.stamp for header in opened.checkpoint.headers}
    for source in models.sources:
        if isinstance(source, Adapter):
            files |= source.files
    if tokens is not None:
        files |= {asset.source: asset.stamp for asset in (tokens.files or {}).values()}
    return files


def _with_tokenizer(folder: Path, files: Mapping[str, Path], tokens: Tokens | None) -> Mapping[str, Path]:
    """The files of a source, with those of its tokenizer, where that is taken."""
    taken = (tokens.files or {}) if tokens is not None else {}
    return {**files, **{name: one.source for name, one in taken.items() if one.source.parent == folder}}


def _said(drawn: Drawn) -> Iterator[str]:
    """The map of layers, old to new."""
    if drawn.layers is None:
        return
    at = 0
    for _, some in itertools.groupby(drawn.layers, key=lambda layer: id(layer.part.slice)):
        own = list(some)
        sources = zip(own[0].part.inputs, own[0].part.opened, strict=True)
        told = " with ".join(
            f"{_range(source.layers.start, len(own))} of {opened.model}" for source, opened in sources if source.layers
        )
        yield f"layers {_range(at, len(own))} are {told}" if len(own) > 1 else f"layer {at} is layer {told}"
        at += len(own)


def _range(first: int, count: int) -> str:
    return f"{first}" if count == 1 else f"{first}-{first + count - 1}"
