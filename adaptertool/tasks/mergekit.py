"""`mergekit` and `layers`: a configuration of mergekit, planned and run; and the layers of one model, chosen."""

from __future__ import annotations

import os
from typing import Any

from adaptertool.arguments import PathLike, as_path, parse_size
from adaptertool.errors import InputError, UnsupportedError, UsageError, shown
from adaptertool.files.yamlfile import load_with_text
from adaptertool.mergekit_yaml.config import is_mergekit, read_config
from adaptertool.mergekit_yaml.plan import plan_config
from adaptertool.mergekit_yaml.records import Config, Model, Slice, Source, Typed
from adaptertool.output.checkpoint import run
from adaptertool.output.options import Options
from adaptertool.patterns import regex
from adaptertool.reports.run import RunReport
from adaptertool.spec.plan import Plan

PASSTHROUGH = "passthrough"
COPY = "mergekit_config.yml"  # the configuration beside what it made, as mergekit puts it there
_RANGE = regex(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")
HOW = frozenset({"force", "threads", "progress", "sha256", "provenance", "scratch", "clean", "fail_if_unchanged"})
_MOST = 10_000  # layers of an output


def prepare_mergekit(config: PathLike, *, max_shard_size: int | str | None = None, seed: int = 0) -> Plan:
    """The plan of a configuration of mergekit, from headers and configs alone. The arguments are those of `mergekit`.

    Raises InputError, with the line, for what the configuration says wrongly.

    >>> adaptertool.preview(adaptertool.prepare_mergekit("fixtures/ties.yml"), "merged").tensors_edited
    39
    """
    path, most = as_path(config, "CONFIG"), parse_size(max_shard_size)
    if type(seed) is not int or seed < 0:
        raise UsageError(f"the seed is a whole number from 0 on, not {seed!r}")
    documents, text = load_with_text(path)
    if not documents or not is_mergekit(documents[0]):
        raise InputError(f"{path} is no configuration of mergekit: it says no merge_method")
    if len(documents) > 1:
        raise UnsupportedError(
            f"{documents[1].at}: a second merge: write each into a file of its own, and let the later name what the "
            "earlier makes"
        )
    read = read_config(documents[0])
    choices = {"config": text, "seed": seed}
    return plan_config(read, "mergekit", choices, [(COPY, text.encode())], most=most, seed=seed)


def prepare_layers(base: PathLike, layers: str, *, max_shard_size: int | str | None = None) -> Plan:
    """The plan of a model with other layers. The arguments are those of `layers`.

    Raises UsageError for layers that are written otherwise, InputError for those that the model does not have.

    >>> adaptertool.prepare_layers("fixtures/base", "0,3").notes[-1]
    'layer 1 is layer 3 of fixtures/base'
    """
    most, at = parse_size(max_shard_size), Typed(f"{os.fspath(base)}, layers {layers}", 0, 0)
    model = Model(os.fspath(base))
    slices = tuple(Slice((Source(model, one, {}, at),), None, {}, at) for one in ranges(layers))
    config = Config(PASSTHROUGH, at, None, slices, whole=False, parameters={}, inner={}, at=at)
    return plan_config(config, "layers", {"layers": layers}, most=most)


def ranges(text: str) -> list[range]:
    """Layers as they are typed: `0-15,8-23` are the first 16 and then 8 to 23, ends included. Raises UsageError."""
    found = []
    for part in text.split(","):
        span = _RANGE.fullmatch(part.strip())
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if first > last:
            raise UsageError(
                f"layers are numbers and ranges from the smaller to the larger, as 0-15,8-23, and not {part.strip()!r}"
            )
        found.append(range(first, last + 1))
    if sum(map(len, found)) > _MOST:
        raise UsageError(f"layers {shown(text)[:80]} are more than {_MOST:,}")
    return found


def mergekit(
    config: PathLike, out: PathLike, *, max_shard_size: int | str | None = None, seed: int = 0, **how: Any
) -> RunReport:
    """Write to `out` what a configuration of mergekit says.

    config: its YAML. Models are folders, names in the local cache of the hub, or MODEL+ADAPTER
    max_shard_size: as for `merge`; 5GB where None
    seed:   of what dare and della drop by chance
    how:    force, threads, progress, sha256, provenance, scratch, clean, fail_if_unchanged: as for `merge`

    Raises AdapterToolError; `out` is then as it was before.

    >>> adaptertool.mergekit("fixtures/ties.yml", "merged").tensors_edited
    39
    """
    plan = prepare_mergekit(config, max_shard_size=max_shard_size, seed=seed)
    return run(plan, as_path(out, "OUT"), _options("mergekit", how))


def layers(
    base: PathLike, layers: str, out: PathLike, *, max_shard_size: int | str | None = None, **how: Any
) -> RunReport:
    """Write to `out` a model of some layers of `base`, numbered anew.

    layers: numbers from 0 and ranges, ends included, in the order of the output: "0-15,8-23"
    The rest as for `mergekit`.

    Raises AdapterToolError; `out` is then as it was before.

    >>> adaptertool.layers("fixtures/base", "0,3", "pruned").tensors_copied
    21
    """
    plan = prepare_layers(base, layers, max_shard_size=max_shard_size)
    return run(plan, as_path(out, "OUT"), _options("layers", how))


def _options(call: str, given: dict[str, Any]) -> Options:
    """The options of a run. Raises TypeError for others, as Python does."""
    if unknown := given.keys() - HOW:
        raise TypeError(f"{call}() got an unexpected keyword argument {min(unknown)!r}")
    for name, what in (("provenance", "the file for the provenance"), ("scratch", "the scratch folder")):
        if given.get(name) is not None:
            given[name] = as_path(given[name], what)
    return Options(**given)
