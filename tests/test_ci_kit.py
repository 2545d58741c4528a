"""The action, the hook and the Dockerfile: their scripts are run, and what they name is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import FIXTURES, ROOT, adaptertool

from adaptertool.cli.hook import main, outputs_of

BASE, LORA, TUNED = (FIXTURES / name for name in ("base", "lora", "tuned"))
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """What a runner has when adaptertool is installed."""
    (tmp_path / "adaptertool" / "bin").mkdir(parents=True)
    command = tmp_path / "adaptertool" / "bin" / "adaptertool"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m adaptertool "$@"\n')
    command.chmod(0o755)
    return tmp_path


def run_step(runner: Path, command: str, arguments: str) -> tuple[int, dict[str, str], str]:
    """The exit code, the outputs and stderr of the step that runs it, as a runner starts it."""
    output = runner / "output"
    env = os.environ | {
        "COMMAND": command, "ARGUMENTS": arguments, "RUNNER_TEMP": str(runner), "GITHUB_OUTPUT": str(output),
        "GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(runner / "summary.md"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    script = runner / "step.sh"
    script.write_text(STEPS["Run adaptertool"]["run"])
    shell = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)]
    done = subprocess.run(shell, env=env, cwd=runner, capture_output=True, text=True, check=False)
    return done.returncode, dict(line.split("=", 1) for line in output.read_text().splitlines()), done.stderr


@pytest.mark.parametrize(
    ("command", "arguments", "code"),
    [
        ("diff", f"{BASE}\n{BASE}\n", 0),
        ("diff", f"\n{BASE}\r\n\n{TUNED}", 1),
        ("merge", f"{BASE}\n{LORA}\n-o\nan out; touch $(echo x) `y`\n", 0),
        ("merge; touch z", f"{BASE}", 2),
    ],
)
def test_the_step_of_the_action(runner: Path, command: str, arguments: str, code: int) -> None:
    returned, outputs, errors = run_step(runner, command, arguments)
    assert returned == code, errors
    assert (outputs["exit-code"], outputs["ok"]) == (str(code), str(code == 0).lower())
    assert json.loads(Path(outputs["report"]).read_text())["ok"] is (code == 0)
    assert ("::error title=adaptertool::" in errors) is (code != 0)
    assert not {"x", "y", "z"} & {path.name for path in runner.iterdir()}
    assert command != "merge" or (runner / "an out; touch $(echo x) `y`" / "config.json").is_file()


def test_no_input_is_text_of_a_script() -> None:
    for step in STEPS.values():
        assert "${{" not in step["run"]
    used = set(re.findall(r"inputs\.([\w-]+)", (ROOT / "action.yml").read_text()))
    assert used == set(ACTION["inputs"])


def test_the_step_that_installs_names_what_is_there() -> None:
    script = STEPS["Install adaptertool"]["run"]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for name in re.findall(r"GITHUB_ACTION_PATH/([\w.]+)", script):
        assert (ROOT / name).is_file()
    assert re.search(r"^report = \[", (ROOT / "pyproject.toml").read_text(), re.M)


def test_the_hook_checks_what_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert adaptertool("wise", BASE, TUNED, "-o", "sweep", "--alpha", "0,1", "-q", cwd=tmp_path).returncode == 0
    one = "sweep/alpha-1.000/config.json"
    assert outputs_of([one, "other/file"]) == [Path("sweep"), Path("sweep/alpha-1.000")]
    assert outputs_of([str(tmp_path / one)]) == [tmp_path / "sweep", tmp_path / "sweep/alpha-1.000"]
    assert main(["other/file"]) == 0
    (tmp_path / one).write_text("{}")
    assert main([one]) == 1
    told = capfd.readouterr().err
    assert "sweep:" in told and "sweep/alpha-1.000:" in told
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    module = hook["entry"].removeprefix("python -m ").replace(".", "/")
    assert (ROOT / f"{module}.py").is_file() and hook["require_serial"]


def instructions(name: str) -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", (ROOT / name).read_text(), flags=re.M))
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def test_the_dockerfile_copies_what_is_there_and_runs_as_nobody_of_note() -> None:
    lines = instructions("Dockerfile")
    last: dict[str, Any] = dict(lines)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for word, rest in lines:
        if word == "COPY" and "--from" not in rest:
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists() and f"!{name}" in ignored
    assert last["USER"] not in ("root", "0") and last["ENTRYPOINT"] == '["adaptertool"]'
    assert not any("torch" in rest or "[model]" in rest or ":latest" in rest for _, rest in lines)
    needed = re.findall(r'(?:readme = |license-files = \[)"(\w+(?:\.md)?)"', (ROOT / "pyproject.toml").read_text())
    assert {"README.md", "LICENSE"} <= set(needed) and all(f"!{name}" in ignored for name in needed)
