"""A curve that is run again: what is taken over from the last time, and what is measured anew."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool, load, snapshot
from curves import ALPHAS, EXPECTED, SWEEP, Place, count_reads, scores_of

from adaptertool import CurveReport, wise_curve
from adaptertool.errors import OutputError, UsageError


def test_the_same_command_measures_nothing_again(place: Place) -> None:
    first = place.run()
    state = {path: path.stat().st_ino for path in place.out.rglob("*")}
    place.calls()
    assert place.run() == first and place.calls() == []
    assert {path: path.stat().st_ino for path in place.out.rglob("*")} == state


def test_more_points(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A finer sweep takes the coarse one over, its checkpoints too where there are links."""
    place.run("0,0.5,1")
    inode = (place.out / "alpha-0.500/model.safetensors").stat().st_ino
    place.calls()
    passes = count_reads(monkeypatch)
    assert scores_of(place.run()) == EXPECTED and place.calls() == [0.25, 0.75] and passes == [2]
    assert (place.out / "alpha-0.500/model.safetensors").stat().st_ino == inode
    with pytest.raises(OutputError, match=r"has alpha 0\.25 too"):
        place.run("0,0.5,1")
    fine = place.run("0,0.25,0.3333,0.5,0.75,1")  # folders of other names: made again, and the scores taken over
    assert place.calls() == [0.3333] and fine.points[2].scores["new"] == pytest.approx(0.16665)
    assert {path.name for path in place.out.glob("alpha-*")} == {f"alpha-{point.alpha:.4f}" for point in fine.points}


@pytest.mark.parametrize(("first", "then"), [("none", "all"), ("all", "best"), ("best", "all"), ("best", "none")])
def test_to_keep_others_measures_nothing_again(place: Place, first: str, then: str) -> None:
    place.run(keep=first)
    place.calls()
    report = place.run(keep=then, target="new", verify=True)
    assert place.calls() == [] and scores_of(report) == EXPECTED
    kept = {"all": SWEEP, "best": [1.0], "none": []}[then]
    assert sorted(path.name for path in place.out.glob("alpha-*")) == [f"alpha-{alpha:.3f}" for alpha in kept]
    for alpha in kept:
        assert load(place.out / f"alpha-{alpha:.3f}")["w"].eq(alpha).all()


def touch_input(place: Place) -> dict[str, Any]:
    path = place.tuned / "model.safetensors"
    shutil.copy(path, path.with_suffix(".new"))
    path.with_suffix(".new").rename(path)
    return {}


def touch_script(place: Place) -> dict[str, Any]:
    place.write("w = w")
    return {}


def touch_scores(place: Place) -> dict[str, Any]:
    path = place.out / "scores.json"
    path.write_text(path.read_text().replace("0.9375", "0.9376"))
    return {}


CHANGES: dict[str, Callable[[Place], dict[str, Any]]] = {
    "an input": touch_input,
    "the script": touch_script,
    "scores.json": touch_scores,
    "the precision": lambda _place: {"precision": "fast"},
}


@pytest.mark.parametrize("what", CHANGES)
def test_scores_of_another_curve_are_never_taken_over(place: Place, what: str) -> None:
    place.run()
    place.calls()
    options = CHANGES[what](place)
    before = snapshot(place.out)
    with pytest.raises(OutputError, match="--force"):
        place.run(**options)
    assert place.calls() == [] and snapshot(place.out) == before
    assert scores_of(place.run(force=True, **options)) == EXPECTED and place.calls() == SWEEP


@pytest.mark.parametrize("what", [what for what in CHANGES if what != "scores.json"])
def test_nor_are_those_of_another_curve_that_was_interrupted(place: Place, what: str) -> None:
    place.write("if w == 0.75: os.kill(os.getppid(), 9); time.sleep(9)")
    assert adaptertool(*place.arguments("-o", str(place.out))).returncode == -9
    assert place.calls() == [0.0, 0.25, 0.5, 0.75]
    place.write("w = w  ")
    adaptertool(*place.arguments("-o", str(place.out), "-q"))
    place.calls()
    options = CHANGES[what](place) if what != "the script" else {}
    shutil.rmtree(place.out)
    assert scores_of(place.run(**options)) == EXPECTED and place.calls() == SWEEP


def test_functions_are_always_called(place: Place) -> None:
    calls: list[str] = []

    def score(path: str) -> dict[str, float]:
        calls.append(path)
        return {"w": load(Path(path))["w"][0, 0].item()}

    report = wise_curve(place.base, place.tuned, place.out, ALPHAS, score)
    assert [point.scores["w"] for point in report.points] == SWEEP and len(calls) == 5
    with pytest.raises(OutputError, match="exists"):
        wise_curve(place.base, place.tuned, place.out, ALPHAS, score)
    wise_curve(place.base, place.tuned, place.out, ALPHAS, score, force=True)
    assert len(calls) == 10


@pytest.mark.parametrize("out", [True, False])
def test_a_function_that_is_interrupted_leaves_no_scores(place: Place, out: bool) -> None:
    """Nor anything else that no later run could use."""
    calls: list[float] = []
    stops: list[type[BaseException]] = [KeyboardInterrupt]

    def score(path: str) -> float:
        calls.append(w := load(Path(path))["w"][0, 0].item())
        if w == 0.5 and stops:
            raise stops[0]
        return w

    def run() -> CurveReport:
        return wise_curve(place.base, place.tuned, place.out if out else None, ALPHAS, score)

    with pytest.raises(KeyboardInterrupt):
        run()
    stops[:] = [ValueError]
    assert not run().ok and not list(place.folder.glob(".*"))
    stops.clear()
    calls.clear()
    shutil.rmtree(place.out, ignore_errors=True)
    assert run().ok and calls == SWEEP


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        ("open(path + '/results.txt', 'w')", "alpha-0.000/results.txt"),
        ("os.mkdir(path + '/cache')", "alpha-0.000/cache"),
        ("os.unlink(path + '/config.json')", "alpha-0.000/config.json"),
        ("open(path + '/config.json', 'a').write(' ')", "alpha-0.000/config.json"),
        ("open(path + '/../alpha-0.750/config.json', 'a').write(' ')", "alpha-0.750/config.json"),
    ],
)
def test_a_command_that_changes_checkpoints(place: Place, body: str, changed: str) -> None:
    """Where they are kept, or scored next."""
    place.write(body)
    with pytest.raises(UsageError, match=re.escape(f"changed {changed}")):
        place.run()
    assert not place.out.exists()
    if "0.750" in changed:
        with pytest.raises(UsageError, match=re.escape(f"changed {changed}")):
            place.run(keep="none")
    else:
        assert scores_of(place.run(keep="none")) == EXPECTED
        assert {path.name for path in place.out.iterdir()}.isdisjoint({"results.txt", "cache"})


def test_after_that_the_checkpoint_is_made_again(place: Place) -> None:
    place.write("if w == 0.5 and not os.path.exists('flag'): open('flag', 'w'); open(path + '/x', 'w')")
    with pytest.raises(UsageError, match=r"changed alpha-0\.500/x"):
        place.run()
    assert place.calls() == [0.0, 0.25, 0.5]
    assert scores_of(place.run()) == EXPECTED and place.calls() == [0.75, 1.0]
    assert not list(place.out.rglob("x"))
