"""Shards that are made by the workers of an executor: the bytes of one machine, whatever becomes of the workers."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool, snapshot
from in_parts import Place

from adaptertool import merge, wise
from adaptertool.errors import InputError, OutputError, StorageError, UsageError
from adaptertool.files.leftovers import left_behind
from adaptertool.output import checkpoint
from adaptertool.tasks import spread
from adaptertool.tasks.clean import clean


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def processes(count: int = 2) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("fork"))


@pytest.mark.parametrize("workers", [processes, ThreadPoolExecutor])
def test_merge(place: Place, workers: Any) -> None:
    told: list[int] = []
    options: dict[str, Any] = {"weights": [0.5, 1], "sha256": True}
    merge(place.base, place.adapters, place.folder / "one", **options)
    with workers(2) as executor:
        report = merge(place.base, place.adapters, place.out, executor=executor, progress=told.append, **options)
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []
    assert report.bytes_written <= sum(told) * 3


def test_wise(place: Place) -> None:
    wise(place.base, place.tuned, place.folder / "one", "0:1:0.5")
    with processes() as executor:
        wise(place.base, place.tuned, place.out, "0:1:0.5", executor=executor, verify=True)
    assert snapshot(place.out) == snapshot(place.folder / "one")


def test_a_worker_is_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third shard that is begun kills its process; the same call goes on, and makes no finished shard again."""
    merge(place.base, place.adapters[:1], place.folder / "one")
    seen = multiprocessing.get_context("fork").Value("i", 0)
    real = checkpoint.Staging.finish

    def dying(stage: Any, *arguments: Any, **more: Any) -> None:
        with seen.get_lock():
            seen.value += 1
            if seen.value == 3:
                os.kill(os.getpid(), signal.SIGKILL)
        real(stage, *arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint.Staging, "finish", dying)
        with processes(1) as executor, pytest.raises(StorageError, match=r"a worker was lost .* run again"):
            merge(place.base, place.adapters[:1], place.out, executor=executor)
    (stage,) = left_behind(place.out)
    kept = {path.stat().st_ino for path in (stage / "parts").iterdir()}
    assert len(list((stage / "receipts").glob("*.json"))) == 2
    with processes(1) as executor:
        merge(place.base, place.adapters[:1], place.out, executor=executor)
    assert snapshot(place.out) == snapshot(place.folder / "one") and left_behind(place.out) == []
    assert len(kept & {path.stat().st_ino for path in place.out.iterdir()}) == 2


class Pickled(Executor):
    """Runs at once what it is sent, as another process would get it, and as often as asked."""

    def __init__(self, often: int = 1) -> None:
        self.often, self.sizes = often, list[int]()

    def submit(self, call: Any, /, *arguments: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        data = pickle.dumps((call, arguments, more))
        self.sizes.append(len(data))
        try:
            for _ in range(self.often):
                own, given, named = pickle.loads(data)
                result = own(*given, **named)
        except Exception as error:
            future.set_exception(pickle.loads(pickle.dumps(error)))
        else:
            future.set_result(result)
        return future


def test_what_is_sent_is_small_and_may_come_twice(place: Place) -> None:
    merge(place.base, place.adapters, place.folder / "one", method="ties", density=0.5)
    executor = Pickled(2)
    merge(place.base, place.adapters, place.out, method="ties", density=0.5, executor=executor)
    assert max(executor.sizes) < 2000
    assert snapshot(place.out) == snapshot(place.folder / "one")


def test_errors_of_workers_are_theirs(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Any:
        def make(*_: Any) -> None:
            raise error

        return make

    cases: list[tuple[Exception, type[Exception]]] = [
        (InputError("bad"), InputError),
        (ModuleNotFoundError("No module named 'adaptertool'"), UsageError),
        (ValueError("killed"), StorageError),
    ]
    for error, expected in cases:
        with monkeypatch.context() as patched, ThreadPoolExecutor(1) as executor, pytest.raises(expected):
            patched.setattr(spread, "make_shard", fail(error))
            merge(place.base, place.adapters[:1], place.out, executor=executor)
    assert not place.out.exists() and clean(place.out) == ()


def test_a_worker_that_sees_other_files(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "_known", {})
    with pytest.raises(InputError, match="finds other inputs"):
        spread.make_shard(_first_task(place)._replace(key="0" * 16))


def _first_task(place: Place) -> spread.Task:
    seen: list[spread.Task] = []

    class Noting(Executor):
        def submit(self, _: Any, /, *arguments: Any, **__: Any) -> Future[Any]:
            seen.extend(arguments)
            raise RuntimeError("enough")

    with pytest.raises(StorageError, match="takes no work"):
        merge(place.base, place.adapters[:1], place.out, executor=Noting())
    return seen[0]


def test_out_exists(place: Place) -> None:
    place.out.mkdir()
    (place.out / "thesis.txt").write_text("dear")
    with ThreadPoolExecutor(1) as executor, pytest.raises(OutputError):
        merge(place.base, place.adapters[:1], place.out, executor=executor)


def test_without_dask(place: Place) -> None:
    try:
        import distributed  # type: ignore[import-not-found,unused-ignore]  # noqa: F401, PLC0415
    except ImportError:
        pass
    else:
        pytest.skip("it is installed")
    done = adaptertool(
        "merge", "base", "adapter0", "-o", "out", "--dask", "tcp://127.0.0.1:1", "--json", cwd=place.folder
    )
    assert done.returncode == 2 and "pip install 'adaptertool[dask]'" in done.stderr
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
    assert sorted(path.name for path in place.folder.iterdir() if path.name.startswith((".", "out"))) == []
