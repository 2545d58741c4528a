"""A merge that is made in parts: whatever they are, in whatever order and how often, OUT is that of one machine."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool, snapshot
from in_parts import Place

from adaptertool import finish, merge, plan_merge, plan_wise, run_part, wise
from adaptertool.errors import UsageError
from adaptertool.files import reader
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.leftovers import left_behind
from adaptertool.files.staging import Staging
from adaptertool.planning.deal import deal
from adaptertool.spec.plan import Plan
from adaptertool.verification.check import check


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def merged(count: int = 1, **options: Any) -> tuple[Callable[[Place, Path], Any], Callable[[Place], Any]]:
    """What one machine does, and the plan of it."""
    return (
        lambda place, out: merge(place.base, place.adapters[:count], out, **options),
        lambda place: plan_merge(place.base, place.adapters[:count], place.out, place.file, **options),
    )


def between(which: str, alphas: Any, **options: Any) -> tuple[Callable[[Place, Path], Any], Callable[[Place], Any]]:
    def to(place: Place) -> Path:
        return place.adapters[0] if which == "adapter" else place.tuned

    def full(place: Place) -> dict[str, Any]:
        return {**options, "fisher": tuple(place.fisher)} if "fisher" in options else options

    return (
        lambda place, out: wise(place.base, to(place), out, alphas, **full(place)),
        lambda place: plan_wise(place.base, to(place), place.out, alphas, place.file, **full(place)),
    )


CASES = {
    "merge": merged(),
    "two adapters": merged(2, weights=[0.5, "0.3"], compose="mixed"),
    "fast": merged(precision="fast"),
    "sha256": merged(sha256=True),
    "small shards": merged(max_shard_size=1000),
    "large shards": merged(max_shard_size="1MB"),
    "dtype": merged(dtype="f32"),
    "ties": merged(2, method="ties", density=0.7),
    "dare": merged(2, method="dare_linear", density="0.7", seed=3),
    "alphas": between("adapter", "0:1:0.5"),
    "two checkpoints": between("tuned", [0.25, 1]),
    "fisher": between("tuned", "0.5", fisher=()),
    "an adapter": between("adapter", "0.5", as_adapter=True),
}


@pytest.mark.parametrize("case", CASES)
def test_in_any_order(place: Place, case: str) -> None:
    """And doubled, by another number of parts, and more parts than shards. No input of the base is read by finish."""
    alone, planned = CASES[case]
    alone(place, place.folder / "one")
    expected = snapshot(place.folder / "one")
    report = planned(place)
    chance = random.Random(case)
    parts = [(part, count) for count in (3, 7) for part in range(count)]
    for part, count in [*chance.sample(parts, len(parts)), (0, 3)]:
        done = run_part(place.file, part, count)
    assert done.made == ()
    assert finish(place.file).out == str(place.out)
    assert snapshot(place.out) == expected
    assert left_behind(place.out) == [] and report.shards


@pytest.mark.parametrize("case", ["merge", "small shards", "two checkpoints"])
def test_finish_reads_no_large_file_again(place: Place, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    CASES[case][1](place)
    for part in (1, 0):
        run_part(place.file, part, 2)
    read: list[str] = []
    real = reader.Inputs.read_into

    def counted(inputs: reader.Inputs, path: Path, offset: int, view: memoryview) -> None:
        read.append(path.name)
        real(inputs, path, offset, view)

    hashed = reader.Inputs.stream

    def streamed(inputs: reader.Inputs, path: Path) -> None:
        if path not in inputs.digests:
            read.append(path.name)
        hashed(inputs, path)

    monkeypatch.setattr(reader.Inputs, "read_into", counted)
    monkeypatch.setattr(reader.Inputs, "stream", streamed)
    finish(place.file)
    assert [name for name in read if name.startswith("model-")] == []


def test_the_report_is_that_of_one_machine(place: Place) -> None:
    one = merge(place.base, place.adapters[:1], place.folder / "one")
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    two = finish(place.file)
    for name in ("elements_changed", "survival", "settled", "bytes_written", "tensors_edited", "kept"):
        assert getattr(one, name) == getattr(two, name)


def test_parts_at_once(place: Place) -> None:
    """Threads stand for processes: all make all shards at the same time."""
    merge(place.base, place.adapters[:1], place.folder / "one", precision="fast")
    plan_merge(place.base, place.adapters[:1], place.out, place.file, precision="fast")
    start, made = threading.Barrier(2), list[str]()

    class Slow(Staging):
        def finish(self, *arguments: Any, **more: Any) -> None:
            start.wait(20)
            super().finish(*arguments, **more)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("adaptertool.output.checkpoint.Staging", Slow)
        threads = [threading.Thread(target=lambda: made.extend(run_part(place.file).made)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 8
    finish(place.file)
    assert snapshot(place.out) == snapshot(place.folder / "one")


def test_two_finishers_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another comes while one verifies, makes links to the same shards, and is done first: both end well."""
    merge(place.base, place.adapters[:1], place.folder / "one")
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    reports = []

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr("adaptertool.output.verified.check", check)
        reports.append(finish(place.file, verify=True))
        return check(*arguments, **options)

    monkeypatch.setattr("adaptertool.output.verified.check", meanwhile)
    reports.append(finish(place.file, verify=True))
    assert [report.verified for report in reports] == [True, True]
    assert snapshot(place.out) == snapshot(place.folder / "one")
    assert not left_behind(place.folder)


def test_one_who_verifies_is_not_disturbed_by_links(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)

    def meanwhile(plan: Plan, base: Any, written: Checkpoint, *arguments: Any, **options: Any) -> Any:
        for header in written.headers:
            another = header.path.with_name(f"{header.path.name}.another")
            another.hardlink_to(header.path)
            another.unlink()
        return check(plan, base, written, *arguments, **options)

    monkeypatch.setattr("adaptertool.output.verified.check", meanwhile)
    assert finish(place.file, verify=True).verified


def test_merge_goes_on_from_parts_and_parts_from_merge(place: Place) -> None:
    merge(place.base, place.adapters[:1], place.folder / "one")
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    made = run_part(place.file, 0, 2).made
    (stage,) = left_behind(place.out)
    inodes = {path.stat().st_ino for path in (stage / "parts").iterdir()}
    merge(place.base, place.adapters[:1], place.out)
    assert snapshot(place.out) == snapshot(place.folder / "one")
    assert {(place.out / name).stat().st_ino for name in made} == inodes


# --- dealing ---


class Sized:
    def __init__(self, size: int) -> None:
        self.size = size


def test_dealing() -> None:
    chance = random.Random(0)
    for _ in range(50):
        shards: Any = [Sized(chance.randrange(1, 100)) for _ in range(chance.randrange(30))]
        parts = chance.randrange(1, 12)
        dealt = [deal(shards, part, parts) for part in range(parts)]
        assert sorted(map(id, sum(dealt, ()))) == sorted(map(id, shards))
        sums = [sum(one.size for one in own) for own in dealt]
        assert max(sums) - min(sums) <= max((one.size for one in shards), default=0)
    for part, parts in ((1, 1), (-1, 2), (0, 0), (3, 2)):
        with pytest.raises(UsageError):
            deal([], part, parts)
    assert deal(shards, 10**18 - 1, 10**18) == () and deal([], 0, 10**18) == ()


# --- the command line ---


def test_the_command_line(place: Place) -> None:
    """From another directory, with paths that are relative where they are typed."""
    one = adaptertool("merge", "base", "adapter0", "-o", "one", "--sha256", "-w", "0.5", cwd=place.folder)
    assert one.returncode == 0
    arguments = ["merge", "base", "adapter0", "-o", "out", "--sha256", "-w", "0.5", "--plan", "plan.json", "--json"]
    done = adaptertool("plan", *arguments, cwd=place.folder)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["schema"], report["shards"], report["finished"]) == ("parts-plan/1", 4, 0)
    done = adaptertool("run", str(place.file), "--part", "0/1", "--json", cwd=place.base)
    assert done.returncode == 0 and len(json.loads(done.stdout)["made"]) == 4, done.stderr
    done = adaptertool("finish", str(place.file), "--json", cwd=place.base)
    assert done.returncode == 0 and json.loads(done.stdout)["schema"] == "run/1", done.stderr
    assert snapshot(place.out) == snapshot(place.folder / "one")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["run", "plan.json"], 2, "--part"),
        (["run", "plan.json", "--part", "3"], 2, "is not I/N"),
        (["run", "plan.json", "--part", "4/4"], 2, "the last is 3/4"),
        (["run", "plan.json", "--part", "-1/4"], 2, "I/N"),
        (["run", "plan.json", "--part", "0/" + 5000 * "9"], 2, "I/N"),
        (["run", "none.json", "--part", "0/4"], 3, "none.json does not exist"),
        (["finish", "base"], 3, "base"),
        (["finish", "plan.json"], 4, "--part 0/1"),
        (["plan", "merge", "base", "adapter0", "-o", "new"], 2, "--plan"),
        (
            ["plan", "extract", "base", "tuned", "--rank", "2", "-o", "new"],
            2,
            "`extract` makes an adapter, which is one",
        ),
        (["plan", "merge", "base", "none", "-o", "new", "--plan", "p.json"], 3, "none"),
        (["plan", "wise", "base", "adapter0", "--alpha", "1", "--plan", "p.json"], 2, "--out"),
        (["plan", "merge", "base", "adapter0", "-o", "base/x", "--plan", "p.json"], 2, "overlap"),
    ],
)
def test_mistakes(place: Place, arguments: list[str], code: int, said: str) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    done = adaptertool(*arguments, cwd=place.folder)
    assert done.returncode == code and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not (place.folder / "p.json").exists()


def test_help_tells_the_commands(place: Place) -> None:
    done = adaptertool("plan", "--help", cwd=place.folder)
    assert "merge" in done.stdout and "wise" in done.stdout
    done = adaptertool("plan", "wise", "--help", cwd=place.folder)
    assert "--plan FILE" in done.stdout and "--score " not in done.stdout and "--threads" not in done.stdout
