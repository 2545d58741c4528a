"""References to models, and parameters, as mergekit writes them."""

from __future__ import annotations

import os

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.yamlfile import Items, Node, Scalar, Table
from adaptertool.mergekit_yaml import fields as f
from adaptertool.mergekit_yaml.records import Case, Model


def read_model(node: Node) -> Model:
    """A reference to a model: `path`, `path+adapter`, `name@revision`, or a map of these. Raises InputError
    for anything else, and UnsupportedError for another architecture than its own."""
    if isinstance(node, Table):
        own = f.known(node, "a model", ("model", "lora", "override_architecture"))
        if "override_architecture" in own:
            raise UnsupportedError(
                f"{own['override_architecture'].key.at}: override_architecture is of no use here: tensors are found "
                "by their names"
            )
        lora = _path(own["lora"].value) if "lora" in own else None
        return Model(_path(own["model"].value) if "model" in own else f.text(node, "a model"), lora)
    given = f.text(node, "a model")
    if os.path.lexists(given):
        return Model(given)
    path, *adapters = given.split("+")
    if len(adapters) > 1 or not path or not all(adapters):
        raise InputError(f"{node.at}: a model is a path, or path+adapter, and not {shown(given)!r}")
    return Model(path, *adapters)


def _path(node: Node) -> str:
    if not isinstance(node, Table):
        return f.text(node, "a path")
    own = f.known(node, "a path", ("path", "revision"))
    path = f.text(own["path"].value if "path" in own else node, "the path")
    return f"{path}@{f.text(own['revision'].value, 'revision')}" if "revision" in own else path


def read_cases(node: Node, name: str) -> tuple[Case, ...]:
    """What a parameter is: a value, a gradient, or cases with filters. Raises InputError for anything else."""
    several = node.items if isinstance(node, Items) and any(isinstance(one, Table) for one in node.items) else (node,)
    return tuple(_case(one, name) for one in several)


def _case(node: Node, name: str) -> Case:
    if not isinstance(node, Table):
        return Case(None, _values(node, name), node.at)
    own = f.known(node, f"a case of {shown(name)}", ("value", "filter"))
    if "value" not in own:
        raise InputError(f"{node.at}: a case of {shown(name)} has a value, and may have a filter")
    pattern = f.text(own["filter"].value, "filter") if "filter" in own else None
    return Case(None if pattern == "*" else pattern, _values(own["value"].value, name), node.at)


def _values(node: Node, name: str) -> tuple[Scalar, ...]:
    some = f.items(node, shown(name)) if isinstance(node, Items) else (node,)
    for one in some:
        if not isinstance(one, Scalar) or one.is_null:
            raise InputError(f"{one.at}: {shown(name)} is a value, a list of them (over layers), or of maps with value")
    return tuple(one for one in some if isinstance(one, Scalar))
