"""The JSON Schemas of reports and manifests: as the dataclasses have them, and as every command prints."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from conftest import FIXTURES, ROOT, adaptertool, write_checkpoint
from json_schemas import FOLDER, SCHEMAS, faults, require_valid

BASE, LORA, TUNED = (FIXTURES / name for name in ("base", "lora", "tuned"))


def test_they_are_made_of_the_dataclasses() -> None:
    """Where this fails: python tools/schemas.py"""
    made = runpy.run_path(str(ROOT / "tools" / "schemas.py"))["texts"]()
    assert made == {path.stem: path.read_text() for path in FOLDER.glob("*.json")}


def without(value: dict[str, object], name: str) -> dict[str, object]:
    return {key: one for key, one in value.items() if key != name}


def test_they_are_schemas_by_the_standard() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)
    right = adaptertool("diff", BASE, TUNED, "--json").stdout
    jsonschema.validate(json.loads(right), SCHEMAS["diff/1"])
    with pytest.raises(jsonschema.ValidationError, match="'same' is a required property"):
        jsonschema.validate(without(json.loads(right), "same"), SCHEMAS["diff/1"])


SCORE = f"{sys.executable} -c 'print(0.5)' {{}}"
# What each command prints: its schema, exit code, arguments
RUNS: Mapping[str, tuple[str, int, list[object]]] = {
    "merge": ("run/1", 0, ["merge", BASE, LORA, "-o", "out"]),
    "merge --dry-run": ("plan/1", 0, ["merge", BASE, LORA, "-o", "out", "--dry-run"]),
    "wise": ("run/1", 0, ["wise", BASE, TUNED, "-o", "out", "--alpha", "0,1"]),
    "wise --score": ("curve/1", 0, ["wise", BASE, TUNED, "--alpha", "0,1", "--score", SCORE]),
    "a point that fails": ("curve/1", 1, ["wise", BASE, TUNED, "--alpha", "0", "--score", "false {}"]),
    "apply --sweep": ("sweep/1", 0, ["apply", "r.json", "--sweep", "weights.0=0,1", "--score", SCORE]),
    "apply --sweep --dry-run": (
        "sweep/1",
        0,
        ["apply", "r.json", "--sweep", "weights.0=0,1", "--score", SCORE, "--dry-run"],
    ),
    "a point of it that fails": (
        "sweep/1",
        1,
        ["apply", "r.json", "--sweep", "weights.0=0,1", "--score", "false {}"],
    ),
    "verify": ("verify/1", 0, ["verify", "made", BASE, LORA]),
    "verify, wrong": ("verify/1", 1, ["verify", BASE, BASE, LORA]),
    "verify files": ("files/1", 0, ["verify", "made"]),
    "verify files, wrong": ("files/1", 1, ["verify", "worse"]),
    "drift": ("drift/1", 0, ["drift", BASE, LORA, "--time"]),
    "drift, wrong": ("drift/1", 1, ["drift", BASE, LORA, "--merged", BASE]),
    "diff": ("diff/1", 0, ["diff", BASE, BASE]),
    "diff, another": ("diff/1", 1, ["diff", BASE, TUNED, "--ranks"]),
    "inspect": ("inspect/1", 0, ["inspect", LORA, "--base", BASE, "--tokens", "9", "--nats-per-token", "2"]),
    "inspect a checkpoint": ("inspect/1", 0, ["inspect", "made"]),
    "inspect, no fit": ("inspect/1", 1, ["inspect", LORA, "--base", "other"]),
    "sum": ("sum/1", 0, ["sum", LORA, LORA, "-o", "out", "--rank", "4"]),
    "truncate": ("truncate/1", 0, ["truncate", LORA, "-o", "out", "--rank", "4", "--base", BASE]),
    "extract": ("extract/1", 0, ["extract", BASE, TUNED, "-o", "out", "--rank", "2"]),
    "convert": ("convert/1", 0, ["convert", LORA, "-o", "out.safetensors", "--to", "kohya"]),
    "usage": ("error/1", 2, ["merge", BASE]),
    "input": ("error/1", 3, ["merge", BASE, TUNED, "-o", "out"]),
    "output": ("error/1", 5, ["merge", BASE, LORA, "-o", "made"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`made`, a merge; `worse`, of which a file is not as its manifest says; `other`, a small checkpoint."""
    folder = tmp_path_factory.mktemp("schemas")
    for name in ("made", "worse"):
        assert adaptertool("merge", BASE, LORA, "-o", name, "--sha256", "-q", cwd=folder).returncode == 0
    (folder / "worse" / "config.json").write_text("{}")
    step = {"merge": {"base": str(BASE), "adapters": [str(LORA)], "weights": [1]}}
    (folder / "r.json").write_text(json.dumps(step))
    write_checkpoint(folder / "other", {"model.norm.weight": torch.ones(4)})
    return folder


@pytest.mark.parametrize("case", RUNS)
def test_what_commands_print_is_as_they_say(place: Path, tmp_path: Path, case: str) -> None:
    name, code, arguments = RUNS[case]
    there = [place / one if one in ("made", "worse", "other", "r.json") else one for one in arguments]
    done = adaptertool(*there, "--json", cwd=tmp_path)
    assert done.returncode == code, done.stderr
    found = require_valid(done.stdout, name)
    assert found["ok"] is (code == 0)
    assert list(found)[:2] == ["schema", "ok"]


def test_verify_says_its_verdict(place: Path) -> None:
    for merged, verdict in ((place / "made", "right"), (BASE, "wrong")):
        done = adaptertool("verify", merged, BASE, LORA, "--json")
        assert json.loads(done.stdout)["verdict"] == verdict


def test_manifests_are_as_they_say(place: Path, tmp_path: Path) -> None:
    adaptertool("extract", BASE, TUNED, "-o", tmp_path / "extracted", "--rank", "2")
    for folder in (place / "made", tmp_path / "extracted"):
        require_valid((folder / "adaptertool.manifest.json").read_text(), "manifest/1")


def test_the_command() -> None:
    done = adaptertool("schema")
    assert done.stdout.split() == sorted(SCHEMAS)
    for name in ("verify/1", "verify"):
        done = adaptertool("schema", name)
        assert json.loads(done.stdout) == SCHEMAS["verify/1"]
    done = adaptertool("schema", "verdict")
    assert done.returncode == 2 and "verify/1" in done.stderr


def test_faults_are_found() -> None:
    good = json.loads(adaptertool("verify", BASE, BASE, LORA, "--json").stdout)
    schema = SCHEMAS["verify/1"]
    for bad in (
        good | {"more": 1},
        good | {"ok": 1},
        good | {"schema": "verify/2"},
        good | {"tensors": [{}]},
        good | {"alpha": "1"},
        without(good, "verdict"),
    ):
        assert list(faults(bad, schema, schema))
