"""Recipes as they are read: fields, types and names, each fault with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from adaptertool.cli.fields import commands
from adaptertool.errors import InputError
from adaptertool.files.yamlfile import parse_yaml
from adaptertool.recipes.given import node_of
from adaptertool.recipes.read import Recipe, read_recipe
from adaptertool.recipes.schema import schema_of


def read(text: str) -> Recipe:
    return read_recipe(parse_yaml(text, "r.yaml")[0], "r.yaml", Path(), commands())


def test_values_are_texts_as_they_are_typed() -> None:
    (step,) = read(
        "merge: {base: 2024, adapters: [no, 1e-3], weights: [1e-3, 0.10000000000000000001], method: ties,\n"
        "  seed: 3, normalize: true, sha256: true, verify: false, out: 0o17}"
    ).steps
    assert step.values == {
        "base": "2024",
        "adapters": ("no", "1e-3"),
        "weights": ("1e-3", "0.10000000000000000001"),
        "method": "ties",
        "seed": "3",
        "normalize": "true",
        "sha256": True,
        "verify": False,
        "out": "0o17",
    }
    (step,) = read("wise: {base: b, tuned: t, alpha: [0, 0.3, 1], fisher: [a, b]}").steps
    assert (step.values["alpha"], step.values["fisher"]) == ("0,0.3,1", ("a", "b"))


SUM = "steps:\n- {name: a, sum: {adapters: [x]}}\n"


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("merge: {base: b, adaptors: [a]}", "1:18", "merge has no field 'adaptors'; did you mean adapters"),
        ("merge: {base: b, adapters: [a], max-shard-size: 5GB}", "1:33", "did you mean max_shard_size?"),
        ("merge: {base: b, adapters: [a], weight: [1]}", "1:33", "did you mean weights?"),
        ("merge: {base: b, adapters: [a], threads: 2}", "1:33", "merge has no field 'threads'"),
        ("merge: {base: b, adapters: a}", "1:28", "`adapters` is a list, also where there is one value"),
        ("merge: {base: b, adapters: []}", "1:28", "at least one value"),
        ("merge: {base: [b], adapters: [a]}", "1:15", "one value, not a list"),
        ("merge: {base: b}", "1:1", "merge needs `adapters`"),
        ("merge: {base: , adapters: [a]}", "1:14", "`base` has no value"),
        ("merge: {base: ~, adapters: [a]}", "1:15", "`base` has no value"),
        ("merge: {base: '', adapters: [a]}", "1:15", "`base` has no value"),
        ("merge: {base: true, adapters: [a]}", "1:15", "`base` is a path, and this is true or false"),
        ("merge: {base: b, adapters: [a], method: tise}", "1:41", "did you mean ties?"),
        ("merge: {base: b, adapters: [a], verify: yes}", "1:41", "`verify` is true or false, not 'yes'"),
        ("merge: {base: b, adapters: [a], verify: 'true'}", "1:41", "`verify` is true or false"),
        *(
            (f"merge: {{base: b, adapters: [a], weights: [{text}]}}", "1:43", "in some dialects")
            for text in ("1_0", "0x1", "010", ".nan", "-.inf")
        ),
        *(
            (f"sum: {{adapters: [a], seed: {text}}}", "1:28", "`seed` is a whole number")
            for text in ("1.5", "-1", "'3'", "1e3", "x")
        ),
        ("wise: {base: b, tuned: t, alpha: 1, fisher: [a]}", "1:45", "`fisher` has 2 values, not 1"),
        ("inspect: {path: p, tokens: many}", "1:28", "`tokens` is a number, not 'many'"),
        ("merge: [b, a]", "1:8", "merge is followed by a map"),
        ("merge: {base: b, adapters: [a]}\nsum: {adapters: [a]}", "1:1", "this step is merge and sum at once"),
        ("steps: []", "1:8", "at least one step"),
        ("steps: {merge: {}}", "1:8", "a list of at least one step"),
        ("steps: [merge]", "1:9", "a step is a map"),
        ("steps: [{name: a}]", "1:9", "this step names no command"),
        ("steps: [{merg: {}}]", "1:10", "a step has no field 'merg'; did you mean merge or mergekit or name?"),
        ("steps:\n- sum: {adapters: [a]}\nmerge: {}", "3:1", "merge stands beside `steps`"),
        ("schema: recipe/2\nsum: {adapters: [a]}", "1:9", "the schema of a recipe is recipe/1"),
        ("steps: [{name: 1a, sum: {adapters: [a]}}]", "1:16", "a name of a step begins with a letter"),
        (SUM + "- merge: {base: b, adapters: ['${c}']}", "3:30", "no earlier step is named 'c'; named before it are a"),
        (
            SUM + "- {name: c, merge: {base: b, adapters: ['${c}']}}",
            "3:40",
            "${c} is made at r.yaml:3:13, after it is needed",
        ),
        (SUM + "- merge: {base: b, adapters: ['x/${a}']}", "3:30", "stands at the beginning of a path"),
        (SUM + "- merge: {base: b, adapters: ['${a}/../x']}", "3:30", "after ${a} comes nothing, or / and a path"),
        (SUM + "- merge: {base: b, adapters: ['${a}x']}", "3:30", "after ${a} comes nothing, or / and a path"),
        (SUM + "- merge: {base: b, adapters: [x]}", "2:13", "nothing takes what this step makes"),
        (
            SUM + "- {name: a, merge: {base: b, adapters: ['${a}']}}",
            "3:13",
            "the step at r.yaml:2:13 is named a already",
        ),
        ("steps:\n- {name: a, inspect: {path: p}}\n- sum: {adapters: ['${a}']}", "3:19", "inspect makes nothing"),
        ("steps:\n- sum: {adapters: [a], out: o}\n- sum: {adapters: [a], out: o}", "3:3", "two steps write to o"),
        ("- merge", "1:1", "a recipe is a map"),
        ("merge_method: linear", "1:1", "a recipe has no field 'merge_method'"),
    ],
)
def test_faults_have_their_line_and_what_is_near(text: str, where: str, what: str) -> None:
    with pytest.raises(InputError, match=rf"^r\.yaml:{where}: .*{re.escape(what)}"):
        read(text)


def test_data_is_read_like_a_file() -> None:
    data: dict[str, Any] = {"merge": {"base": Path("b"), "adapters": ["a"], "weights": [0.1], "sha256": True}}
    (step,) = read_recipe(node_of(data), "recipe", Path(), commands()).steps
    assert step.values == {"base": "b", "adapters": ("a",), "weights": ("0.1",), "sha256": True}
    for value, what in ((float("nan"), "nan"), (b"a", "bytes"), ({1}, "set")):
        with pytest.raises(InputError, match=rf"^recipe\.merge\.base: a recipe has no .*{what}"):
            node_of({"merge": {"base": value}})
    with pytest.raises(InputError, match=r"^recipe\.steps\[0\]\.merge\.weights\[0\]: .*"):
        data["merge"]["weights"] = [None]
        read_recipe(node_of({"steps": [data]}), "recipe", Path(), commands())


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ('{"merge": {"base": "b", "adapters": ["a"], "weights": [0.5], "method": "ties", "seed": 3}}', True),
        ('{"schema": "recipe/1", "steps": [{"name": "a", "sum": {"adapters": ["x"], "out": "o"}}]}', True),
        ('{"wise": {"base": "b", "tuned": "t", "alpha": [0, 1]}}', True),
        ('{"merge": {"base": "b", "adapters": "a"}}', False),
        ('{"merge": {"base": "b", "adapters": ["a"], "weight": [1]}}', False),
        ('{"merge": {"base": "b", "adapters": ["a"], "method": "tise"}}', False),
        ('{"merge": {"base": "b", "adapters": ["a"]}, "sum": {"adapters": ["a"]}}', False),
        ('{"merge": {"base": "b"}}', False),
        ('{"steps": []}', False),
        ('{"sum": {"adapters": ["a"], "seed": -1}}', False),
    ],
)
def test_the_schema_says_what_is_read(text: str, good: bool) -> None:
    validator = jsonschema.Draft202012Validator(schema_of(commands()))
    assert validator.is_valid(json.loads(text)) is good
    if good:
        read(text)
        return
    with pytest.raises(InputError):
        read(text)


def test_every_option_of_a_command_is_a_field_or_said_of_the_whole() -> None:
    fields = {name: set(command.fields) for name, command in commands().items()}
    assert {"merge", "wise", "sum", "truncate", "extract", "convert"} <= {n for n, c in commands().items() if c.writes}
    assert {"base", "adapters", "weights", "method", "density", "lambda", "leave_out", "renames"} <= fields["merge"]
    assert "time" in fields["drift"] and "cost" not in fields["drift"]  # as it is typed
    assert not {"threads", "json", "quiet", "dry_run", "force", "help", "debug", "color"} & set().union(
        *fields.values()
    )
