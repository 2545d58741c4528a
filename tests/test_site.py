"""What the pages of reference on the site are made of: every command, public name and schema is told."""

from __future__ import annotations

import runpy

import click
import pytest
from conftest import ROOT

import adaptertool
from adaptertool.cli.examples import EXAMPLES
from adaptertool.cli.table import COMMANDS, load


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    made = runpy.run_path(str(ROOT / "tools" / "reference.py"))["PAGES"]
    return {name: "\n".join(page()) for name, page in made.items()}


def test_every_command_and_option_is_told(pages: dict[str, str]) -> None:
    for entry in COMMANDS:
        command: click.Command = load(entry.module, entry.attribute)
        own = pages["commands"].split(f"\n## {entry.name}\n")[1].split("\n## ")[0]
        options = [one for parameter in command.params for one in parameter.opts if isinstance(parameter, click.Option)]
        assert not [option for option in options if option not in own]
        assert "Examples:" in own or entry.name not in EXAMPLES


def test_every_public_name_and_schema_is_told(pages: dict[str, str]) -> None:
    for name in adaptertool.__all__:
        assert name.startswith("__") or f"\n## {name}\n" in pages["python"]
    for path in (ROOT / "adaptertool" / "schemas").glob("*.json"):
        assert f"\n## {'/'.join(path.stem.rsplit('-', 1))}\n" in pages["schemas"]
    assert "(schemas.md#verify1)" in pages["python"]


def test_links_of_the_changelog_lead_out_of_its_folder(pages: dict[str, str]) -> None:
    assert "](docs/" not in pages["changelog"]
