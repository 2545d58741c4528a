"""The table of commands says what they say of themselves, and nothing is loaded that is not called."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from conftest import ROOT, adaptertool

from adaptertool.cli import cli
from adaptertool.cli.table import COMMANDS, Entry, load

LOADED = """
import contextlib, io, json, sys
sys.argv = ["adaptertool", *sys.argv[1:]]
from adaptertool.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
json.dump(list(sys.modules), sys.stdout)
"""


def command(entry: Entry) -> click.Command:
    found = load(entry.module, entry.attribute)
    assert isinstance(found, click.Command)
    return found


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry.name)
def test_the_table_says_what_the_command_says(entry: Entry) -> None:
    own = command(entry)
    assert own.name == entry.name
    assert cli.commands[entry.name].get_short_help_str() == entry.summary  # whole: it is wrapped, not cut
    assert (own.help or "").replace("\n", " ").startswith(entry.summary)


def test_every_command_is_in_the_table() -> None:
    """A command that is decorated in a file of the folder, and has no line, could not be called."""
    texts = {path.stem: path.read_text() for path in (ROOT / "adaptertool/cli").glob("[a-z]*.py")}
    marks = {name: len(re.findall(r"@click\.(?:command|group)\(", text)) for name, text in texts.items()}
    assert {name for name, count in marks.items() if count} == {entry.module for entry in COMMANDS}
    assert sum(marks.values()) == len(COMMANDS) == len({entry.name for entry in COMMANDS})


def test_what_is_loaded_by_name_is_there() -> None:
    """No type checker sees it."""
    texts = [path.read_text() for path in (ROOT / "adaptertool/cli").glob("*.py")]
    calls = [call for text in texts for call in re.findall(r'\bload\("(.*?)", "(.*?)"\)', text)]
    assert {("run", "run_and_tell"), ("curve", "score_and_tell"), ("sweep_told", "sweep_and_tell")} <= {*calls}
    for module, attribute in calls:
        assert callable(load(module, attribute))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_help_has_each_summary_whole(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    text = cli.get_help(click.Context(cli, **cli.context_settings))
    assert max(map(len, text.split("Exit codes")[0].splitlines())) <= width
    words = " ".join(text.split())
    assert all(entry.summary in words for entry in COMMANDS)


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_the_table_loads_no_command(option: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOADED, option], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    ours = {name for name in loaded if name.split(".")[0] == "adaptertool"}
    assert len(ours) <= 17, ours  # sixteen, and __main__, which `python -m` calls by another name
    assert "adaptertool.cli.table" in ours
    assert loaded.isdisjoint({"numpy", "torch", "tqdm", "blake3"})
    assert not any(f"adaptertool.cli.{entry.module}" in ours for entry in COMMANDS)


def test_a_name_that_is_nearly_right() -> None:
    done = adaptertool("merg")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such command 'merg'." in done.stderr


def test_completion_of_a_command_and_its_options() -> None:
    for line, word in (("adaptertool tr", "truncate"), ("adaptertool merge --comp", "--compose")):
        env = os.environ | {"_ADAPTERTOOL_COMPLETE": "bash_complete", "COMP_WORDS": line}
        done = adaptertool(env=env | {"COMP_CWORD": str(len(line.split()) - 1)})
        assert done.stdout.splitlines() == [f"plain,{word}"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_while_a_command_is_loaded(tmp_path: Path, name: str) -> None:
    """It waits until the module is there, since an exception amid imports may be lost."""
    (tmp_path / "threadpoolctl.py").write_text(
        f"import signal\nsignal.raise_signal(signal.{name})\nprint('loaded')\nthreadpool_limits = None\n"
    )
    done = adaptertool("diff", "a", "b", env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (done.returncode, done.stdout) == (130, "loaded\n")
    assert done.stderr == "adaptertool: interrupted; nothing was published\n"
