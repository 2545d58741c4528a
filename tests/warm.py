"""`adaptertool` and `python` in processes of their own that need not start: a server that has torch, transformers and
the package loaded forks for each. Programs of these names, in a folder for PATH, hand it their arguments and streams.

As `tests/forks.py`, but what a command starts (`--score 'python ...'`) is served as well, and models are loaded.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from forked import run_and_exit

_LOADED = ("adaptertool.cli", "adaptertool.evaluation", "torch", "transformers.models.llama.modeling_llama")
_CLIENT = """#!{python} -IS
import array, json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
request = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
streams = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))
line.sendmsg([len(request).to_bytes(4, "little")], [streams])
line.sendall(request)
sys.exit(int(line.recv(16) or 70))
"""


def programs() -> Path:
    """Start the server; returns the folder that PATH is to begin with. Both last as long as this process."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(folder / "socket")
    for name in ("adaptertool", "python"):
        (folder / name).write_text(_CLIENT.format(python=sys.executable, address=address, name=name))
        (folder / name).chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__)), address],
        stdout=subprocess.PIPE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    atexit.register(server.kill)
    with server.stdout as said:  # type: ignore[union-attr]
        assert said.readline() == b"ready\n"
    return folder


def _serve(address: str) -> NoReturn:
    from adaptertool.process import prepare  # noqa: PLC0415  # the package is found once this file's folder is left out

    prepare([])
    for name in _LOADED:
        importlib.import_module(name)
    gc.freeze()  # else the collector of each process that forks copies what is here
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(16)
    print("ready", flush=True)
    while True:
        line, _ = listening.accept()
        if os.fork() == 0:  # one for each program, so that what it starts is served while it runs
            _answer(line)
        line.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def _answer(line: socket.socket) -> NoReturn:
    size, rights, _, _ = line.recvmsg(4, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i", rights[0][2])
    request = b""
    while len(request) < int.from_bytes(size, "little"):
        request += line.recv(1 << 16)
    if (child := os.fork()) == 0:
        line.close()
        _become(list(streams), *json.loads(request))
    for number in streams:
        os.close(number)
    line.sendall(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def _become(streams: list[int], program: str, arguments: list[str], cwd: str, environment: dict[str, str]) -> NoReturn:
    """The process of one program."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number, own in enumerate(streams):
        os.dup2(own, number)
        os.close(own)
    run_and_exit(lambda: _run(program, arguments))


def _run(program: str, arguments: list[str]) -> None:
    if program == "adaptertool":
        sys.argv = [program, *arguments]
        runpy.run_module("adaptertool", run_name="__main__", alter_sys=True)
    elif arguments[0] == "-c":
        sys.argv = ["-c", *arguments[2:]]
        sys.path.insert(0, "")
        exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = arguments
        sys.path.insert(0, str(Path(arguments[0]).parent.absolute()))
        runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    sys.path.pop(0)
    _serve(sys.argv[1])
