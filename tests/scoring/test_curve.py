"""`wise --score`: what is scored, published, kept and taken over, and what happens where the command fails."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from commands import faulty
from conftest import adaptertool, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from curves import ALPHAS, EXPECTED, SWEEP, Place, count_reads, one_by_one, scores_of

from adaptertool import check_files, wise, wise_curve
from adaptertool.errors import AdapterToolError, OutputError, StorageError, UsageError
from adaptertool.files import publish
from adaptertool.files.leftovers import left_behind
from adaptertool.tasks.clean import clean


def test_all_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_reads(monkeypatch)
    told: list[float] = []
    report = place.run(progress=lambda point: told.append(point.alpha))
    assert passes == [5] and told == place.calls() == SWEEP  # one read of the base
    assert report.ok and scores_of(report) == EXPECTED
    assert (report.target, report.reference, report.keep) == ("old", "new", "all")
    assert [(best.score, best.alpha) for best in report.best] == [("old", 0.0), ("new", 1.0), ("mean", 0.25)]
    assert report.points[1].mean == pytest.approx((1 - 0.0625 + 0.125) / 2, abs=1e-15)
    wise(place.base, place.tuned, place.folder / "sweep", ALPHAS)
    for alpha, point in zip(SWEEP, report.points, strict=True):
        assert point.path == str(place.out / f"alpha-{alpha:.3f}")
        assert snapshot(Path(point.path)) == snapshot(place.folder / "sweep" / f"alpha-{alpha:.3f}")
    names = {path.name for path in place.out.iterdir()}
    assert names - {f"alpha-{alpha:.3f}" for alpha in SWEEP} == {
        "adaptertool.manifest.json", "scores.json", "scores.csv", "curve.html",
    }  # fmt: skip
    with (place.out / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["alpha"]) for row in rows] == SWEEP
    assert [float(row["mean"]) for row in rows] == [point.mean for point in report.points]
    content = json.loads((place.out / "scores.json").read_text())
    assert content["schema"] == "curve/1" and content["points"][2]["scores"] == EXPECTED[0.5]
    assert left_behind(place.out) == [] and snapshot(place.base) | snapshot(place.tuned) == place.before


@pytest.mark.long("keep")
@pytest.mark.parametrize("room", [True, False])
@pytest.mark.parametrize(
    ("keep", "target", "minimise", "left"),
    [
        ("best", None, False, [0.0]),
        ("best", "new", False, [1.0]),
        ("best", "mean", False, [0.25]),
        ("best", "mean", True, [1.0]),
        ("none", None, False, []),
    ],
)
def test_few_kept(
    place: Place, monkeypatch: pytest.MonkeyPatch, keep: str, target: str | None, minimise: bool, left: list[float],
    room: bool,
) -> None:  # fmt: skip
    """With room for all of them there is one read of the base; without, one or two checkpoints at a time."""
    most = 0

    def progress(_point: object) -> None:
        nonlocal most
        (work,) = left_behind(place.out)
        most = max(most, len(list(work.glob("work-*/alpha-*/model.safetensors"))))

    if not room:
        one_by_one(monkeypatch)
    passes = count_reads(monkeypatch)
    report = place.run(keep=keep, target=target, minimise=minimise, progress=progress)
    assert passes == ([5] if room else [1] * 5) and most == (5 if room else 1 if keep == "none" else 2)
    assert scores_of(report) == EXPECTED and place.calls() == SWEEP
    assert [point.alpha for point in report.points if point.path] == left
    assert [path.name for path in place.out.glob("alpha-*")] == [f"alpha-{alpha:.3f}" for alpha in left]
    for alpha in left:
        assert load(place.out / f"alpha-{alpha:.3f}")["w"].eq(alpha).all()
    assert json.loads((place.out / "adaptertool.manifest.json").read_text())["recipe"]["alphas"] == left


def test_without_out(place: Place) -> None:
    before = snapshot(place.folder)
    report = place.run(out=False)
    assert scores_of(report) == EXPECTED and report.out is None and report.keep == "none"
    assert place.calls() == SWEEP and snapshot(place.folder) == before and not list(place.folder.glob(".*"))


def test_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter as TUNED, and adapters made from it."""
    monkeypatch.chdir(tmp_path)
    module = "model.layers.0.mlp.up_proj"
    base = write_checkpoint(tmp_path / "base", {f"{module}.weight": torch.randn(8, 8)})
    adapter = write_adapter(tmp_path / "adapter", lora_factors(module, (8, 8)))

    def norm(path: str) -> float:
        (tensor, *_) = load(Path(path)).values()
        return tensor.double().norm().item()

    merged = wise_curve(base, adapter, tmp_path / "out", "0,0.5,1", norm)
    wise(base, adapter, tmp_path / "half", 0.5)
    assert same_bits(*(load(tmp_path / name)[f"{module}.weight"] for name in ("half", "out/alpha-0.500")))
    assert scores_of(merged)[0.0]["score"] == norm(str(base))
    report = wise_curve(base, adapter, tmp_path / "adapters", [0.5], norm, as_adapter=True)
    assert (tmp_path / "adapters/alpha-0.500/adapter_model.safetensors").exists() and report.ok
    assert check_files(tmp_path / "out").ok and check_files(tmp_path / "adapters").ok
    with pytest.raises(UsageError, match="verifying is for checkpoints"):
        wise_curve(base, adapter, tmp_path / "more", [0.5], norm, as_adapter=True, verify=True)


FAILING = {
    "exit": ("if w == 0.5: print('why', file=sys.stderr); sys.exit(7)", "exit code 7\n  stderr: why"),
    "traceback": ("if w == 0.5: 1 / 0", "ZeroDivisionError"),
    "no number": ("if w == 0.5: print('oh'); sys.exit()", "no number"),
    "nothing": ("if w == 0.5: sys.exit()", "nothing on stdout"),
    "nan": ("if w == 0.5: print(float('nan')); sys.exit()", "nan, which is not finite"),
    "killed": ("if w == 0.5: os.kill(os.getpid(), 9)", "killed by signal 9"),
    "other names": (
        "if w == 0.5: extra['more'] = 1",
        "its scores are old, new, more, but those of other points old, new",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize(("how", "keep"), [*((how, "all") for how in FAILING), ("exit", "best"), ("nan", "none")])
def test_a_failure_loses_no_other_point(place: Place, how: str, keep: str) -> None:
    body, complaint = FAILING[how]
    flag = place.folder / "flag"  # so that the command stays the same when it no longer fails
    flag.touch()
    place.write(body.replace("if w", f"if os.path.exists({str(flag)!r}) and w"))
    report = place.run(keep=keep, target="mean")
    assert not report.ok and place.calls() == SWEEP
    assert scores_of(report) == {alpha: scores for alpha, scores in EXPECTED.items() if alpha != 0.5}
    (failed,) = (point for point in report.points if point.failure)
    assert failed.alpha == 0.5 and complaint in failed.failure and failed.mean is None
    assert (place.out / "scores.csv").read_text().split("\n")[3] == "0.5,,,"
    assert json.loads((place.out / "scores.json").read_text())["ok"] is False
    assert "incomplete" in (place.out / "curve.html").read_text()
    flag.unlink()
    again = place.run(keep=keep, target="mean")
    assert again.ok and scores_of(again) == EXPECTED and place.calls() == [0.5]
    assert len(list(place.out.glob("alpha-*"))) == {"all": 5, "best": 1, "none": 0}[keep]


def test_all_points_fail(place: Place) -> None:
    place.write("sys.exit(1)")
    done = adaptertool(*place.arguments("-o", str(place.out)))
    assert done.returncode == 1 and "5 of 5 points could not be scored" in done.stdout
    assert not place.out.exists() and left_behind(place.out) == []


def test_a_failure_where_nothing_is_published(place: Place) -> None:
    """The scores stay, so that the same command goes on; `clean` removes them."""
    flag = place.folder / "flag"
    flag.touch()
    place.write(f"if os.path.exists({str(flag)!r}) and w == 0.5: sys.exit(1)")
    report = place.run(out=False)
    assert not report.ok and "the same command goes on" in report.notes[-1]
    (work,) = place.folder.glob(".curve-*")
    assert str(work) in report.notes[-1] and not list(work.rglob("*.safetensors"))
    place.calls()
    flag.unlink()
    assert scores_of(place.run(out=False)) == EXPECTED and place.calls() == [0.5]
    assert not list(place.folder.glob(".curve-*"))
    flag.touch()
    report = place.run(out=False)
    (name,) = (word for word in report.notes[-1].split() if word.startswith("curve-"))
    assert len(clean(name.rstrip("`"))) == 1 and not list(place.folder.glob(".curve-*"))


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("out", [True, False])
def test_interrupted(place: Place, number: signal.Signals, out: bool) -> None:
    """The command ends too, nothing is published, and the same command goes on."""
    flag, waiting = place.folder / "flag", place.folder / "waiting"
    flag.touch()
    place.write(
        f"if os.path.exists({str(flag)!r}) and w == 0.5:\n"
        f"    open({str(waiting)!r}, 'w').write(str(os.getpid()))\n    time.sleep(60)"
    )
    more = ("-o", str(place.out)) if out else ()
    call = [sys.executable, "-m", "adaptertool", *place.arguments(*more)]
    with subprocess.Popen(call, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not waiting.exists() or not waiting.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        if number == signal.SIGKILL:
            os.kill(int(waiting.read_text()), number)  # nobody is left to do it
        _, message = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130), message
    if number != signal.SIGKILL:
        with pytest.raises(ProcessLookupError):
            os.kill(int(waiting.read_text()), 0)
    assert "Traceback" not in message and ("goes on from there" in message) == (number != signal.SIGKILL)
    assert not place.out.exists() and place.calls() == [0.0, 0.25, 0.5]
    flag.unlink()
    done = adaptertool(*place.arguments(*more))
    assert done.returncode == 0 and place.calls() == [0.5, 0.75, 1.0]
    assert "2 of 5 points are from an earlier run" in done.stdout
    assert not list(place.folder.glob(".*")) and snapshot(place.base) | snapshot(place.tuned) == place.before


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "keep"), [("kill", "all"), ("kill", "best"), ("ENOSPC", "best"), ("EIO+", "all")])
def test_every_call_in_turn(tmp_path: Path, kind: str, keep: str) -> None:
    """Killed before a call that changes the disk, or with one that fails: at most one point is measured twice."""

    def run(place: Place, kind: str, number: int) -> subprocess.CompletedProcess[str]:
        more = ("-o", str(place.out), "--keep", keep, "--target", "mean", "--threads", "1", "--alpha", "0:1:0.5")
        return faulty(kind, number, place.arguments(*more))

    good = run(place := Place(tmp_path / "good"), "kill", 0)
    assert good.returncode == 0, good.stderr
    place.calls()
    count, expected = int(good.stderr.splitlines()[-1]), {alpha: EXPECTED[alpha] for alpha in (0.0, 0.5, 1.0)}
    assert count > 100
    step = 1 if os.environ.get("ADAPTERTOOL_ALL_FAULTS") else count // 3
    for number in range(1 + len(kind), count + 1, step):
        place = Place(tmp_path / f"{number}")
        failed = run(place, kind, number)
        what = f"{kind} at call {number} of {count}: {failed.stderr}"
        assert "Traceback" not in failed.stderr, what
        assert failed.returncode in ((-9, 0) if kind == "kill" else (4, 0, 1)), what
        if failed.returncode != 0 and not place.out.exists():
            again = run(place, "kill", 0)
            assert again.returncode == 0, f"{what}\n{again.stderr}"
        assert len(place.calls()) <= 4, what
        content = json.loads((place.out / "scores.json").read_text())
        assert {point["alpha"]: point["scores"] for point in content["points"]} == expected, what
        ours = json.loads((place.out / "adaptertool.manifest.json").read_text())["files"]
        assert ours.keys() == snapshot(place.out).keys() - {"adaptertool.manifest.json"}, what
        assert len(list(place.out.glob("alpha-*/model.safetensors"))) == (3 if keep == "all" else 1), what


@pytest.mark.parametrize("keep", ["all", "best", "none"])
@pytest.mark.parametrize("sha256", [False, True])
def test_hashes(place: Place, keep: str, sha256: bool) -> None:
    """Manifests as those of other commands: of all files, and of the inputs. Also where nothing was read but the
    inputs of an earlier run, and where its checkpoints were taken over."""

    def check() -> None:
        for folder in (place.out, *place.out.glob("alpha-*")):
            assert check_files(folder).ok and (folder / "SHA256SUMS").exists() == sha256
            manifest = json.loads((folder / "adaptertool.manifest.json").read_text())
            for name, source in (("base", place.base), ("sources", place.tuned)):
                (facts,) = [manifest["inputs"][name]] if name == "base" else manifest["inputs"][name]
                assert "model.safetensors" in facts and ("config.json" in facts) == (name == "base")
                for file in facts:
                    content = (source / file).read_bytes()
                    assert facts[file]["blake3"] == blake3(content).hexdigest() and facts[file]["size"] == len(content)
                    assert not sha256 or facts[file]["sha256"] == hashlib.sha256(content).hexdigest()

    place.run("0,1", keep=keep, sha256=sha256)
    check()
    place.run(keep=keep, sha256=sha256)
    check()
    place.calls()
    place.run(keep="none" if keep == "all" else "all", sha256=sha256)
    check()
    assert place.calls() == []


def test_one_alpha(place: Place) -> None:
    report = place.run("0.5")
    assert scores_of(report) == {0.5: EXPECTED[0.5]} and (place.out / "alpha-0.500/model.safetensors").exists()


def test_names_of_scores_that_no_table_likes(place: Place) -> None:
    place.write("""extra = {'a,b\\n"c"': 1.0, '=1+1': 2.0, 'mean': 3.0, '\\ud83d': 4.0, '<b>': 5.0}""")
    report = place.run("0,1")
    assert report.ok is False and "surrogate" in (report.points[0].failure or "")
    place.write("""extra = {'a,b\\n"c"': 1.0, '=1+1': 2.0, 'mean': 3.0, '<b>': 5.0}""")
    report = place.run("0,1", target="mean")
    assert report.points[0].mean is None and report.target == "mean"  # a score of that name, and no mean of ours
    with (place.out / "scores.csv").open(newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["alpha", "old", "new", 'a,b\n"c"', "=1+1", "mean", "<b>"]
    assert [float(cell) for cell in rows[1]] == [1, 0, 0.5, 1, 2, 3, 5]
    page = (place.out / "curve.html").read_text()
    assert "<b>" not in page and "&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"target": "acc"}, "target acc is none of the scores: old, new, mean"),
        ({"reference": "acc"}, "reference acc is none of the scores"),
        ({"target": "new", "reference": "new"}, "the same score"),
        ({"keep": "some"}, "keep is all, best, none"),
        ({"keep": "best", "out": False}, "there must be an OUT"),
        ({"alphas": "0,0"}, "given twice"),
        ({"threads": 0}, "threads must be"),
    ],
)
def test_wrong_wishes(place: Place, options: dict[str, Any], complaint: str) -> None:
    """A name that there is not shows with the first scores, which are not lost."""
    with pytest.raises(UsageError, match=complaint):
        place.run(**options)
    assert not place.out.exists()
    if "acc" in complaint:
        assert place.calls() == [0.0]
        assert scores_of(place.run()) == EXPECTED and place.calls() == SWEEP[1:]


def test_what_is_not_replaced(place: Place) -> None:
    place.out.mkdir()
    (place.out / "mine").touch()
    with pytest.raises(OutputError, match="exists"):
        place.run()
    shutil.rmtree(place.out)
    wise(place.base, place.tuned, place.out, ALPHAS)
    with pytest.raises(OutputError, match="exists"):
        place.run()
    place.run(force=True)
    (place.out / "mine").touch()
    with pytest.raises(OutputError, match="mine"):
        place.run(keep="none")
    assert place.calls() == SWEEP


def test_beside_an_input(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without -o it works in the current directory, which must not be an input."""
    monkeypatch.chdir(place.base)
    with pytest.raises(UsageError, match="overlap"):
        place.run(out=False)
    assert snapshot(place.base) | snapshot(place.tuned) == place.before and place.calls() == []


def test_short_of_space(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once if they take at most half of what is free; one at a time; not at all."""
    plan_bytes = sum(len(content) for content in snapshot(place.base).values())
    passes = count_reads(monkeypatch)
    for free, keep, expected in (
        (10.5, "none", [5]),
        (9.5, "none", [1] * 5),
        (5.5, "all", [5]),
        (1.5, "none", [1] * 5),
    ):
        monkeypatch.setattr(publish, "free_space", lambda _out, free=free: int(free * plan_bytes))
        assert place.run(keep=keep, force=True).ok and passes == expected, (free, keep)
        passes.clear()
    for free, keep in ((4.5, "all"), (0.5, "none")):
        monkeypatch.setattr(publish, "free_space", lambda _out, free=free: int(free * plan_bytes))
        with pytest.raises(StorageError, match="bytes free"):
            place.run(keep=keep, force=True)


def test_an_input_that_changes_meanwhile(place: Place) -> None:
    place.write(f"if w == 0.5: os.utime({str(place.base / 'model.safetensors')!r})")
    with pytest.raises(AdapterToolError, match="changed since it was first read"):
        place.run()
    assert not place.out.exists()


def test_command_line(place: Place) -> None:
    done = adaptertool(*place.arguments("-o", str(place.out), "--json", "--keep", "none"))
    assert done.returncode == 0 and done.stderr.splitlines()[1] == "alpha 0.25: old 0.9375, new 0.125"
    report = json.loads(done.stdout)
    assert report == json.loads((place.out / "scores.json").read_text()) and report["schema"] == "curve/1"
    place.calls()
    done = adaptertool(*place.arguments("--quiet"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and place.calls() == SWEEP
    place.write("if w == 1: print('no\\x1b[31m'); sys.exit(4)")
    done = adaptertool(*place.arguments("-o", str(place.out), "--keep", "best", "--force", "--minimise"))
    assert done.returncode == 1 and "alpha 1: exit code 4" in done.stdout and "\x1b" not in done.stdout + done.stderr
    assert f"{place.out}/alpha-0.750, the best by old" in done.stdout


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--keep", "none"], "give --score too"),
        (["--minimise"], "give --score too"),
        ([], "-o is missing"),
        (["--score", "cat {}", "--dry-run"], "leave --score away"),
        (["--score", "cat"], "no {}"),
        (["--score", "cat {}", "--provenance", "file"], "with the alpha that is chosen"),
        (["--score", "cat {}", "--keep", "best"], "there must be an OUT"),
    ],
)
def test_wrong_usage(place: Place, more: list[str], complaint: str) -> None:
    done = adaptertool("wise", place.base, place.tuned, "--alpha", "0.5", *more)
    assert done.returncode == 2 and complaint in done.stderr
