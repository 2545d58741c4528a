"""A part, and the end of all, is killed or meets an error at each call that changes the disk: what is run again ends in
the bytes of one machine. A sample here, all of them in `make fault-test`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from commands import faulty
from conftest import snapshot
from sharded import Place

from adaptertool import finish, merge, plan_merge, run_part
from adaptertool.files.leftovers import left_behind

EVERY = 1 if os.environ.get("ADAPTERTOOL_ALL_FAULTS") else 17


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["run", "finish"])
@pytest.mark.parametrize("kind", ["kill", "EIO"])
def test_every_call_in_turn(tmp_path: Path, kind: str, verb: str) -> None:
    good = Place(tmp_path / "good")
    merge(good.base, [good.adapter], good.out, threads=1)
    expected = snapshot(good.out)
    first, count, resumed = 5 if kind == "kill" else 9, 10_000, 0
    number = 0
    while number <= count:
        place = Place(tmp_path / f"{number}")
        file = place.folder / "plan.json"
        plan_merge(place.base, [place.adapter], place.out, file)
        if verb == "finish":
            run_part(file, threads=1)
        command = [verb, str(file), "--threads", "1", *(["--part", "0/1"] if verb == "run" else [])]
        done = faulty(kind, number, command)
        what = f"{kind} at call {number} of {verb}: {done.stderr}"
        assert "Traceback" not in done.stderr, what
        if not number:
            count = int(done.stderr.splitlines()[-1])
        elif done.returncode:
            assert done.returncode == (-9 if kind == "kill" else 4), what
        if not place.out.exists():
            kept = place.finished()
            resumed += bool(kept)
            run_part(file, 1, 2)
            run_part(file, 0, 2)
            finish(file)
            assert all((place.out / name).stat().st_ino == inode for name, inode in kept.items()), what
            assert left_behind(place.out) == [], what
        assert snapshot(place.out) == expected, what
        number = number + EVERY if number else first
    assert resumed and count > 20
