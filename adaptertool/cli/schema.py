"""`schema`."""

from __future__ import annotations

import sys
from importlib.resources import files

import click

from adaptertool.cli.boundary import say

FOLDER = files("adaptertool") / "schemas"


def names() -> dict[str, str]:
    """The file of each schema, by its name: run/1, verify/1, ..."""
    found = sorted(path.name for path in FOLDER.iterdir() if path.name.endswith(".json"))
    return {"/".join(name.removesuffix(".json").rsplit("-", 1)): name for name in found}


def _completed(_context: click.Context, _argument: click.Parameter, begun: str) -> list[str]:
    return [name for name in names() if name.startswith(begun)]


@click.command()
@click.argument("name", required=False, shell_complete=_completed)
def schema(name: str | None) -> None:
    """Print the JSON Schema of what --json prints, or of a manifest; without NAME, which there are.

    NAME is what the field `schema` says, as verify/1, or the same without a version: then the newest.
    \f
    Raises click.BadParameter for a name that there is not.
    """
    known = names()
    if name is None:
        say("\n".join(known), sys.stdout)
        return
    chosen = [one for one in known if name in (one, one.partition("/")[0])]
    if not chosen:
        raise click.BadParameter(f"the schemas are {', '.join(known)}", param_hint="NAME")
    newest = max(chosen, key=lambda one: int(one.partition("/")[2]))
    say((FOLDER / known[newest]).read_text(encoding="utf-8").rstrip(), sys.stdout)
