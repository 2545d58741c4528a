"""Strict YAML: what is read, where it stands, and what is refused with its line."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import adaptertool
from adaptertool.errors import InputError
from adaptertool.files import yamlfile
from adaptertool.files.yamlfile import Items, Node, Scalar, Table, load_yaml, parse_yaml


def plain(node: Node) -> Any:
    """Texts, lists and dicts."""
    if isinstance(node, Scalar):
        return node.text
    if isinstance(node, Items):
        return [plain(one) for one in node.items]
    return {name: plain(entry.value) for name, entry in node.entries.items()}


def test_values_know_where_they_stand() -> None:
    (node,) = parse_yaml("# first\nsteps:\n  - merge:\n      base: a b\n      'w': [1, 2.50]\n", "r.yaml")
    assert plain(node) == {"steps": [{"merge": {"base": "a b", "w": ["1", "2.50"]}}]}
    assert isinstance(node, Table)
    steps = node.entries["steps"].value
    assert isinstance(steps, Items) and isinstance(steps.items[0], Table)
    merge = steps.items[0].entries["merge"].value
    assert isinstance(merge, Table)
    assert [str(merge.entries[name].key.at) for name in ("base", "w")] == ["r.yaml:4:7", "r.yaml:5:7"]
    assert [str(merge.entries[name].value.at) for name in ("base", "w")] == ["r.yaml:4:13", "r.yaml:5:12"]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *(("1e-3", "0.001"), (".5", "0.5"), ("-1.", "-1"), ("+0.30", "0.30"), ("0", "0"), ("-0", "-0")),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),  # no float has been there
        *((text, None) for text in ("1_000", "010", "0o17", "0x1f", ".nan", "-.INF", "1:30", "no", "1e", ".", "--1")),
    ],
)
def test_numbers_are_exact_decimals_and_no_dialects(text: str, number: str | None) -> None:
    (node,) = parse_yaml(f"- {text}\n- '{text}'\n", "r.yaml")
    assert isinstance(node, Items)
    bare, quoted = node.items
    assert isinstance(bare, Scalar) and isinstance(quoted, Scalar)
    assert bare.text == quoted.text == text
    assert bare.number == (None if number is None else Decimal(number))
    assert quoted.number is None
    assert bare.like_a_number == (text in ("1_000", "010", "0o17", "0x1f", ".nan", "-.INF"))


def test_true_false_and_nothing() -> None:
    (node,) = parse_yaml("[true, False, yes, on, 'true', ~, null, '', NO]", "r.yaml")
    assert isinstance(node, Items)
    scalars = [one for one in node.items if isinstance(one, Scalar)]
    assert [one.truth for one in scalars] == [True, False, None, None, None, None, None, None, None]
    assert [one.is_null for one in scalars] == [False, False, False, False, False, True, True, False, False]


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", "3:1", "'a' stands there twice; first in line 1"),
        ("a: {x: 1,\n  'x': 2}", "2:3", "'x' stands there twice"),
        ("a: &one 1\n", "1:4", "anchors and aliases are refused"),
        ("a: *one\n", "1:4", "anchors and aliases are refused"),
        ("a: 1\n<<: {b: 1}\n", "2:1", "merge keys"),
        ("a: !!python/object:os.system x\n", "1:4", "tags are refused"),
        ("a:\n  b: !!str 1\n", "2:6", "tags are refused"),
        ("%YAML 1.1\n---\na: no\n", "2:1", "YAML 1.2"),
        ("%TAG ! tag:x,2000:\n---\na: 1\n", "2:1", "without directives"),
        ("? {a: b}\n: 1\n", "1:3", "a key is a name"),
        ("a:\n\t- 1\n", "2:1", "not YAML"),
        ("a: 1\n b: 2\n", "2:3", "not YAML"),
        ("a: [1, 2\n", "2:1", "not YAML"),
        ("a: b: c\n", "1:5", "not YAML"),
        ('{"a": 1,}}', "1:10", "not YAML"),
        ('a: "\\0"\n', "1:4", "NUL"),
        ('a: "\\ud83d"\n', "1:4", "surrogate"),
        ("a: 1\nb: \x07\n", "2", "a character that no YAML has"),
        ("[" * 4000, "1:52", "more than 50 lists and maps"),
        ("{a: " * 4000, "1:202", "more than 50 lists and maps"),
    ],
)
def test_what_surprises_is_refused_with_its_line(text: str, where: str, what: str) -> None:
    with pytest.raises(InputError, match=rf"^r\.yaml:{where}: .*{re.escape(what)}"):
        parse_yaml(text, "r.yaml")


def test_documents() -> None:
    assert [plain(one) for one in parse_yaml("---\na: 1\n---\n- 2\n...\n", "r.yaml")] == [{"a": "1"}, ["2"]]
    assert parse_yaml("", "r.yaml") == parse_yaml("# nothing\n", "r.yaml") == []


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes("﻿a: ü\r\nb: 1\r\n".encode())
    assert plain(load_yaml(path)[0]) == {"a": "ü", "b": "1"}
    path.write_bytes(b"a: 1\nb: \xff\n")
    with pytest.raises(InputError, match=r"r\.yaml:2: byte 8 is not UTF-8"):
        load_yaml(path)
    path.write_bytes(b"#" * 2_000_001)
    with pytest.raises(InputError, match="2,000,001 bytes"):
        load_yaml(path)


_JSON = st.recursive(
    st.text() | st.just("x"), lambda one: st.lists(one) | st.dictionaries(st.text(), one), max_leaves=8
)


@given(_JSON, st.sampled_from([None, 2, "\t"]), st.booleans())
def test_json_is_read_as_json_is(value: Any, indent: int | str | None, ascii_only: bool) -> None:
    def without(one: Any) -> Any:  # what both refuse
        if isinstance(one, str):
            return "".join(c for c in one if c != "\0" and not "\ud800" <= c <= "\udfff")
        if isinstance(one, list):
            return [without(each) for each in one]
        return {without(name): without(each) for name, each in one.items()}

    told = without(value)
    text = json.dumps(told, indent=indent, ensure_ascii=ascii_only)
    if not ascii_only and not all(c.isprintable() or c in "\n\t" for c in text):
        return
    assert plain(parse_yaml(text, "r.json")[0]) == told


@given(st.text(alphabet="ab01 :-[]{},#&*!|>'\"%@`?\n\t\\.~<é", max_size=40))
@example("a: |\n  x\n y")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse_yaml(text, "r.yaml")
    except InputError as error:
        assert str(error).startswith("r.yaml:")


def test_a_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`apply` looks whose it is, and then the command reads it. A file that has changed meanwhile is parsed anew."""
    parsed, real = list[str](), yamlfile.parse_yaml
    monkeypatch.setattr(yamlfile, "parse_yaml", lambda text, file: parsed.append(file) or real(text, file))
    monkeypatch.chdir(Path(__file__).parents[2])
    path = tmp_path / "ties.yml"
    path.write_text(Path("fixtures/ties.yml").read_text())
    assert adaptertool.apply(path, tmp_path / "out", dry_run=True).steps[0].state == "planned"
    assert parsed == [str(path)]
    path.write_text("a: 1")
    assert plain(yamlfile.load_yaml(path)[0]) == {"a": "1"} and len(parsed) == 2
