"""What parts refuse: shards that are missing, inputs that changed, plans that were edited."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import lora_factors, snapshot, write_adapter
from in_parts import NAMES, Place, factors

from adaptertool import finish, merge, plan_merge, run_part
from adaptertool.errors import InputError, OutputError, StorageError, UsageError
from adaptertool.files.leftovers import left_behind
from adaptertool.tasks.clean import clean


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_finish_names_what_is_missing(place: Place) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    with pytest.raises(StorageError, match=r"4 of 4 shards .*`adaptertool run .*plan.json --part 0/1` makes"):
        finish(place.file)
    assert left_behind(place.out) == []
    made = run_part(place.file, 0, 4).made
    with pytest.raises(StorageError, match="3 of 4 shards") as caught:
        finish(place.file)
    assert made[0] not in str(caught.value) and len(left_behind(place.out)) == 1
    assert plan_merge(place.base, place.adapters[:1], place.out, place.file).finished == 1


def test_a_shard_that_was_cut_short_is_made_again(place: Place) -> None:
    merge(place.base, place.adapters[:1], place.folder / "one")
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    (stage,) = left_behind(place.out)
    first, second, *_ = sorted((stage / "parts").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    second.unlink()
    with pytest.raises(StorageError, match="2 of 4 shards"):
        finish(place.file)
    assert len(run_part(place.file).made) == 2
    finish(place.file)
    assert snapshot(place.out) == snapshot(place.folder / "one")


CHANGES = ("time", "adapter", "config")


@pytest.mark.parametrize("when", ["run", "finish"])
@pytest.mark.parametrize("what", CHANGES)
def test_an_input_changes(place: Place, what: str, when: str) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    if when == "finish":
        run_part(place.file)
    if what == "time":
        os.utime(place.base / "model-00002-of-00004.safetensors", (1, 1))
    elif what == "adapter":
        write_adapter(place.adapters[0], lora_factors(NAMES[0], (16, 16)))
    else:
        config = place.base / "config.json"
        config.write_text(config.read_text() + " ")
    with pytest.raises(InputError, match="no longer what it was"):
        run_part(place.file) if when == "run" else finish(place.file)
    assert not place.out.exists()
    clean(place.out)


def test_an_input_changes_while_it_is_read(place: Place) -> None:
    """Its time is put back, so that the key is the same: what was made of it does not count."""
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    shard = place.base / "model-00004-of-00004.safetensors"
    info = shard.stat()

    def change(_: int) -> None:
        with shard.open("r+b") as file:
            file.truncate(info.st_size)
        os.utime(shard, ns=(info.st_atime_ns, info.st_mtime_ns))

    with pytest.raises(InputError, match="changed since it was first read"):
        run_part(place.file, progress=change)
    with pytest.raises(StorageError, match="4 of 4"):
        finish(place.file)


EDITED: dict[str, Callable[[dict[str, Any]], object]] = {
    "key": lambda plan: plan.update(key="0" * 16),
    "out": lambda plan: plan.update(out="/elsewhere"),
    "out of the call": lambda plan: plan["call"].update(out="/elsewhere"),
    "weights": lambda plan: plan["call"].update(numbers=["2"]),
    "weights are objects": lambda plan: plan["call"].update(numbers=[{}]),
    "size": lambda plan: plan["shards"][0].update(size=1),
    "shards": lambda plan: plan["shards"].pop(),
    "schema": lambda plan: plan.update(schema="parts/2"),
    "version": lambda plan: plan.update(adaptertool="9"),
    "no call": lambda plan: plan.pop("call"),
    "call is text": lambda plan: plan.update(call="rm -r"),
    "another command": lambda plan: plan["call"].update(command="sum"),
    "wise": lambda plan: plan["call"].update(command="wise"),
    "no sources": lambda plan: plan["call"].update(sources=[]),
    "unknown recipe": lambda plan: plan["call"].update(recipe={"shell": "x"}),
    "recipe of another type": lambda plan: plan["call"].update(recipe={"max_shard_size": {"a": 1}}),
    "reading of another type": lambda plan: plan["call"].update(reading={"renames": 5}),
    "unknown options": lambda plan: plan["call"].update(options={"threads": 5}),
    "options of another type": lambda plan: plan["call"].update(options={"force": "yes"}),
    "force": lambda plan: plan["call"].update(options={"sha256": True}),
    "more": lambda plan: plan.update(more=1),
}


@pytest.mark.parametrize("case", EDITED)
def test_nothing_in_the_file_is_trusted(place: Place, case: str) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    fields = json.loads(place.file.read_text())
    EDITED[case](fields)
    place.file.write_text(json.dumps(fields))
    for call in (run_part, finish):
        with pytest.raises((InputError, UsageError)):
            call(place.file)
    assert left_behind(place.out) == [] and not place.out.exists()


@pytest.mark.parametrize("content", ["", "[]", "{", '{"schema": "manifest/1"}', "\x00"])
def test_a_file_that_is_no_plan(place: Place, content: str) -> None:
    place.file.write_text(content)
    with pytest.raises(InputError):
        run_part(place.file)
    with pytest.raises(OutputError, match="is no plan"):
        plan_merge(place.base, place.adapters[:1], place.out, place.file)
    assert place.file.read_text() == content


def test_where_a_plan_may_lie(place: Place) -> None:
    plan = functools.partial(plan_merge, place.base, place.adapters[:1], place.out)
    with pytest.raises(UsageError, match="would lie in OUT"):
        plan(place.out / "plan.json")
    with pytest.raises(UsageError, match="does not exist"):
        plan(place.folder / "none/plan.json")
    with pytest.raises(OutputError, match="is no plan"):
        plan(place.base / "config.json")
    with pytest.raises(UsageError, match="verified by each"):
        plan(place.file, verify=True)
    with pytest.raises(UsageError, match="no adapter"):
        plan_merge(place.base, [], place.out, place.file)


def test_out_exists(place: Place) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    merge(place.base, place.adapters[1:], place.out)
    with pytest.raises(OutputError, match="exists"):
        plan_merge(place.base, place.adapters[:1], place.out, place.file)
    for call in (run_part, finish):
        with pytest.raises(OutputError, match="exists"):
            call(place.file)
    plan_merge(place.base, place.adapters[:1], place.out, place.file, force=True)
    run_part(place.file)
    finish(place.file)
    merge(place.base, place.adapters[:1], place.folder / "one")
    assert snapshot(place.out) == snapshot(place.folder / "one")


def test_provenance(place: Place) -> None:
    merge(place.base, place.adapters[:1], place.folder / "one", provenance=place.folder / "one.json")
    plan_merge(place.base, place.adapters[:1], place.out, place.file, provenance=place.folder / "two.json")
    run_part(place.file)
    finish(place.file)
    assert (place.folder / "one.json").read_bytes() == (place.folder / "two.json").read_bytes()
    assert snapshot(place.out) == snapshot(place.folder / "one")


def test_one_file(place: Place) -> None:
    """A base of one file is one part; the others have nothing to do."""
    base, out = place.base / "model-00001-of-00004.safetensors", place.folder / "out.safetensors"
    adapter = write_adapter(place.folder / "small", lora_factors(NAMES[0], (16, 16)))
    merge(base, [adapter], place.folder / "one.safetensors")
    plan_merge(base, [adapter], out, place.file)
    assert [len(run_part(place.file, part, 3).made) for part in (2, 1, 0)] == [0, 0, 1]
    finish(place.file)
    assert out.read_bytes() == (place.folder / "one.safetensors").read_bytes()


def test_verify(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard that is not what was computed does not count."""
    merge(place.base, place.adapters[:1], place.folder / "one")
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    assert run_part(place.file, 0, 2, verify=True).verified
    from adaptertool.files.writer import OutputFile  # noqa: PLC0415

    real = OutputFile.finish

    def damaging(file: OutputFile) -> None:
        real(file)
        data = bytearray(file.part.read_bytes())
        data[-3] ^= 0x10
        file.part.write_bytes(data)

    with monkeypatch.context() as patched:
        patched.setattr(OutputFile, "finish", damaging)
        with pytest.raises(StorageError, match="not what was computed"):
            run_part(place.file, 1, 2, verify=True)
    with pytest.raises(StorageError, match="2 of 4"):
        finish(place.file)
    run_part(place.file, 1, 2, verify=True)
    assert finish(place.file, verify=True).verified
    assert snapshot(place.out) == snapshot(place.folder / "one")


def test_verify_of_what_cannot_be_judged(place: Place) -> None:
    plan_merge(place.base, place.adapters, place.out, place.file, method="ties", density=0.5)
    with pytest.raises(UsageError, match="not for methods"):
        run_part(place.file, verify=True)


def test_a_part_looks_at_its_own_factors_only(place: Place) -> None:
    """And fails where a number in them is none; the others are made."""
    own = factors()
    own[next(key for key in own if NAMES[4] in key)][0, 0] = float("nan")
    adapter = write_adapter(place.folder / "bad", own)
    plan_merge(place.base, [adapter], place.out, place.file)
    made, failed = 0, 0
    for part in range(4):
        try:
            made += len(run_part(place.file, part, 4).made)
        except InputError:
            failed += 1
    assert (made, failed) == (3, 1)
    with pytest.raises(StorageError, match="1 of 4"):
        finish(place.file)


def test_what_is_made_stays_where_it_cannot_be_looked_at(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on may be interrupted, or refuse, before it knows of any finished file."""
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    (stage,) = left_behind(place.out)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("adaptertool.files.shelf.digests_of", interrupted)
        merge(place.base, place.adapters[:1], place.out)
    assert len(list((stage / "parts").iterdir())) == 4
    os.mkfifo(stage / "receipts/pipe")
    for call in (run_part, finish):
        with pytest.raises(OutputError, match="no file"):
            call(place.file)
    (stage / "receipts/pipe").unlink()
    assert run_part(place.file).made == ()


def test_a_receipt_that_is_a_folder(place: Place) -> None:
    plan_merge(place.base, place.adapters[:1], place.out, place.file)
    run_part(place.file)
    (stage,) = left_behind(place.out)
    receipt = next((stage / "receipts").iterdir())
    receipt.unlink()
    receipt.mkdir()
    with pytest.raises(StorageError, match="1 of 4"):
        finish(place.file)


def test_a_scratch_folder(place: Place) -> None:
    with pytest.raises(UsageError, match="TMPDIR"):
        plan_merge(place.base, place.adapters[:1], place.out, place.file, scratch=place.folder)
