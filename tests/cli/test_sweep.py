"""Sweeps over recipes: each point and OUT as the recipe with these numbers makes them, the search, and going on."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool, snapshot
from manifests import MANIFEST, checkpoint, lora, manifest
from markupsafe import Markup

import adaptertool as package
from adaptertool import SweepReport
from adaptertool.cli.sweep_bench import fingerprint
from adaptertool.errors import MismatchError, OutputError, StorageError, UsageError
from adaptertool.render import sweep_page
from adaptertool.reports.sweep import SweepPoint

# Of its points the one with 0.5 and 2 is scored best, wherever they are
TEXT = """
steps:
  - name: both
    sum: {adapters: [one, two], weights: [1, 2]}
  - merge: {base: base, adapters: ["${both}"], weights: [1], out: out}
  - verify: {merged: out, base: base, sources: ["${both}"], weights: [1]}
"""
ONE = "merge: {base: base, adapters: [one, two], weights: [1, 1], out: out}\n"
GRID = {"weights.0": "0:0.5:0.5", "weights.1": [2, 1]}
PAIR = {"weights.0": "0.5,1"}  # where any points do

# What is told by the manifest alone, of any of these recipes; without json, which takes longer to import than the rest
SCRIPT = """\
import os, sys
with open(sys.argv[1] + "/adaptertool.manifest.json") as file:
    content = eval(file.read(), {"null": None, "true": True, "false": False})
told = (content.get("steps") or [content])[0]
recipe = told.get("manifest", told)["recipe"]
first, second = map(float, recipe.get("weights") or [one["weight"] for one in recipe["sources"]])
with open("calls", "a") as file:
    file.write(f"{first:g} {second:g}\\n")
#
print(f'{{"near": {-((first - 0.5) ** 2) - (second - 2) ** 2}, "first": {first}}}')
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Without pictures on pages: tests/render draws them."""
    checkpoint(tmp_path / "base", shards=1)
    lora(tmp_path / "one")
    lora(tmp_path / "two")
    (tmp_path / "r.yaml").write_text(ONE)
    (tmp_path / "score.py").write_text(SCRIPT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep_page, "figure", lambda *_, **__: Markup("<svg></svg>"))
    return tmp_path


SCORE = f"{sys.executable} score.py {{}}"


def run(recipe: Any = "r.yaml", score: Any = SCORE, **more: Any) -> SweepReport:
    return package.apply_sweep(recipe, **{"sweep": GRID, "score": score, **more})


def calls() -> list[str]:
    """The weights that were scored since the last time."""
    path = Path("calls")
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


ORDER = ["0 2", "0 1", "0.5 2", "0.5 1"]


def test_each_point_is_the_recipe_with_these_numbers(here: Path) -> None:
    """The whole is compared with `apply` on recipes that were written by hand."""
    seen: list[dict[str, bytes]] = []

    def score(path: str) -> dict[str, float]:
        seen.append(snapshot(Path(path)))
        first, second = (one["weight"] for one in manifest(Path(path))["recipe"]["sources"])
        return {"near": -((first - 0.5) ** 2) - (second - 2) ** 2, "first": first}

    inputs = {name: snapshot(here / name) for name in ("base", "one", "two")}
    report = run(score=score)
    assert report.ok and [" ".join(point.at.values()) for point in report.points] == ORDER
    for typed, own in zip(ORDER, seen, strict=True):
        first, second = typed.split()
        (here / "own.yaml").write_text(ONE.replace("[1, 1]", f"[{first}, {second}]"))
        package.apply("own.yaml", f"own-{first}-{second}")
        assert own == snapshot(here / f"own-{first}-{second}")
    assert snapshot(here / "out") == snapshot(here / "own-0.5-2") and report.out == "out"
    assert report.best[0].at == {"weights.0": "0.5", "weights.1": "2"} and report.best[0].score == "near"
    assert report.best[1].at == {"weights.0": "0.5", "weights.1": "2"}  # the first of those with 0.5
    assert {name: snapshot(here / name) for name in inputs} == inputs
    left = {path.name for path in here.iterdir()} - {f"own-{typed.replace(' ', '-')}" for typed in ORDER}
    assert left == {"base", "one", "two", "r.yaml", "own.yaml", "score.py", "out", "out-scores"}


def test_the_results(here: Path) -> None:
    report = run()
    assert {path.name for path in (here / "out-scores").iterdir()} == {
        "scores.json", "scores.csv", "sweep.html", MANIFEST,
    }  # fmt: skip
    assert package.check_files("out-scores").ok and package.check_files("out").ok
    content = json.loads((here / "out-scores" / "scores.json").read_text())
    assert content["schema"] == "sweep/1" and content["points"][2]["at"] == {"weights.0": "0.5", "weights.1": "2"}
    assert content["start"] == {"weights.0": "1", "weights.1": "1"} and content["out"] == "out"
    rows = list(csv.DictReader(io.StringIO((here / "out-scores" / "scores.csv").read_text())))
    assert [f"{row['weights.0']} {row['weights.1']}" for row in rows] == ORDER
    assert [float(row["mean"]) for row in rows] == [point.mean for point in report.points]
    assert [float(row["near"]) for row in rows] == [-0.25, -1.25, 0, -1]
    page = (here / "out-scores" / "sweep.html").read_text()
    assert "weights.0 0.5, weights.1 2 (-0), chosen" in page and page.count("<svg>") == 3
    again = package.apply(f"out/{MANIFEST}", "again")
    assert again.same and snapshot(here / "again") == snapshot(here / "out")


@pytest.mark.parametrize("way", ["grid", "coordinate"])
def test_steps_that_no_number_is_in_are_made_once(here: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "r.yaml").write_text(TEXT)
    made: list[str] = []
    true = package.cli.steps.Run.run

    def counted(self: Any, number: int, *rest: Any, **more: Any) -> Any:
        if not more.get("quiet"):  # no plan
            made.append(self.steps[number].command.name)
        return true(self, number, *rest, **more)

    monkeypatch.setattr("adaptertool.cli.steps.Run.run", counted)
    report = run(sweep={"steps.1.weights.0": "1,2"}, score=lambda path: float(len(path)), search=way)
    assert not report.ok and "step 3, verify: its check failed" in str(report.points[1].failure)
    assert made.count("sum") == 1 and made.count("merge") == 3  # two points, and OUT
    assert report.best[0].at == {"steps.1.weights.0": "1"}


def test_the_numbers_of_a_step_on_the_way(here: Path) -> None:
    (here / "r.yaml").write_text(TEXT)
    report = run(sweep={"both.weights.0": "0:1:0.5"})
    assert report.ok and calls() == ["0 2", "0.5 2", "1 2"] and report.best[0].at == {"both.weights.0": "0.5"}
    (here / "own.yaml").write_text(
        TEXT.replace("[1, 2]", "[0.5, 2]").replace("out: out", "out: own").replace("merged: out", "merged: own")
    )
    package.apply("own.yaml")
    ours, theirs = snapshot(here / "out"), snapshot(here / "own")
    assert json.loads(ours.pop(MANIFEST))["steps"][:2] == json.loads(theirs.pop(MANIFEST))["steps"][:2]
    assert ours == theirs and package.apply(f"out/{MANIFEST}", "again").same


def test_outputs_on_the_way_are_made_for_the_best_alone(here: Path) -> None:
    (here / "r.yaml").write_text(
        TEXT.replace("weights: [1, 2]}", "weights: [1, 2], out: sum}").replace("${both}", "sum")
    )
    report = run(sweep={"both.weights.0": "0:1:0.5"})
    assert report.ok and manifest(here / "sum")["recipe"]["weights"] == ["0.5", "2"]
    assert report == run(sweep={"both.weights.0": "0:1:0.5"}) and len(calls()) == 3
    more = run(sweep={"both.weights.0": "0:1:0.5"}, target="first")  # another is best: both are replaced
    assert more.ok and manifest(here / "sum")["recipe"]["weights"] == ["1", "2"] and not calls()
    shutil.rmtree(here / "sum")
    package.sum_adapters(["one"], "sum")  # a sum of somebody's own
    before = snapshot(here / "sum")
    with pytest.raises(OutputError, match="sum exists"):
        run(sweep={"both.weights.0": "0:1:0.5"})
    assert snapshot(here / "sum") == before


def test_a_coordinate_search_scores_no_point_twice(here: Path) -> None:
    asked: list[tuple[float, ...]] = []

    def score(path: str) -> float:
        first, second = weights = tuple(one["weight"] for one in manifest(Path(path))["recipe"]["sources"])
        asked.append(weights)
        return float(-((first - 0.5) ** 2) - (second - 2) ** 2)

    values = {"weights.0": "0:1:0.5", "weights.1": "0:3:1"}
    report = run(sweep=values, search="coordinate", score=score)
    assert len(asked) == len({*asked}) == 8 < 12 and asked[0] == (1, 1)  # as the recipe has them
    assert report.best[0].at == {"weights.0": "0.5", "weights.1": "2"}
    every = run(sweep=values, out="all", results="all-scores", score=score)
    assert len(asked) == 8 + 12 and every.best[0].at == report.best[0].at
    assert snapshot(here / "all") == snapshot(here / "out")


def test_the_same_again_and_more(here: Path) -> None:
    first = {"weights.0": [0, 1], "weights.1": [2]}
    report = run(sweep=first)
    state = {path: path.stat().st_mtime_ns for name in ("out", "out-scores") for path in (here / name).rglob("*")}
    assert calls() == ["0 2", "1 2"] and run(sweep=first) == report and calls() == []
    assert {path: path.stat().st_mtime_ns for path in state} == state
    more = run(sweep=first | {"weights.0": "0:1:0.5"})
    assert calls() == ["0.5 2"] and len(more.points) == 3
    assert [one["weight"] for one in manifest(here / "out")["recipe"]["sources"]] == [0.5, 2]
    third = run(sweep=first | {"weights.1": [2, 3], "weights.0": "0:1:0.5"}, target="first")  # now another is best
    assert calls() == ["0 3", "0.5 3", "1 3"] and third.best[1].at == {"weights.0": "1", "weights.1": "2"}
    assert [one["weight"] for one in manifest(here / "out")["recipe"]["sources"]] == [1, 2]
    with pytest.raises(package.AdapterToolError, match=r"has weights\.0 0, weights\.1 3 too, which is not asked for"):
        run(sweep=first | {"weights.0": "0:1:0.5"})
    (here / "out" / "config.json").write_text("{}")  # what somebody has changed is not replaced
    with pytest.raises(OutputError, match="out exists"):
        run(sweep=first | {"weights.1": [2, 3, 4], "weights.0": "0:1:0.5"})
    assert calls() == []
    run(sweep=first, force=True)
    assert calls() == ["0 2", "1 2"] and package.check_files("out").ok


def touch(name: str) -> Callable[[], dict[str, Any]]:
    def change() -> dict[str, Any]:
        path = Path(name)
        shutil.copy(path, path.with_name("new"))
        path.with_name("new").rename(path)
        return {}

    return change


CHANGES: dict[str, Callable[[], dict[str, Any]]] = {
    "an input": touch("one/adapter_model.safetensors"),
    "the script": touch("score.py"),
    "the command": lambda: {"score": f"{SCORE} more"},
    "the recipe": lambda: {
        "recipe": {
            "merge": {"base": "base", "adapters": ["one", "two"], "weights": [1, 1], "out": "out", "precision": "fast"}
        }
    },
    "other numbers": lambda: {"sweep": {"weights.1": [1, 2]}},
}


@pytest.mark.parametrize("what", CHANGES)
def test_scores_of_another_sweep_are_never_taken_over(here: Path, what: str) -> None:
    run(sweep=PAIR)
    calls()
    options = {"sweep": PAIR} | CHANGES[what]()
    before = snapshot(here / "out-scores")
    with pytest.raises(OutputError, match="out-scores holds the scores of another command, or of other inputs"):
        run(**options)
    assert calls() == [] and snapshot(here / "out-scores") == before
    assert run(force=True, **options).ok and len(calls()) == 2


def test_a_dry_run_says_what_is_measured_already(here: Path) -> None:
    """Of a run with more values, those that the one before had; with --force none, since all is made anew."""
    run(sweep=PAIR)
    calls()
    more = run(sweep={"weights.0": "0.5,1,2"}, dry_run=True)
    assert [bool(point.scores) for point in more.points] == [True, True, False] and more.out is more.results is None
    typed = ["apply", "r.yaml", "--sweep", "weights.0=0.5,1,2", "--score", SCORE, "--dry-run"]
    told = adaptertool(*typed, cwd=here).stdout
    assert "3 points, grid search, planned" in told
    assert "  2 points measured already: taken over, and not made again\n" in told
    assert "measured" not in adaptertool(*typed, "--force", cwd=here).stdout and not calls()
    with pytest.raises(UsageError, match="is not asked for now"):
        run(sweep={"weights.0": "1,2"}, dry_run=True)


@pytest.mark.usefixtures("here")
def test_functions_are_always_called() -> None:
    seen: list[str] = []
    arguments: dict[str, Any] = {"score": lambda path: seen.append(path) or len(seen), "sweep": {"weights.0": "0,1"}}
    assert run(**arguments).best[0].at == {"weights.0": "1"} and len(seen) == 2
    with pytest.raises(OutputError, match="out-scores exists"):
        run(**arguments)
    assert run(**arguments, force=True).ok and len(seen) == 4


def test_a_point_that_fails(here: Path) -> None:
    """The others go on, and the next run measures it alone."""
    fails = "if second == 2 and not os.path.exists('well'): sys.exit('no luck')"
    (here / "score.py").write_text(SCRIPT.replace("#\n", fails + "\n"))
    report = run()
    assert not report.ok and calls() == ORDER and [bool(point.scores) for point in report.points] == [False, True] * 2
    assert "no luck" in str(report.points[0].failure)
    assert [one["weight"] for one in manifest(here / "out")["recipe"]["sources"]] == [0.5, 1]
    (here / "well").touch()
    report = run()
    assert report.ok and calls() == ["0 2", "0.5 2"]
    assert [one["weight"] for one in manifest(here / "out")["recipe"]["sources"]] == [0.5, 2]


def test_numbers_that_do_not_go_together(here: Path) -> None:
    """Each is right beside what the recipe has, so it is known at its turn only."""
    (here / "r.yaml").write_text(ONE.replace("1], out: out", "3], method: mergekit_linear, out: out"))
    report = run(sweep={"weights.0": "-1,1", "weights.1": "1,2"})
    assert (
        "add up to 0" in str(report.points[0].failure) and [bool(one.scores) for one in report.points[1:]] == [True] * 3
    )


def test_where_no_point_is_scored(here: Path) -> None:
    def score(_path: str) -> float:
        raise ValueError

    report = run(score=score)
    assert not report.ok and report.out is report.results is None and report.best == ()
    assert not (here / "out").exists() and not (here / "out-scores").exists() and not list(here.glob(".*"))


@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_sweep_goes_on(here: Path, at: int) -> None:
    stop = f"n = len(open('calls').readlines())\nif n == {at} and not os.path.exists('on'): os.kill(os.getppid(), 9)\n"
    (here / "score.py").write_text(SCRIPT.replace("#\n", stop))
    arguments = ["apply", "r.yaml", "--sweep", "weights.0=0,0.5", "--sweep", "weights.1=2,1", "--score", SCORE, "-q"]
    assert adaptertool(*arguments).returncode == -signal.SIGKILL
    assert calls() == ORDER[:at] and not (here / "out").exists() and not (here / "out-scores").exists()
    (here / "on").touch()
    assert adaptertool(*arguments).returncode == 0
    assert calls() == ORDER[at - 1 :] and not list(here.glob(".*"))
    (here / "own.yaml").write_text(ONE.replace("[1, 1]", "[0.5, 2]"))
    package.apply("own.yaml", "own")
    assert snapshot(here / "own") == snapshot(here / "out")


def test_killed_between_out_and_the_results(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OUT is then ours, and not made again."""

    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("adaptertool.cli.sweep_bench.Bench.publish", stopped)
        run(sweep=PAIR)
    made = fingerprint(here / "out")
    assert made is not None and len(calls()) == 2 and not (here / "out-scores").exists()
    inode = (here / "out").stat().st_ino
    assert run(sweep=PAIR).ok and calls() == [] and (here / "out").stat().st_ino == inode


def test_a_full_disk_ends_it_and_the_scores_stay(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageError("no room")

    told: list[SweepPoint] = []

    def progress(point: SweepPoint) -> None:
        told.append(point)
        if len(told) == 3:
            monkeypatch.setattr("adaptertool.files.staging.Staging.require_space", full)

    with monkeypatch.context() as patch, pytest.raises(StorageError, match=r"no room.*the same command goes on"):
        monkeypatch = patch
        run(progress=progress)
    assert len(calls()) == 3 and not (here / "out").exists()
    assert run().ok and calls() == ORDER[3:]


def test_an_input_that_changes_meanwhile(here: Path) -> None:
    def score(path: str) -> float:
        touch("one/adapter_model.safetensors")()
        return float(len(path))

    with pytest.raises(package.AdapterToolError, match="an input of the recipe changed while its points were scored"):
        run(score=score, sweep=PAIR)
    assert not (here / "out").exists() and not (here / "out-scores").exists()


@pytest.mark.usefixtures("here")
def test_out_is_what_was_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptertool.cli.sweep_bench.fingerprint", lambda out: str(out))
    with pytest.raises(MismatchError, match="out is not what was scored"):
        run(sweep={"weights.0": "0,1"})


def test_without_an_out_the_scores_are_told(here: Path) -> None:
    step = {"merge": {"base": "base", "adapters": ["one", "two"], "weights": [1, 1]}}
    report = run(step, sweep=PAIR)
    assert report.ok and report.out is report.results is None and len(calls()) == 2 and not list(here.glob(".*"))
    report = run(step, sweep=PAIR, results="found")
    assert report.results == "found" and report.out is None and (here / "found" / "scores.csv").is_file()
    assert run(sweep=PAIR, keep="none").results is None and not (here / "out").exists()


def test_single_files(here: Path) -> None:
    """They have no manifest: what was scored is told by the file itself."""
    step = {"sum": {"adapters": ["one", "two"], "weights": [1, 2], "to": "kohya", "out": "both.safetensors"}}
    report = run(step, score=lambda path: -abs(Path(path).stat().st_size - 1), sweep={"weights.0": "0,1"})
    assert (
        report.ok
        and report.points[0].made == fingerprint(here / "both.safetensors")
        and report.results == "both.safetensors-scores"
    )
    package.apply({"sum": step["sum"] | {"weights": [0, 2]}}, "own.safetensors")
    assert (here / "own.safetensors").read_bytes() == (here / "both.safetensors").read_bytes()
