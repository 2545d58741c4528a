"""The command line in a process of its own that need not start: one that has the package loaded forks for each."""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import pkgutil
import re
import runpy
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NoReturn

from forked import run_and_exit

from adaptertool.process import prepare

_LOADED = ("adaptertool.cli", "adaptertool.tasks", "adaptertool.render")  # packages, with all that is in them
_EXTRAS = ("jinja2", "matplotlib.figure", "matplotlib.ticker")  # what pages are made with
# Variables that pytest, torch, mlx_lm and PEFT's BOFT set as they go, and the package does not read. One that is
# missing here costs every command after it a process that starts; the summary of a run names it (`UNSERVED`).
_UNREAD = ("PYTEST_CURRENT_TEST", "TORCHINDUCTOR_CACHE_DIR", "TRANSFORMERS_NO_ADVISORY_WARNINGS", "CC", "CXX")
# Variables that the package reads while a command runs, and not from the start
_LATE = re.compile(
    "GITHUB_|ADAPTERTOOL_THREADS|_ADAPTERTOOL_COMPLETE|COMP_|NO_COLOR|COLUMNS|SOURCE_DATE_EPOCH"
    "|HF_HOME|HF_HUB_CACHE|HUGGINGFACE_HUB_CACHE|XDG_CACHE_HOME"
)
UNSERVED = Counter[str]()  # how many command lines could not be served, by the variable that was the reason


class Forks:
    """A process that waits for command lines. `environment` is what it was started with, beside `start`."""

    def __init__(self, start: Mapping[str, str]) -> None:
        self.environment = dict(at_first())
        command = [sys.executable, "-u", str(Path(__file__))]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment | start
        )
        atexit.register(self._process.kill)

    def run(
        self, arguments: Sequence[str], cwd: Path | None, script: Path | None, environment: Mapping[str, str | None]
    ) -> subprocess.CompletedProcess[str]:
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            program = str(script) if script else None
            request = [program, list(arguments), str(cwd or Path.cwd()), dict(environment), out.name, err.name]
            _of(self._process.stdin).write(json.dumps(request) + "\n")
            _of(self._process.stdin).flush()
            code = int(_of(self._process.stdout).readline())
            said = [_content(file) for file in (out, err)]
        return subprocess.CompletedProcess(arguments, code, *said)


@functools.cache
def at_first() -> Mapping[str, str]:
    """The environment as it is when this is first called, by conftest: a server that started amid a test which sets a
    variable would have it too, and serve no test after that."""
    return dict(os.environ)


@functools.cache
def _started(start: tuple[tuple[str, str], ...]) -> Forks:
    return Forks(dict(start))


def run(
    arguments: Sequence[str],
    cwd: Path | None = None,
    *,
    script: Path | None = None,
    start: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str] | None:
    """What the command line does, or a script of the tests; None where the environment that it is to have differs from
    that of this process at its start in what counts from the start. `start`: variables that do, so that another process
    waits for those who have them; `environment`: others, beside those of this process."""
    forks = _started(tuple(sorted((start or {}).items())))
    changed = {name: os.environ.get(name) for name in {*os.environ, *forks.environment}.difference(_UNREAD)}
    changed = {name: text for name, text in changed.items() if text != forks.environment.get(name)}
    if missed := [name for name in changed if not _LATE.match(name)]:
        UNSERVED.update(missed)
        return None
    return forks.run(arguments, cwd, script, changed | dict(environment or {}))


def late(environment: Mapping[str, str]) -> dict[str, str] | None:
    """What an environment has beyond that of this process; None where it has less, or what counts from the start."""
    more = {name: text for name, text in environment.items() if text != os.environ.get(name)}
    return more if os.environ.keys() <= environment.keys() and all(map(_LATE.match, more)) else None


def _of(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode().replace("\r\n", "\n")


def _serve() -> None:
    prepare([])
    for package in map(importlib.import_module, _LOADED):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in _EXTRAS:
        importlib.import_module(name)
    gc.freeze()  # else the collector of each process that forks copies what is here
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            _become(*request)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(
    script: str | None, arguments: list[str], cwd: str, environment: dict[str, str | None], out: str, err: str
) -> NoReturn:
    """The process of one command line."""
    os.chdir(cwd)
    for name, text in environment.items():
        os.environ.pop(name, None) if text is None else os.environ.update({name: text})
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, out, os.O_WRONLY), (2, err, os.O_WRONLY)):
        own = os.open(path, flags)
        os.dup2(own, number)
        os.close(own)
    sys.argv = [script or "adaptertool", *arguments]
    sys.path.insert(0, cwd)

    def program() -> None:
        if script:
            runpy.run_path(script, run_name="__main__")
        else:
            runpy.run_module("adaptertool", run_name="__main__", alter_sys=True)

    run_and_exit(program)


if __name__ == "__main__":
    sys.path.pop(0)
    _serve()
