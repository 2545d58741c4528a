"""An OUT that is published already: parts that come late or again, and the `finish` that loses, end well where it is
what the plan makes, and are refused where it is anything else."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool, lora_factors, snapshot, write_adapter
from in_parts import NAMES, Place, factors

from adaptertool import finish, merge, plan_merge, plan_wise, run_part, wise
from adaptertool.errors import OutputError, StorageError
from adaptertool.files.leftovers import left_behind
from adaptertool.output import checkpoint, published
from adaptertool.reports.parts import PublishedReport
from adaptertool.reports.run import RunReport


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def done(place: Place) -> Place:
    """With OUT published by one machine, and the plan of it, which was written before."""
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    merge(place.base, place.adapters[:1], place.out)
    return place


def require_there(place: Place) -> None:
    before = snapshot(place.folder)
    report = run_part(place.file, 1, 2)
    assert (report.made, report.published, report.bytes_written) == ((), True, 0)
    assert isinstance(finish(place.file), PublishedReport)
    assert snapshot(place.folder) == before


def require_refused(place: Place) -> None:
    before = snapshot(place.folder)
    for call in (run_part, finish):
        with pytest.raises(OutputError, match=r"exists; .* is not what .*plan.json makes"):
            call(place.file)
    assert snapshot(place.folder) == before


@pytest.mark.parametrize(
    "options", [{}, {"sha256": True}, {"dtype": "f32"}, {"weights": [0.3], "max_shard_size": 1000}]
)
def test_a_part_that_comes_late(place: Place, options: dict[str, Any]) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file, **options)
    merge(place.base, place.adapters[:1], place.out, **options)
    require_there(place)
    report = finish(place.file, check=True, verify=True)
    assert isinstance(report, PublishedReport) and report.verified


def test_of_several_alphas(place: Place) -> None:
    plan_wise(place.base, place.tuned, place.out, "0:1:0.5", place.file, sha256=True)
    wise(place.base, place.tuned, place.out, "0:1:0.5", sha256=True)
    require_there(place)
    (place.out / "alpha-0.500/model.safetensors.index.json").unlink()
    require_refused(place)


def test_on_the_command_line(done: Place) -> None:
    for arguments, schema in (
        (["run", "plan.json", "--part", "0/3"], "part/1"),
        (["finish", "plan.json"], "published/1"),
    ):
        told = adaptertool(*arguments, cwd=done.folder)
        assert told.returncode == 0 and "published already" in told.stdout and told.stderr == ""
        report = json.loads(adaptertool(*arguments, "--json", cwd=done.folder).stdout)
        assert report["schema"] == schema


def other_weight(place: Place) -> None:
    merge(place.base, place.adapters[:1], place.out, weights=[0.5], force=True)


def other_adapter(place: Place) -> None:
    """As large as before, and as old: only its hash tells."""
    path = place.adapters[0] / "adapter_model.safetensors"
    times = path.stat().st_mtime_ns
    write_adapter(place.adapters[0], {key: one + 1 for key, one in factors().items()})
    os.utime(path, ns=(times, times))
    merge(place.base, place.adapters[:1], place.folder / "other")
    place.out.rename(place.folder / "gone")
    (place.folder / "other").rename(place.out)
    write_adapter(place.adapters[0], {key: one + 2 for key, one in factors().items()})
    os.utime(path, ns=(times, times))


def less(place: Place) -> None:
    (place.out / "sub/notes.txt").unlink()


def more(place: Place) -> None:
    (place.out / "thesis.txt").write_text("dear")


def cut(place: Place) -> None:
    os.truncate(place.out / "model-00001-of-00004.safetensors", 100)


def no_manifest(place: Place) -> None:
    (place.out / "adaptertool.manifest.json").unlink()


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Place], None]:
    def edit(place: Place) -> None:
        path = place.out / "adaptertool.manifest.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


OTHERS = {
    "weight": other_weight,
    "adapter": other_adapter,
    "less": less,
    "more": more,
    "cut": cut,
    "no manifest": no_manifest,
    "version": edited(lambda content: content.update(adaptertool="0")),
    "no inputs": edited(lambda content: content.pop("inputs")),
    "inputs are text": edited(lambda content: content.update(inputs="base")),
    "sources": edited(lambda content: content["inputs"]["sources"].pop()),
    "hash of an input": edited(lambda content: content["inputs"]["base"]["config.json"].update(blake3="0" * 64)),
    "size of an input": edited(lambda content: content["inputs"]["base"]["config.json"].update(size=1)),
    "other hashes": edited(lambda content: [one.pop("blake3") for one in content["files"].values()]),
    "file": edited(lambda content: content["files"].pop("config.json")),
    "not JSON": lambda place: (place.out / "adaptertool.manifest.json").write_text("{"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_anything_else_is_refused(done: Place, case: str) -> None:
    OTHERS[case](done)
    if case == "adapter":  # whose time is in the key
        plan_merge(done.base, done.adapters[:1], done.folder / "new", done.file)
        fields = json.loads(done.file.read_text())
        fields["out"] = fields["call"]["out"] = str(done.out)
        done.file.write_text(json.dumps(fields))
    require_refused(done)


def test_large_inputs_are_judged_by_their_times(done: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "_HASHED", 0)
    monkeypatch.setattr(published, "_SMALL", 0)
    require_there(done)
    written = (done.out / "adaptertool.manifest.json").stat().st_mtime_ns
    shard = done.base / "model-00002-of-00004.safetensors"
    os.utime(shard, ns=(written + 1, written + 1_000_000_000))
    done.out.rename(done.folder / "kept")
    plan_merge(done.base, done.adapters[:1], done.out, done.file)
    (done.folder / "kept").rename(done.out)
    require_refused(done)


def test_force(done: Place) -> None:
    """OUT is made anew where it is older than the plan, and is there when it was."""
    plan_merge(done.base, done.adapters[:1], done.out, done.file, force=True)
    os.utime(done.out / "adaptertool.manifest.json", (1, 1))
    assert len(run_part(done.file).made) == 4
    assert isinstance(finish(done.file), RunReport)
    require_there(done)
    with pytest.MonkeyPatch.context() as patched:  # clocks may differ: by its time no large source is known
        patched.setattr(published, "_HASHED_ANEW", 0)
        assert len(run_part(done.file).made) == 4
    finish(done.file)
    assert left_behind(done.out) == []


def test_provenance_that_is_missing(place: Place) -> None:
    """A run was killed when OUT was published, and that not."""
    statement = place.folder / "statement.json"
    plan_merge(place.base, place.adapters[:1], place.out, place.file, provenance=statement)
    run_part(place.file)
    finish(place.file)
    assert isinstance(finish(place.file), PublishedReport)
    statement.unlink()
    with pytest.raises(StorageError, match=r"is published, but .*statement.json is not there"):
        finish(place.file)


def make(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_inputs_that_are_links(place: Place) -> None:
    """As in the cache of the hub."""
    cache = place.folder / "models--some--base"
    place.base = place.base.rename(make(cache / "snapshots") / ("0" * 40))
    for path in place.base.glob("model-*"):
        path.rename(make(cache / "blobs") / path.name)
        path.symlink_to(cache / "blobs" / path.name)
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    finish(place.file)
    require_there(place)


def test_one_file_has_no_manifest(place: Place) -> None:
    base, out = place.base / "model-00001-of-00004.safetensors", place.folder / "out.safetensors"
    adapter = write_adapter(place.folder / "small", lora_factors(NAMES[0], (16, 16)))
    plan_merge(base, [adapter], out, place.file)
    run_part(place.file)
    finish(place.file)
    with pytest.raises(OutputError, match="exists"):
        run_part(place.file)


def test_it_is_published_while_a_part_is_at_work(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory is gone from under it, or it has begun a new one: nothing is left, and no error is told."""
    real = checkpoint.Staging.part

    def late(stage: checkpoint.Staging) -> Path:
        monkeypatch.setattr(checkpoint.Staging, "part", real)
        run_part(place.file)
        finish(place.file)
        return real(stage)

    for begins in (late, None):
        plan_merge(place.base, place.adapters[:1], place.out, place.file, force=True)
        if begins is not None:
            monkeypatch.setattr(checkpoint.Staging, "part", late)
        else:
            monkeypatch.setattr("adaptertool.output.parts.check_call", once(lambda: finish_first(place)))
        report = run_part(place.file)
        assert (report.made, report.published) == ((), True)
        assert left_behind(place.out) == []


def finish_first(place: Place) -> None:
    run_part(place.file)
    finish(place.file)


def once(action: Callable[[], None]) -> Callable[..., None]:
    calls: list[None] = []

    def call(*_: object) -> None:
        calls.append(None)
        if len(calls) == 1:
            action()

    return call


def test_of_two_that_finish_one_publishes(place: Place) -> None:
    """Both are at it at the same time; both end well."""
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    start, reports = threading.Barrier(2), list[Any]()
    real = checkpoint.write_small

    def waiting(*given: Any) -> None:
        start.wait(20)
        real(*given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("adaptertool.output.manifest.write_small", waiting)
        threads = [threading.Thread(target=lambda: reports.append(finish(place.file))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(type(report).__name__ for report in reports) == ["PublishedReport", "RunReport"]
    merge(place.base, place.adapters[:1], place.folder / "one")
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []


def test_check_finds_what_sizes_do_not_tell(place: Place) -> None:
    """A shard that rotted: with --check it is named, removed and made again, and else `verify OUT` finds it."""
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    (stage,) = left_behind(place.out)
    part = sorted((stage / "parts").iterdir())[0]
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(StorageError, match=r"1 of 4 shards were damaged .* are removed: .*plan.json --part 0/1` makes"):
        finish(place.file, check=True)
    assert len(run_part(place.file).made) == 1
    finish(place.file, check=True)
    merge(place.base, place.adapters[:1], place.folder / "one")
    assert snapshot(place.out) == snapshot(place.folder / "one")
    shard = place.out / "model-00002-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x7f")
    assert isinstance(finish(place.file), PublishedReport)
    with pytest.raises(StorageError, match=r"is published, but model-00002.* is not as it was: content"):
        finish(place.file, check=True)
    with pytest.raises(StorageError, match="not what was computed"):
        finish(place.file, verify=True)
