"""The JSON Schema of recipes, derived from the commands like the fields that are read."""

from __future__ import annotations

from typing import Any

from adaptertool.recipes.fields import FLAG, NUMBER, PATH, WHOLE, Command, Commands, Field
from adaptertool.recipes.read import NAME, SCHEMA, STEPS

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def schema_of(commands: Commands) -> Schema:
    """The schema of a recipe: `steps`, or one command with its fields."""
    bodies = {name: _body(command) for name, command in commands.items()}
    steps = {
        "type": "array",
        "minItems": 1,
        "items": {"$ref": "#/$defs/Step"},
        "description": "in their order; a later one takes what an earlier one makes, as ${name}",
    }
    named = {
        NAME: {
            "type": "string",
            "pattern": "^[A-Za-z][A-Za-z0-9_.-]*$",
            "description": "what later steps call its output",
        }
    }
    one: Schema = {
        "type": "object",
        "properties": {**named, **{name: {"$ref": f"#/$defs/{name}"} for name in commands}},
        "additionalProperties": False,
        "oneOf": [{"required": [name]} for name in commands],
    }
    version = {"schema": {"const": SCHEMA}}
    return {
        "$schema": _DIALECT,
        "title": SCHEMA,
        "description": "What `adaptertool apply` runs: commands, with their arguments and options by name. Paths are "
        "relative to the recipe.",
        "anyOf": [
            {
                "type": "object",
                "properties": {**version, STEPS: steps},
                "required": [STEPS],
                "additionalProperties": False,
            },
            {**one, "properties": {**version, **one["properties"]}},
        ],
        "$defs": {"Step": one, **bodies},
    }


def _body(command: Command) -> Schema:
    needed = [field.name for field in command.fields.values() if field.required and field.name != "out"]
    return {
        "description": command.summary,
        "type": "object",
        "properties": {field.name: _field(field) for field in command.fields.values()},
        "required": needed,
        "additionalProperties": False,
    }


def _field(field: Field) -> Schema:
    one = _value(field)
    if field.listed:
        one = {"anyOf": [one, {"type": "array", "items": one}]}
    elif field.count != 1:
        least = field.count if field.count is not None else 1 if field.required else 0
        most = {} if field.count is None else {"maxItems": field.count}
        many = {"type": "array", "items": one, "minItems": least, **most}
        one = {"anyOf": [one, many]} if field.alone else many
    return {**one, **({"description": field.help} if field.help else {})}


def _value(field: Field) -> Schema:
    if field.kind == FLAG:
        return {"type": "boolean"}
    if field.choices:
        return {"enum": list(field.choices)}
    if field.kind == WHOLE:
        ends = {"minimum": field.least, "maximum": field.most}
        return {"type": "integer", **{name: end for name, end in ends.items() if end is not None}}
    if field.kind == NUMBER:
        return {"type": "number"}
    if field.kind == PATH:
        return {"type": ["string", "number"], "minLength": 1}
    return {"type": ["string", "number", "boolean"]}
