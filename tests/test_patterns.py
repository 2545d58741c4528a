"""Patterns are those of `re`, and compiled when they are first used."""

from __future__ import annotations

import ast
import importlib
import re
from typing import Any

import pytest
from conftest import ROOT

from adaptertool.patterns import regex

SOURCES = [path for path in (ROOT / "adaptertool").rglob("*.py") if "import regex" in path.read_text()]


def test_a_pattern_does_what_re_does() -> None:
    text = "ab12 AB3"
    for given in (("[a-z]+",), ("[a-z]+", re.IGNORECASE), (r"(?P<word>[a-z]+)(\d)",)):
        ours, theirs = regex(*given), re.compile(*given)
        for name in ("match", "fullmatch", "search"):
            found, wanted = getattr(ours, name)(text), getattr(theirs, name)(text)
            assert (found and found.groups()) == (wanted and wanted.groups()), name
        assert ours.sub("-", text) == theirs.sub("-", text)
        assert ours.split(text) == theirs.split(text)
        assert ours.findall(text) == theirs.findall(text)
        assert [one.span() for one in ours.finditer(text)] == [one.span() for one in theirs.finditer(text)]
        assert (ours.pattern, ours.flags, ours.groupindex) == (theirs.pattern, theirs.flags, theirs.groupindex)


def test_it_is_compiled_once_and_not_before(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    real = re.compile

    def compile_(*given: Any) -> re.Pattern[str]:
        compiled.append(given)
        return real(*given)

    monkeypatch.setattr(re, "compile", compile_)
    pattern = regex("a+", re.IGNORECASE)
    assert (pattern.pattern, compiled) == ("a+", [])
    assert pattern.fullmatch("aA") and pattern.search("bA") and pattern.fullmatch("b") is None
    assert compiled == [("a+", re.IGNORECASE)]


def test_what_is_no_attribute_of_a_pattern() -> None:
    for name in ("nothing", "__nothing__", "__deepcopy__x"):
        with pytest.raises(AttributeError, match=name):
            getattr(regex("a"), name)


def test_all_patterns_of_the_package_compile() -> None:
    """A mistake in one would otherwise be seen at its first use alone."""
    assert len(SOURCES) > 40
    count = 0
    for path in SOURCES:
        name = ".".join(("adaptertool", *path.relative_to(ROOT / "adaptertool").with_suffix("").parts))
        for value in vars(importlib.import_module(name.removesuffix(".__init__"))).values():
            if type(value) is regex:
                value.search(type(value.pattern)())  # text or bytes
                count += 1
    assert count > 80


def test_none_is_compiled_as_a_module_is_loaded() -> None:
    for path in (ROOT / "adaptertool").rglob("*.py"):
        outside = [
            node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        ]
        calls = {ast.unparse(node.func) for one in outside for node in ast.walk(one) if isinstance(node, ast.Call)}
        assert "re.compile" not in calls or path.name in ("errors.py", "patterns.py"), path  # they stand on one level
