"""A run that is killed, or fails, leaves OUT as it was; the same command goes on where it stopped and ends in the same
bytes. Every call that changes the disk is killed or fails in turn: a sample here, all of them in `make fault-test`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import snapshot
from sharded import Place

from adaptertool import merge
from adaptertool.errors import OutputError
from adaptertool.files import lock
from adaptertool.files.hashing import DEFAULT
from adaptertool.files.leftovers import left_behind
from adaptertool.files.place import discard, staging_folder
from adaptertool.files.receipts import Receipts
from adaptertool.files.staging import Staging
from adaptertool.tasks.clean import clean

EVERY = 1 if os.environ.get("ADAPTERTOOL_ALL_FAULTS") else 11
FAULTS = ["kill", "ENOSPC", "EIO", "ENOSPC+", "EROFS+"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    place = Place(tmp_path_factory.mktemp("good"))
    done = place.run()
    assert done.returncode == 0, done.stderr
    return snapshot(place.out), int(done.stderr.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
def test_every_call_in_turn(tmp_path: Path, undisturbed: tuple[dict[str, bytes], int], kind: str) -> None:
    expected, count = undisturbed
    assert count > 40
    resumed = 0
    for number in range(1 + FAULTS.index(kind), count + 1, EVERY):
        place = Place(tmp_path / f"{number}")
        failed = place.run(kind, number)
        what = f"{kind} at call {number} of {count}: {failed.stderr}"
        assert "Traceback" not in failed.stderr, what
        if failed.returncode == 0:  # where it fails once, what is not needed may fail
            assert snapshot(place.out) == expected, what
            continue
        assert failed.returncode == (-9 if kind == "kill" else 4), what
        assert not place.out.exists() or snapshot(place.out) == expected, what
        assert {name: snapshot(place.folder)[name] for name in place.before} == place.before
        kept = place.finished()
        resumed += bool(kept)
        if kind != "kill":
            assert bool(left_behind(place.out)) == ("goes on from there" in failed.stderr), what
        if not place.out.exists():
            again = place.run()
            assert again.returncode == 0, f"{what}\n{again.stderr}"
        assert snapshot(place.out) == expected, what
        assert all((place.out / name).stat().st_ino == inode for name, inode in kept.items()), what  # not made again
        assert left_behind(place.out) == [] or place.out.exists()
    assert resumed > 1


def test_a_finished_file_is_trusted_by_its_hash_only(tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]) -> None:
    place = Place(tmp_path)
    number = undisturbed[1] * 3 // 4
    assert place.run("kill", number).returncode == -9
    kept = place.finished()
    assert len(kept) > 1
    (folder,) = left_behind(place.out)
    first, *others = sorted(kept)
    receipt = Receipts(folder / "receipts", DEFAULT).find(first)
    assert receipt is not None
    path = folder / "parts" / receipt.part
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert place.run().returncode == 0
    assert snapshot(place.out) == undisturbed[0]
    assert (place.out / others[0]).stat().st_ino == kept[others[0]]


@pytest.mark.parametrize("change", ["weight", "input", "alpha"])
def test_another_recipe_does_not_go_on(tmp_path: Path, undisturbed: tuple[dict[str, bytes], int], change: str) -> None:
    place = Place(tmp_path)
    assert place.run("kill", undisturbed[1] * 3 // 4).returncode == -9
    more: tuple[str, ...] = ("-w", "0.5") if change == "weight" else ()
    if change != "weight":
        config = place.adapter / "adapter_config.json"
        fields = json.loads(config.read_text())
        config.write_text(json.dumps(fields | ({"lora_alpha": 3} if change == "alpha" else {})))
    assert place.run("kill", 0, *more).returncode == 0
    fresh = Place(tmp_path / "fresh")
    if change == "alpha":
        (fresh.adapter / "adapter_config.json").write_bytes((place.adapter / "adapter_config.json").read_bytes())
    assert fresh.run("kill", 0, *more).returncode == 0
    assert snapshot(place.out) == snapshot(fresh.out)
    assert len(left_behind(place.out)) == 1  # of the first recipe
    assert len(clean(place.out)) == 1 and left_behind(place.out) == []


def test_two_runs_on_one_out(tmp_path: Path, undisturbed: tuple[dict[str, bytes], int]) -> None:
    """They share the work; the first to have all of it publishes, and the other hears of that."""
    place = Place(tmp_path)
    held: list[Any] = []

    def meanwhile(_: int) -> None:
        if not held:
            with pytest.raises(OutputError, match="another run is making"):
                clean(place.out)
            held.append(place.run())

    with pytest.raises(OutputError, match="another run of the same command has published"):
        merge(place.base, [place.adapter], place.out, threads=1, progress=meanwhile)
    assert held[0].returncode == 0 and snapshot(place.out) == undisturbed[0]
    assert place.run().returncode == 5  # OUT exists
    assert left_behind(place.out) == []


def test_a_lock_of_a_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between opening the lock and holding it, another run may end and remove the directory."""
    usual, calls = lock.fcntl.flock, []

    def late(descriptor: int, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            discard(staging_folder(tmp_path / "out", "key"))
        usual(descriptor, how)

    monkeypatch.setattr(lock.fcntl, "flock", late)
    with Staging(tmp_path / "out", "key") as stage:
        assert stage.work.is_dir()
        with pytest.raises(OutputError), Staging(tmp_path / "out", "key"):
            pass
    assert len(calls) == 3


def test_clean_says_what_it_does(tmp_path: Path) -> None:
    place = Place(tmp_path)
    call = [sys.executable, "-m", "adaptertool", "clean", str(place.out)]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout == f"nothing was left beside {place.out}\n"
    (tmp_path / ".out.adaptertool-0123456789abcdef/work").mkdir(parents=True)
    (tmp_path / ".outer.adaptertool-0123456789abcdef").mkdir()
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    assert done.stdout == f"removed {tmp_path}/.out.adaptertool-0123456789abcdef\n"
    assert (tmp_path / ".outer.adaptertool-0123456789abcdef").exists()


@pytest.mark.parametrize("length", [60, 240])
def test_outs_whose_names_begin_alike_have_nothing_to_do_with_each_other(tmp_path: Path, length: int) -> None:
    first, second = (tmp_path / f"{'n' * (length - 1)}{end}" for end in "ab")
    with Staging(first, "0" * 16) as one, Staging(second, "0" * 16) as other:
        assert one.folder != other.folder
        assert left_behind(first) == [one.folder] and left_behind(second) == [other.folder]
