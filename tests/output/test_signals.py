"""Signals during a run, at every line: what is left, and the exit code."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from conftest import ROOT, adaptertool, lora_factors, main_here, snapshot, write_adapter
from disturbed import MODULE, WEIGHT, Place, delete_tree
from long_tests import ONE_IN

from adaptertool import merge
from adaptertool.files import publish
from adaptertool.files.staging import Staging

# --- signals ---


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """One edited tensor of 67 MB, zeros and sparse: many jobs, each of which SLOW takes a second for."""
    rows = 1 << 19
    place = Place(tmp_path_factory.mktemp("large"), rows=8)
    header = f'{{"{WEIGHT}":{{"dtype":"BF16","shape":[{rows},64],"data_offsets":[0,{rows * 128}]}}}}'.encode()
    place.base = place.folder / "base.safetensors"
    with place.base.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + rows * 128)
    write_adapter(place.adapter, lora_factors(MODULE, (rows, 64)))
    return place


# The command line, whose threads wait before each job: on a busy machine a run would else be over before the signal
SLOW = """
import time
from adaptertool import cli
from adaptertool.engine import pool
take = pool.Shared.take
pool.Shared.take = lambda self: (time.sleep(1), take(self))[1]
cli.main()
"""


def _stamps(place: Place) -> list[tuple[int, int]]:
    paths = (place.base, *place.adapter.iterdir())
    return [(path.stat().st_mtime_ns, path.stat().st_size) for path in paths]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signal_during_a_run(large: Place, number: signal.Signals) -> None:
    before = _stamps(large)
    out = large.folder / f"out-{number.name}"
    command = [sys.executable, "-c", SLOW, "merge", large.base, large.adapter, "-o", out, "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(large.folder.glob(f".{out.name}*/*")) and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert not out.exists()
    assert stdout == ""
    assert "Traceback" not in stderr
    assert _stamps(large) == before
    left = list(large.folder.glob(f".{out.name}*"))
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "nothing was published" in stderr
        assert left == []
    else:
        assert process.returncode == -number
        assert len(left) == 1
        merge(large.base, [large.adapter], out)  # what a killed run leaves is in nobody's way
        assert (out / publish.MANIFEST).is_file()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_stop_the_cleaning(
    place: Place, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    real = shutil.rmtree

    def impatient(*arguments: Any, **options: Any) -> None:
        signal.raise_signal(number)
        real(*arguments, **options)

    monkeypatch.setattr(Staging, "finish", lambda *_, **__: signal.raise_signal(number))
    monkeypatch.setattr(shutil, "rmtree", impatient)
    code = main_here(["merge", str(place.base), str(place.adapter), "-o", str(place.out)], monkeypatch)
    monkeypatch.undo()
    assert code == 130
    place.check_untouched()


TRACED = (
    "files/publish.py",
    "files/staging.py",
    "files/leftovers.py",
    "files/lock.py",
    "files/place.py",
    "files/receipts.py",
    "files/shelf.py",
    "output/checkpoint.py",
    "cli/boundary.py",
    "cli/options.py",
)


def _interrupt_at(n: int, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[object, str]:
    """Run the command line in this process, with SIGINT before the n-th line (of those that write and publish)
    that it comes to. Returns the exit code, and that line."""
    seen: list[str] = []

    def tracer(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        file = code.co_filename.rpartition("adaptertool/")[2]
        if file not in TRACED or (file == "cli/boundary.py" and code.co_name == "run"):
            return None
        line = f"{file}:{frame.f_lineno} {code.co_name}"
        if event == "line" and len(seen) < n and line not in seen:
            seen.append(line)
            if len(seen) == n:
                signal.raise_signal(signal.SIGINT)
        return tracer

    outer = sys.gettrace()
    sys.settrace(tracer)
    try:
        code = main_here(arguments, monkeypatch)
    finally:
        sys.settrace(outer)
    return code, seen[-1] if len(seen) == n else ""


@pytest.mark.long("force")
@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("first", range(1, ONE_IN + 1))
def test_ctrl_c_at_every_line(
    place: Place, merged: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, force: tuple[str, ...], first: int
) -> None:
    """For n = first, first + 6, ...: with 130 OUT is as it was, with 0 the new one. Staging is left with finished files
    only."""
    arguments = ["merge", str(place.base), str(place.adapter), "-o", str(place.out), "--threads", "2", *force]
    wrong: list[str] = []
    for n in range(first, 500, ONE_IN):
        if force:
            merge(place.base, [place.adapter], place.out, weights=[0.5])
        old = snapshot(place.out)
        code, line = _interrupt_at(n, arguments, monkeypatch)
        if code not in (0, 130) or snapshot(place.out) != (merged if code == 0 else old):
            wrong.append(f"{line}: exit code {code}, and OUT is {'new' if snapshot(place.out) == merged else 'wrong'}")
        kept = code == 130 and all(any((folder / "receipts").iterdir()) for folder in place.staged)
        if place.staged and not kept:
            wrong.append(f"{line}: staging was left: {[str(p) for f in place.staged for p in f.rglob('*')]} {code}")
        for path in (place.out, *place.staged):
            delete_tree(path)
        if not line:
            break
    assert n > 50
    assert (code, line) == (0, "")
    assert not wrong, "\n".join(wrong)


def test_ctrl_c_while_the_command_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise KeyboardInterrupt")
    done = adaptertool("--help", env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"})
    assert (done.returncode, done.stderr) == (130, "adaptertool: interrupted; nothing was published\n")
