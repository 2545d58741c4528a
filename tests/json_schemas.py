"""Whether JSON is as the schemas say that are shipped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from conftest import ROOT

FOLDER = ROOT / "adaptertool" / "schemas"
SCHEMAS = {"/".join(path.stem.rsplit("-", 1)): json.loads(path.read_text()) for path in FOLDER.glob("*.json")}
KINDS: Mapping[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
}


def faults(value: Any, schema: Mapping[str, Any], whole: Mapping[str, Any], where: str = "$") -> Iterator[str]:
    """What is not as the schema says: a field that it does not name is a fault too, unlike in the standard."""
    schema = whole["$defs"][schema["$ref"].removeprefix("#/$defs/")] if "$ref" in schema else schema
    if "anyOf" in schema:
        if all(list(faults(value, one, whole, where)) for one in schema["anyOf"]):
            yield f"{where}: none of {len(schema['anyOf'])}"
        return
    kinds = schema.get("type", [*KINDS])
    if not any(KINDS[kind](value) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        yield f"{where}: {value!r} is no {kinds}"
    elif ("const" in schema and value != schema["const"]) or ("enum" in schema and value not in schema["enum"]):
        yield f"{where}: {value!r}"
    elif isinstance(value, dict) and ("properties" in schema or "additionalProperties" in schema):
        yield from (f"{where}: no {name}" for name in schema.get("required", ()) if name not in value)
        for name, one in value.items():
            inner = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if inner is None and "recipe" not in where:  # of which the choices differ by command
                yield f"{where}: {name} is not told"
            yield from faults(one, inner or {}, whole, f"{where}.{name}")
    elif isinstance(value, list):
        if "prefixItems" in schema and len(schema["prefixItems"]) != len(value):
            yield f"{where}: {len(value)} items"
        for number, one in enumerate(value):
            inner = schema["prefixItems"][number] if "prefixItems" in schema else schema.get("items", {})
            yield from faults(one, inner, whole, f"{where}[{number}]")


def require_valid(text: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    assert found["schema"] == name
    assert not list(faults(found, SCHEMAS[name], SCHEMAS[name]))
    return found
