"""JSON Schemas of what commands print with --json, and of manifests:    python tools/schemas.py

Made of the dataclasses in adaptertool/reports: a field's type, and the comment beside it as its description. Writes
adaptertool/schemas/*.json, which `adaptertool schema NAME` prints. tests/render/test_schemas.py holds them.
"""

from __future__ import annotations

import ast
import collections.abc
import dataclasses
import importlib
import inspect
import io
import json
import pkgutil
import re
import tokenize
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool import errors, reports
from adaptertool.cli.fields import commands
from adaptertool.recipes.schema import schema_of as schema_of_recipes
from adaptertool.reports.run import KeptReport

FOLDER = Path(__file__).parent.parent / "adaptertool" / "schemas"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
OK = {"type": "boolean", "description": "whether the command exits with code 0"}
Schema = dict[str, Any]


def classes() -> Iterator[type]:
    """Every report that names its schema, by the module that it stands in."""
    for module in pkgutil.iter_modules(reports.__path__):
        found = vars(importlib.import_module(f"{reports.__name__}.{module.name}")).values()
        own = [one for one in found if isinstance(one, type) and one.__module__.endswith(f".{module.name}")]
        yield from (one for one in own if dataclasses.is_dataclass(one) and hasattr(one, "schema"))


def comments(kind: type) -> dict[str, str]:
    """The comments beside the fields of a dataclass, and of those that it stands on."""
    told: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        source = inspect.getsource(one)
        lines = {
            token.start[0]: token.string.lstrip("# ")
            for token in tokenize.generate_tokens(io.StringIO(source).readline)
            if token.type == tokenize.COMMENT
        }
        (body,) = ast.parse(source).body
        assert isinstance(body, ast.ClassDef)
        ends = [node.lineno for node in body.body[1:]] + [len(source.splitlines()) + 1]
        for node, end in zip(body.body, ends, strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = " ".join(lines[line] for line in range(node.lineno, end) if line in lines)
                if text:
                    told[node.target.id] = text
    return told


def schema_of(kind: Any, within: dict[str, Schema]) -> Schema:
    """The schema of a type; dataclasses come to stand in `within`. Raises TypeError for a type that JSON has not."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return {}
    if kind in PLAIN:
        return {"type": PLAIN[kind]}
    if dataclasses.is_dataclass(kind):
        if kind.__name__ not in within:
            within[kind.__name__] = {}  # it may hold itself
            within[kind.__name__] = record(typing.cast(type, kind), within)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin in (typing.Union, types.UnionType):
        parts = [schema_of(one, within) for one in arguments]
        if all(set(part) == {"type"} for part in parts):
            return {"type": [part["type"] for part in parts]}
        return {"anyOf": parts}
    if origin is tuple and arguments[-1] is not Ellipsis:
        many = {"minItems": len(arguments), "maxItems": len(arguments)}
        return {"type": "array", "prefixItems": [schema_of(one, within) for one in arguments], **many}
    if origin in (tuple, list, collections.abc.Sequence):
        return {"type": "array", "items": schema_of(arguments[0], within)}
    if origin in (dict, collections.abc.Mapping):
        return {"type": "object", "additionalProperties": schema_of(arguments[1], within)}
    raise TypeError(f"{kind} has no schema")


def record(kind: type, within: dict[str, Schema]) -> Schema:
    hints, told = typing.get_type_hints(kind), comments(kind)
    fields = [field.name for field in dataclasses.fields(kind)]
    properties = {
        name: schema_of(hints[name], within) | ({"description": told[name]} if name in told else {}) for name in fields
    }
    docstring = re.sub(r"\s+", " ", inspect.getdoc(kind) or "")
    described = {} if docstring.startswith(f"{kind.__name__}(") else {"description": docstring}
    return {**described, "type": "object", "properties": properties, "required": fields}


def whole(name: str, body: Schema) -> Schema:
    """A schema as a file: its name is among its fields."""
    properties = {"schema": {"const": name}, **body.pop("properties")}
    required = ["schema", *(field for field in body.pop("required") if field != "schema")]
    return {"$schema": DIALECT, "title": name, **body, "properties": properties, "required": required}


def report(kind: Any) -> Schema:
    within: dict[str, Schema] = {}
    body = record(kind, within)
    own = body["properties"].get("ok", {})
    body["properties"] = {"ok": OK | own, **{name: one for name, one in body["properties"].items() if name != "ok"}}
    body["required"] = ["ok", *(field for field in body["required"] if field != "ok")]
    return whole(kind.schema, body) | ({"$defs": within} if within else {})


def of_objects(description: str, **properties: Schema) -> Schema:
    return {"description": description, "type": "object", "properties": properties, "required": list(properties)}


def error() -> Schema:
    every = vars(errors).values()
    found = [one for one in every if isinstance(one, type) and issubclass(one, errors.AdapterToolError)]
    body = of_objects(
        "what went wrong",
        type={"enum": [one.__name__ for one in found], "description": "its class in Python"},
        message={"type": "string"},
        exit_code={"enum": sorted({one.exit_code for one in found})},
    )
    told = "What every command prints with --json where it fails, in the place of its report."
    return whole("error/1", of_objects(told, ok={"const": False}, error=body))


def manifest() -> Schema:
    facts: Schema = {
        "type": "object",
        "properties": {
            "size": {"type": "integer", "description": "bytes"},
            "blake3": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "with --sha256"},
        },
        "required": ["size"],
    }
    files: Schema = {"type": "object", "additionalProperties": {"$ref": "#/$defs/File"}}
    recipe: Schema = {
        "description": "the command, what went in, and every choice that counts for the bytes",
        "type": "object",
        "properties": {"command": {"type": "string"}},
        "required": ["command"],
    }
    inputs: Schema = {
        "description": "by file, of the base (where there is one) and of each source",
        "type": "object",
        "properties": {"base": files, "sources": {"type": "array", "items": files}},
        "required": ["sources"],
    }
    body = of_objects(
        "adaptertool.manifest.json, beside every output: how it came to be. It holds no time and no absolute path: the "
        "same inputs and recipe give the same bytes.",
        adaptertool={"type": "string", "description": "the version that made it"},
        recipe=recipe,
        inputs=inputs,
        files=files | {"description": "of the output, by their paths in it"},
    )
    within: dict[str, Schema] = {}
    kept = {"type": "array", "items": schema_of(KeptReport, within), "description": "with --quantise keep"}
    body["properties"]["kept"] = kept
    told = "of a recipe with several: each as data, and those before the last that writes with their manifests"
    body["properties"]["steps"] = {"type": "array", "items": {"type": "object"}, "description": told}
    return whole("manifest/1", body) | {"$defs": {"File": facts, **within}}


def schemas() -> Mapping[str, Schema]:
    """By the name of the file, without its end."""
    made = [*map(report, classes()), error(), manifest(), schema_of_recipes(commands())]
    return {one["title"].replace("/", "-"): one for one in made}


def texts() -> Mapping[str, str]:
    return {name: json.dumps(one, indent=2, ensure_ascii=False) + "\n" for name, one in schemas().items()}


if __name__ == "__main__":
    for path in FOLDER.glob("*.json"):
        path.unlink()
    for name, text in texts().items():
        (FOLDER / f"{name}.json").write_text(text)
