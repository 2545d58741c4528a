"""A run of mergekit that was killed goes on where it was; and what is not made in parts says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import adaptertool as command_line
from conftest import snapshot
from small_llamas import llama

import adaptertool

CODE = """
import os, signal, sys
from adaptertool.cli import cli
left = [int(sys.argv.pop(1))]
def hook(name, args):
    if name in ("os.rename", "os.link") and ".safetensors" in str(args):
        left[0] -= 1
        left[0] or os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
cli.main(sys.argv[1:], standalone_mode=False)
"""
CONFIG = """
slices:
  - sources: [{model: base, layer_range: [0, 3]}, {model: tuned, layer_range: [0, 3]}]
  - sources: [{model: base, layer_range: [2, 4]}, {model: tuned, layer_range: [2, 4]}]
merge_method: slerp
base_model: base
parameters: {t: [0.2, 0.8]}
"""


@pytest.mark.parametrize("words", [("mergekit", "c.yml"), ("layers", "base", "0-2,1-3"), ("apply", "c.yml")])
def test_a_killed_run_goes_on(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    llama(tmp_path / "tuned", 2, like=llama(tmp_path / "base", 1))
    Path("c.yml").write_text(CONFIG)
    if words[0] == "apply":
        Path("c.yml").write_text("mergekit: {config: of.yml, max_shard_size: 300B}")
        Path("of.yml").write_text(CONFIG)
    size = () if words[0] == "apply" else ("--max-shard-size", "300B")
    given = [*words, *size, "-o", "out", "--threads", "1"]
    code = [sys.executable, "-c", CODE, "8", *given, "-q"]
    done = subprocess.run(code, capture_output=True, check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not Path("out").exists()
    (staging,) = tmp_path.glob(".out.adaptertool-*")
    before = {path.name: path.stat().st_ino for path in staging.rglob("*.safetensors")}
    again = command_line(*given)
    assert again.returncode == 0, again.stderr
    after = {path.name: path.stat().st_ino for path in Path("out").glob("*.safetensors")}
    kept = [name for name, number in before.items() if after.get(name) == number]
    assert len(kept) >= 3, (before, after)  # the very files, which were not made again
    assert command_line(*[one if one != "out" else "fresh" for one in given], "-q").returncode == 0
    assert snapshot(Path("out")) == snapshot(Path("fresh"))
    assert adaptertool.check_files("out").ok and not [*tmp_path.glob(".out.*")]


@pytest.mark.parametrize("command", ["mergekit", "layers", "apply"])
def test_what_is_not_planned_in_parts_says_so(command: str) -> None:
    done = command_line("plan", command, "c.yml")
    assert done.returncode == 2 and f"`{command}` is made by one machine" in done.stderr
