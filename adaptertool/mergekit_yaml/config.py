"""A configuration of mergekit as records: which models, in which slices, with which parameters.

Its fields are those of mergekit 0.1.5 (`MergeConfiguration`). There, a field that is not known is passed over; here it
is an error with its line, and so is each field whose meaning is not built.
"""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.yamlfile import Entry, Items, Node, Table
from adaptertool.mergekit_yaml import fields as f
from adaptertool.mergekit_yaml.records import DTYPES, Config, Model, Parameters, Slice, Source
from adaptertool.mergekit_yaml.references import read_cases, read_model
from adaptertool.mergekit_yaml.tokens import read_tokenizer

_TOP = (
    "models", "slices", "modules", "merge_method", "base_model", "dtype", "out_dtype", "tokenizer_source", "tokenizer",
    "chat_template", "parameters", "name",
)  # fmt: skip


def is_mergekit(node: Node) -> bool:
    """Whether it is meant as a configuration of mergekit."""
    return isinstance(node, Table) and "merge_method" in node.entries


def read_config(node: Node) -> Config:
    """The configuration. Raises InputError, with file and line, for what mergekit would not take, and for fields that
    it would pass over; UnsupportedError for what is not built."""
    given = f.known(node, "a configuration of mergekit", _TOP)
    if "merge_method" not in given:
        raise InputError(f"{node.at}: there is no merge_method")
    if len(some := [name for name in ("models", "slices", "modules") if name in given]) != 1:
        raise InputError(
            f"{node.at}: just one of models, slices and modules, and here is {' and '.join(some) or 'none'}"
        )
    none: Parameters = {}
    holder, inner = _module(given["modules"].value) if "modules" in given else (given, none)
    whole = "models" in holder
    slices = (_models(holder["models"].value),) if whole else tuple(map(_slice, _listed(holder, "slices")))
    method = given["merge_method"]
    return Config(
        method=f.text(method.value, "merge_method"),
        method_at=method.value.at,
        base=_model_of(given, "base_model"),
        slices=slices,
        whole=whole,
        parameters=_parameters(given),
        inner=inner,
        at=node.at,
        dtype=_dtype(given, "out_dtype") or _dtype(given, "dtype"),
        tokenizer=read_tokenizer(given),
        chat_template=f.text(given["chat_template"].value, "chat_template") if "chat_template" in given else None,
    )


def _module(node: Node) -> tuple[dict[str, Entry], Parameters]:
    modules = f.table(node, "modules")
    if len(modules.entries) != 1:
        raise UnsupportedError(
            f"{node.at}: several modules, each with its own slices or models, are not supported: merge the models "
            "whole (models:), or give one module"
        )
    (entry,) = modules.entries.values()
    own = f.known(entry.value, "a module", ("slices", "models", "parameters"))
    if ("slices" in own) == ("models" in own):
        raise InputError(f"{entry.key.at}: a module has either slices or models")
    return own, _parameters(own)


def _listed(holder: Mapping[str, Entry], name: str) -> tuple[Node, ...]:
    return f.items(holder[name].value, name)


def _models(node: Node) -> Slice:
    """`models`: one slice of all layers."""
    sources = []
    for one in f.items(node, "models"):
        own = f.known(one, "one of models", ("model", "parameters"))
        sources.append(Source(_required(own, one), None, _parameters(own), one.at))
    return _without_twins(Slice(tuple(sources), None, {}, node.at))


def _slice(node: Node) -> Slice:
    own = f.known(node, "a slice", ("sources", "base_model", "residual_weight", "parameters"))
    if "residual_weight" in own:
        raise UnsupportedError(f"{own['residual_weight'].key.at}: mergekit 0.1.5 does nothing with residual_weight")
    if "sources" not in own:
        raise InputError(f"{node.at}: the slice has no sources")
    sources = tuple(map(_source, _listed(own, "sources")))
    if len({len(source.layers or ()) for source in sources}) > 1:
        raise InputError(f"{node.at}: the sources of a slice have as many layers, all of them")
    return _without_twins(Slice(sources, _model_of(own, "base_model"), _parameters(own), node.at))


def _source(node: Node) -> Source:
    own = f.known(node, "a source", ("model", "layer_range", "parameters"))
    if "layer_range" not in own:
        raise InputError(f"{node.at}: a source of a slice has a layer_range, such as [0, 16]")
    ends = own["layer_range"].value
    if not isinstance(ends, Items) or len(ends.items) != 2:
        raise InputError(f"{ends.at}: layer_range is [first, behind the last], such as [0, 16]")
    first, last = (f.whole(end, "layer_range") for end in ends.items)
    if first >= last:
        raise InputError(f"{ends.at}: layer_range [{first}, {last}] holds no layer: the end is behind the last one")
    return Source(_required(own, node), range(first, last), _parameters(own), node.at)


def _without_twins(one: Slice) -> Slice:
    models = [source.model for source in one.sources]
    for source in one.sources:
        if models.count(source.model) > 1:
            raise InputError(f"{source.at}: {shown(source.model)} is among these twice")
    return one


def _required(own: Mapping[str, Entry], node: Node) -> Model:
    if "model" not in own:
        raise InputError(f"{node.at}: there is no model")
    return read_model(own["model"].value)


def _model_of(given: Mapping[str, Entry], name: str) -> Model | None:
    return read_model(given[name].value) if name in given else None


def _parameters(own: Mapping[str, Entry]) -> Parameters:
    if "parameters" not in own:
        return {}
    given = f.table(own["parameters"].value, "parameters").entries
    return {name: read_cases(entry.value, name) for name, entry in given.items() if not f.is_null(entry.value)}


def _dtype(given: Mapping[str, Entry], name: str) -> str | None:
    if name not in given:
        return None
    said = f.text(given[name].value, name).removeprefix("torch.")
    if said not in DTYPES:
        raise InputError(f"{given[name].value.at}: {name} is {', '.join(DTYPES)}, not {shown(said)!r}")
    return DTYPES[said]
