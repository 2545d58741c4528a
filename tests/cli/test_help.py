"""Examples in every help, which run as they stand, and the man pages that are made of it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import FIXTURES, ROOT, adaptertool

from adaptertool.cli import cli
from adaptertool.cli.examples import EXAMPLES
from adaptertool.cli.table import COMMANDS, Unloaded
from adaptertool.methods import METHOD_BY_NAME

ORDER = (
    "merge",
    "wise",
    "sum",
    "truncate",
    "extract",
    "convert",
    "apply",
    "verify",
    "drift",
    "diff",
    "inspect",
    "mergekit",
    "layers",
    "clean",
    "plan",
    "run",
    "finish",
    "schema",
    "completion",
)
RECIPE = """
steps:
  - name: both
    sum: {adapters: [lora, rslora], weights: [0.5, 1], rank: 8}
  - merge: {base: base, adapters: ["${both}"], out: applied}
"""
PROGRAM = "#!/bin/sh\ntest -f $1/config.json && echo 1\n"


def command(name: str) -> click.Command:
    found = cli.commands[name]
    assert isinstance(found, Unloaded)
    return found.command()


def test_every_command_has_an_example() -> None:
    assert EXAMPLES.keys() <= {entry.name for entry in COMMANDS}
    for entry in COMMANDS:
        epilog = command(entry.name).epilog or ""
        assert f"adaptertool {entry.name} " in epilog
        assert max(map(len, epilog.splitlines())) <= 76, entry.name  # and two before it


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("examples")
    for name in ("base", "lora", "rslora", "tuned"):
        shutil.copytree(FIXTURES / name, root / name)
    (root / "recipe.yaml").write_text(RECIPE)
    (root / "ties.yml").write_text((FIXTURES / "ties.yml").read_text().replace("fixtures/", ""))
    (root / "score").write_text(PROGRAM)
    (root / "score").chmod(0o755)
    return root


def test_examples_run(here: Path) -> None:
    """As they stand and in this order; what checks find is what they are for."""
    for name, typed in [(one, typed) for one in ORDER for _, typed in EXAMPLES[one]]:
        done = adaptertool(*shlex.split(typed.replace("\\\n", ""))[1:], cwd=here)
        assert done.returncode == (1 if name == "diff" else 0), (typed, done.stderr)
        for out in re.findall(r"-o (\S+)|--junit (\S+)", typed):
            assert (here / (out[0] or out[1])).exists() is ("--dry-run" not in typed and name != "plan")


def test_the_examples_of_models_parse() -> None:
    assert set(EXAMPLES) - set(ORDER) == {"evaluate"}
    for _, typed in EXAMPLES["evaluate"]:
        assert command("evaluate").make_context("evaluate", shlex.split(typed)[2:]).params["base"] == "base"


def test_help_tells_the_variables_and_the_last_options_of_all() -> None:
    text = adaptertool("--help").stdout
    for name in ("ADAPTERTOOL_THREADS", "NO_COLOR", "HF_HUB_CACHE", "GITHUB_STEP_SUMMARY"):
        assert name in text
    assert "--color [auto|always|never]" in adaptertool("verify", "--help").stdout


def test_help_of_settings_names_values_defaults_and_methods() -> None:
    """In words of its own: no option takes a mere TEXT."""
    for entry in COMMANDS:
        context = click.Context(command(entry.name))
        told = dict(filter(None, (one.get_help_record(context) for one in context.command.get_params(context))))
        assert not [names for names in told if " TEXT" in names or "RANGE" in names]
        if entry.name == "merge":
            assert told["--around-zero [true|false]"].endswith("Default false: nuslerp, multislerp.")
            density = told["--density NUMBER|PATTERN=NUMBERS"]
            assert "Needed by: ties, " in density and "; default 1: " in density
            assert all(name in told["--method METHOD"] for name in METHOD_BY_NAME)
            assert "default true: mergekit_linear, " in told["--normalize [true|false]"]
        if entry.name == "sum":
            assert "mergekit" not in told["--seed N"]


def test_help_is_no_command_and_names_of_schemas_are_completed() -> None:
    done = adaptertool("help", "merge")
    assert done.returncode == 2 and "adaptertool merge --help" in done.stderr
    (name,) = command("schema").params[:1]
    found = name.shell_complete(click.Context(command("schema")), "ver")
    assert [one.value for one in found] == ["verify/1"]


def test_man_pages(tmp_path: Path) -> None:
    """One for each command, with all of its options; groff finds nothing to complain of."""
    subprocess.run([sys.executable, ROOT / "tools/man_pages.py", tmp_path / "man"], check=True, cwd=ROOT)
    pages = {path.name: path.read_text() for path in (tmp_path / "man").iterdir()}
    assert pages.keys() == {"adaptertool.1", *(f"adaptertool-{entry.name}.1" for entry in COMMANDS)}
    for entry in COMMANDS:
        text = pages[f"adaptertool-{entry.name}.1"].replace("\\-", "-")
        named = {name for one in command(entry.name).params for name in one.opts if name.startswith("-")}
        assert all(name in text for name in named) and entry.summary.rstrip(".") in text
        assert ".SH EXAMPLES" in text or entry.name not in EXAMPLES
    assert ".SH EXIT STATUS" in pages["adaptertool.1"] and "\b" not in "".join(pages.values())
    if shutil.which("groff"):
        for name in ("adaptertool.1", "adaptertool-wise.1"):
            done = subprocess.run(
                ["groff", "-man", "-Tutf8", "-ww", "-k", tmp_path / "man" / name], capture_output=True, check=False
            )
            assert (done.returncode, done.stderr) == (0, b"") and b"OPTIONS" in done.stdout
