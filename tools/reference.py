"""Pages of reference for the site, from the code: commands, public names of Python, fields of reports.

`python tools/reference.py` writes docs/reference/*.md, which git ignores; docs/conf.py runs it.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

import adaptertool
from adaptertool.cli import cli
from adaptertool.cli.table import COMMANDS, Unloaded

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "reference"
FENCE = "```"


def fenced(text: str, language: str = "text") -> str:
    return f"{FENCE}{language}\n{text.rstrip()}\n{FENCE}\n"


def commands() -> Iterator[str]:
    yield "# Commands\n"
    yield "As `adaptertool COMMAND --help` prints it.\n"
    settings: dict[str, Any] = {"max_content_width": 80, "terminal_width": 80}
    top = click.Context(cli, info_name="adaptertool", **settings)
    yield fenced(cli.get_help(top))
    for entry in COMMANDS:
        unloaded = cli.commands[entry.name]
        assert isinstance(unloaded, Unloaded)
        command = unloaded.command()
        context = click.Context(command, info_name=entry.name, parent=top, **settings)
        yield f"## {entry.name}\n"
        yield fenced(command.get_help(context))


def python() -> Iterator[str]:
    yield "# Python: all public names\n"
    yield "`import adaptertool` gives these; [how to](../python.md).\n"
    for name in sorted(adaptertool.__all__):
        if name.startswith("__"):
            continue
        value = getattr(adaptertool, name)
        yield f"## {name}\n"
        if not isinstance(value, type):
            yield fenced(signature(name, value), "python")
        told = inspect.getdoc(value) or ""
        if told and not told.startswith(f"{name}("):
            yield fenced(told)
        if hasattr(value, "schema"):
            yield f"Its fields: [{value.schema}](schemas.md#{anchor(value.schema)}).\n"


def signature(name: str, value: Any) -> str:
    """A parameter a line where they are many."""
    text = str(inspect.signature(value))
    if len(text) > 80:
        text = re.sub(r"(?<=[(,]) ?(?=[a-z_*][\w*]*[:,]|\*, )", "\n    ", text)
    return f"{name}{text}"


def anchor(title: str) -> str:
    return title.lower().replace("/", "").replace(" ", "-")


def schemas() -> Iterator[str]:
    yield "# JSON Schemas\n"
    yield (
        "What `--json` prints, and what a manifest holds. Within a version fields are only added. `adaptertool schema "
        "NAME` prints a schema itself. Where a command fails, [error/1](#error1) stands in the place of its report.\n"
    )
    for path in sorted((ROOT / "adaptertool" / "schemas").glob("*.json")):
        schema = json.loads(path.read_text())
        yield f"## {schema['title']}\n"
        yield schema.get("description", "") + "\n"
        yield fields(schema)
        for name, one in schema.get("$defs", {}).items():
            yield f"**{name}**: {one.get('description', '')}\n"
            yield fields(one)


def fields(schema: Mapping[str, Any]) -> str:
    lines = ["| field | type | |", "| --- | --- | --- |"]
    for name, one in schema.get("properties", {}).items():
        told = one.get("description", "").replace("|", "\\|")
        lines.append(f"| `{name}` | {kind(one)} | {literal(told)} |")
    return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    """A text in which nothing is markup."""
    return re.sub(r"([*_<>\[\]$])", r"\\\1", text)


def kind(one: Mapping[str, Any]) -> str:
    if "$ref" in one:
        return str(one["$ref"]).removeprefix("#/$defs/")
    if "const" in one:
        return f"`{json.dumps(one['const'])}`"
    if "anyOf" in one:
        return " or ".join(map(kind, one["anyOf"]))
    if one.get("type") == "array":
        inner = kind(one["items"]) if "items" in one else " and ".join(map(kind, one["prefixItems"]))
        return f"array of {inner}"
    if one.get("type") == "object" and isinstance(one.get("additionalProperties"), dict):
        return f"object of {kind(one['additionalProperties'])}"
    kinds = one.get("type", "any")
    return " or ".join([kinds] if isinstance(kinds, str) else kinds)


def changelog() -> Iterator[str]:
    text = (ROOT / "CHANGELOG.md").read_text()
    yield text.replace("](docs/", "](../")


PAGES = {"commands": commands, "python": python, "schemas": schemas, "changelog": changelog}

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / f"{name}.md").write_text("\n".join(page()))
