"""The demo: it needs no more than the package itself, and its check in plain numpy finds what is wrong."""

from __future__ import annotations

import ast
import runpy
import shutil
import sys
from pathlib import Path

import pytest
from conftest import FIXTURES, ROOT, adaptertool

DEMO = FIXTURES / "demo.py"


def test_it_needs_numpy_alone() -> None:
    names = set()
    for node in ast.walk(ast.parse(DEMO.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    assert names - set(sys.stdlib_module_names) == {"numpy"}


def test_its_check_finds_a_wrong_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    check = runpy.run_path(str(DEMO))["check_in_numpy"]
    for weight, good in (("1", True), ("0.999", False)):
        done = adaptertool("merge", "fixtures/base", "fixtures/lora", "-w", weight, "-o", tmp_path / weight, cwd=ROOT)
        assert done.returncode == 0
        assert check(tmp_path / weight) is good
    shutil.copy(FIXTURES / "base" / "model-00003-of-00003.safetensors", tmp_path / "1")
    assert not check(tmp_path / "1")
