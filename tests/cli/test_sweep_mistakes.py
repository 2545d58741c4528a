"""What is said of sweeps that cannot be, before anything is made; and what a dry run tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool, snapshot
from manifests import checkpoint, lora

import adaptertool as package
from adaptertool.errors import AdapterToolError

ONE = "merge: {base: base, adapters: [one, one], weights: [1, 1], method: ties, density: 0.5, out: out}\n"
SCORE = ["--score", "false {}"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    checkpoint(folder / "base", shards=1)
    lora(folder / "one")
    (folder / "taken").mkdir()
    (folder / "taken" / "mine").touch()
    (folder / "r.yaml").write_text(ONE)
    (folder / "w.yaml").write_text("wise: {base: base, tuned: one, alpha: 0.5, score: 'x {}', out: out}\n")
    (folder / "h.yaml").write_text(ONE.replace("out: out", "out: out, html: page.html"))
    (folder / "v.yaml").write_text("verify: {merged: base, base: base, sources: [one], weights: [1]}\n")
    (folder / "none.yaml").write_text(ONE.replace(", out: out", ""))
    (folder / "m.yaml").write_text("merge_method: linear\nmodels: [{model: base, parameters: {weight: 1}}]\n")
    package.merge(folder / "base", [folder / "one"], folder / "made")
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


W = ["--sweep", "weights.0=0,1"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["r.yaml", *W], 2, "--sweep makes several, of which --score 'CMD {}' says which is best"),
        (["r.yaml", *SCORE], 2, "are for --sweep"),
        (["r.yaml", "--search", "grid"], 2, "are for --sweep"),
        (["r.yaml", "--sweep", "weights.0", *SCORE], 2, "it is PLACE=VALUES"),
        (["r.yaml", "--sweep", "=1", *SCORE], 2, "it is PLACE=VALUES"),
        (["r.yaml", *W, *W, *SCORE], 2, "--sweep weights.0 is given twice"),
        (["r.yaml", "--sweep", "weight.0=1", *SCORE], 2, "the recipe has no number weight.0; did you mean weights.0"),
        (["r.yaml", "--sweep", "method=1", *SCORE], 2, "method is no number: at r.yaml:1:"),
        (["r.yaml", "--sweep", "weights.0=0:1:0", *SCORE], 2, "STEP must not be 0"),
        (["r.yaml", "--sweep", "density=0.5,1.5", *SCORE], 2, "density = 1.5: r.yaml:1:1: merge: --density is"),
        (["r.yaml", "--sweep", "density=0:1:0.001", *SCORE], 2, "more than 1,000 points"),
        (["r.yaml", "--sweep", "density=0.1:1:0.01", "--sweep", "weights.0=1:20:1", *SCORE], 2, "1,820 points"),
        (["r.yaml", *W, "--score", "false"], 2, "has no {}"),
        (["r.yaml", *W, *SCORE, "--keep", "all"], 2, "a sweep keeps the best, as OUT, or none"),
        (["r.yaml", *W, *SCORE, "--target", "a", "--reference", "a"], 2, "are the same score"),
        (["r.yaml", *W, *SCORE, "--input", "base=x"], 2, "--input is for manifests"),
        (["r.yaml", *W, *SCORE, "-o", "taken"], 5, "taken exists"),
        (["r.yaml", *W, *SCORE, "--results", "taken"], 5, "taken exists"),
        (["r.yaml", *W, *SCORE, "--results", "taken", "--force"], 5, "was not made by adaptertool"),
        (["r.yaml", *W, *SCORE, "--results", "base"], 2, "OUT base and the input base overlap"),
        (["r.yaml", *W, *SCORE, "--results", "out"], 2, "the results cannot lie in OUT"),
        (["r.yaml", *W, *SCORE, "--results", "out/scores"], 2, "does not exist"),
        (["r.yaml", *W, *SCORE, "-o", "base"], 5, "base exists"),
        (["r.yaml", *W, *SCORE, "-o", "base", "--force"], 2, "overlap"),
        (["r.yaml", *W, *SCORE, "-o", "nowhere/out", "--results", "scores"], 2, "does not exist"),
        (["r.yaml", *W, *SCORE, "-o", "nowhere/out"], 2, "does not exist"),
        (["r.yaml", *W, *SCORE, "-o", "s3://bucket/out"], 2, "is in a store, where this command does not write"),
        (["none.yaml", *W, *SCORE, "--keep", "best"], 2, "there must be an OUT to keep it in"),
        (["w.yaml", "--sweep", "alpha=0,1", *SCORE], 3, "w.yaml:1:51: `score` is for one OUT"),
        (["h.yaml", *W, *SCORE], 3, "`html` is for one OUT"),
        (["v.yaml", *W, *SCORE], 2, "this one has checks alone"),
        (["m.yaml", "--sweep", "weight=0,1", *SCORE], 2, "in a configuration of mergekit cannot be swept"),
        (["r.yaml", "--sweep", "gamma=0.1,0.2", *SCORE], 2, "has no `gamma`; write it there first, then sweep it"),
        (["made/adaptertool.manifest.json", *W, *SCORE], 2, "a manifest is made again as it is"),
        (["nowhere.yaml", *W, *SCORE], 3, "nowhere.yaml"),
    ],
)  # fmt: skip
def test_mistakes(here: Path, arguments: list[str], code: int, said: str) -> None:
    before = snapshot(here)
    done = adaptertool("apply", *arguments, cwd=here)
    assert (done.returncode, done.stdout) == (code, "") and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and snapshot(here) == before and not list(here.glob(".*"))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"search": "random"}, "grid or coordinate"), ({"sweep": {}}, "at least"),
        ({"target": "x"}, "none of the scores: score"),
    ],
)  # fmt: skip
def test_mistakes_in_python(here: Path, more: dict[str, Any], said: str) -> None:
    step = {"merge": {"base": "base", "adapters": ["one"], "weights": [1]}}
    with pytest.raises(AdapterToolError, match=said):
        package.apply_sweep(step, **{"sweep": {"weights.0": "0,1"}, "score": lambda path: len(path), **more})
    assert not list(here.glob(".*"))


def test_a_dry_run_names_the_points(here: Path) -> None:
    before = snapshot(here)
    typed = ["apply", "r.yaml", *W, "--sweep", "density=0.5,1", *SCORE, "--dry-run"]
    done = adaptertool(*typed, cwd=here)
    assert done.returncode == 0
    assert "merge base + one (weight 0) + one -> out" in done.stdout  # the plan of the first
    assert [line.split() for line in done.stdout.splitlines() if line.startswith(("  0 ", "  1 "))] == [
        ["0", "0.5"], ["0", "1"], ["1", "0.5"], ["1", "1"],
    ]  # fmt: skip
    content = json.loads(adaptertool(*typed, "--json", cwd=here).stdout)
    assert content["dry_run"] and content["ok"] and [one["command"] for one in content["planned"]] == ["merge"]
    assert content["planned"][0]["report"]["weights"] == [0, 1]
    done = adaptertool(*typed, "--search", "coordinate", cwd=here)
    assert "coordinate search, planned, from weights.0 1, density 0.5" in done.stdout
    assert "apply r.yaml: sound" in adaptertool(*typed, "--check", cwd=here).stdout
    checked = json.loads(adaptertool(*typed, "--check", "--json", cwd=here).stdout)
    assert checked["dry_run"] and checked["ok"] and len(checked["points"]) == 4 and checked["planned"] == []
    assert snapshot(here) == before and not list(here.glob(".*"))


def test_the_report_is_written(here: Path) -> None:
    done = adaptertool(
        "apply", "r.yaml", *W, "--score", "sh -c 'echo 1' {}", "--keep", "none", "--report", "f.json", cwd=here
    )
    report = json.loads((here / "f.json").read_text())
    (here / "f.json").unlink()
    assert done.returncode == 0 and report["schema"] == "sweep/1" and report["out"] is None
    assert "weights.0 0: score 1" in done.stderr and "highest score: 1 at weights.0 0" in done.stdout
