"""What is loaded late is there, and not loaded before."""

from __future__ import annotations

import ast
import gc
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

from adaptertool import interrupts
from adaptertool.errors import Interrupted
from adaptertool.late import late, load

LOADED = """
import contextlib, io, json, sys
from adaptertool.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main()
json.dump(list(sys.modules), sys.stdout)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    collected = gc.isenabled()  # other tests, or what runs them, may do without
    gc.enable()
    yield tmp_path / "loaded_late.py"
    (gc.enable if collected else gc.disable)()
    sys.modules.pop("loaded_late", None)


def test_a_function_is_loaded_when_it_is_first_called(module: Path) -> None:
    called = late("loaded_late", "twice")  # there is no such module yet
    module.write_text(
        "import gc\nassert not gc.isenabled()\n\ndef twice(value, *, more=0):\n    return 2 * value + more\n"
    )
    assert (called(2), called(3, more=1)) == (4, 7)
    assert gc.isenabled()


def test_what_fails_while_it_is_loaded_is_told(module: Path) -> None:
    module.write_text("raise ValueError('no')\n")
    with pytest.raises(ValueError, match="no"):
        late("loaded_late", "twice")()
    assert gc.isenabled()


def test_who_collects_no_garbage_goes_on_so(module: Path) -> None:
    module.write_text("one = 1\n")
    gc.disable()
    assert load("loaded_late", "one") == 1
    assert not gc.isenabled()


def test_a_signal_waits_until_it_is_loaded(module: Path) -> None:
    module.write_text("from adaptertool.interrupts import interrupt\ninterrupt()\none = 1\n")
    with pytest.raises(Interrupted):
        load("loaded_late", "one")
    assert sys.modules["loaded_late"].one == 1


def test_a_signal_waits_for_the_outermost_who_defers_it(module: Path) -> None:
    module.write_text("from adaptertool.interrupts import interrupt\ninterrupt()\none = 1\n")
    loaded = []
    with pytest.raises(Interrupted), interrupts.deferred():
        loaded.append(load("loaded_late", "one"))
        interrupts.interrupt()
        loaded.append(2)
    assert loaded == [1, 2]


def test_other_threads_defer_no_signals(module: Path) -> None:
    module.write_text("from adaptertool import interrupts\nfound = interrupts._state['deferring']\n")
    found = []
    thread = threading.Thread(target=lambda: found.append(load("loaded_late", "found")))
    thread.start()
    thread.join()
    assert found == [False]


def named() -> set[tuple[str, str]]:
    """The modules and functions that the package loads late."""
    calls = [
        node
        for path in (ROOT / "adaptertool").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "late"
    ]
    return {(ast.literal_eval(call.args[0]), ast.literal_eval(call.args[1])) for call in calls}


def test_all_that_is_named_is_there() -> None:
    assert len(named()) > 10
    for module, name in named():
        assert callable(load(module, name)), (module, name)


def test_a_merge_loads_none_of_it(tmp_path: Path) -> None:
    """But a file that begins with what a run needs in any case would be no use to load late."""
    arguments = ["merge", str(ROOT / "fixtures" / "base"), str(ROOT / "fixtures" / "lora"), "-o", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout))
    assert {"adaptertool.formats.peft.read", "adaptertool.engine.execute"} < loaded and (tmp_path / "out").exists()
    assert loaded.isdisjoint({module for module, _ in named()})
    assert loaded.isdisjoint({"tqdm", "jinja2", "importlib.metadata", "adaptertool.render.page", "ruamel.yaml"})
