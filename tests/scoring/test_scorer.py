"""What scores a checkpoint: commands, what they print, and how they fail. Functions."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptertool.errors import UsageError
from adaptertool.scoring.scorer import Scorer, ScoringError, checked_scores, parse_scores, scorer_of


def python(code: str, *arguments: str) -> Scorer:
    return scorer_of(shlex.join([sys.executable, "-S", "-c", code, *arguments]))


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("0.5", {"score": 0.5}),
        ("-1e-3\n\n  \n", {"score": -0.001}),
        ("loading\n7\r\n", {"score": 7.0}),
        ('{"a": 1, "b": 0.25}\n', {"a": 1.0, "b": 0.25}),
        ('noise {"a": 3}\n{"b": 2}', {"b": 2.0}),
        ('{\n  "a": 1,\n  "b": 2\n}\n', {"a": 1.0, "b": 2.0}),  # as jq prints it
        ('{"event": "start"}\n{"a": 1}\n', {"a": 1.0}),
        ('{"b": -0.0, "a": 5e-324}', {"b": -0.0, "a": 5e-324}),
    ],
)
def test_what_is_understood(text: str, scores: dict[str, float]) -> None:
    found = parse_scores(text)
    assert found == scores and list(found) == list(scores)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "nothing on stdout"),
        (" \n\n", "nothing on stdout"),
        ("accuracy: 0.5", "no number"),
        ("0.5 0.6", "no number"),
        ("0,5", "no number"),
        ("0.5\ndone", "no number"),
        ("[0.5]", "no number"),
        ("nan", "not finite"),
        ("-inf", "not finite"),
        ("1e999", "not finite"),
        ("{}", "no scores"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1e999}', "not finite"),
        ('{"a": true}', "no number but True"),
        ('{"a": null}', "no number but None"),
        ('{"a": "0.5"}', "no number but '0.5'"),
        ('{"a": {"b": 1}}', "no number but"),
        ('{"a": 1, "a": 2}', "stands there twice"),
        ('{"a": 1', "not valid JSON"),
        ('{\n"a": 1,\n}', "no number"),
        ('{"alpha": 1}', "cannot be called alpha"),
        ('{"a": 1' + "0" * 400 + "}", "too large"),
        ('{"a\\u001b[31m": null}', r"a\x1b[31m"),
    ],
)
def test_what_is_no_score(text: str, complaint: str) -> None:
    with pytest.raises(ScoringError) as error:
        parse_scores(text)
    assert complaint in str(error.value) and str(error.value).isprintable()


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "alpha"), st.floats(allow_nan=False,
       allow_infinity=False), min_size=1))  # fmt: skip
def test_numbers_survive_to_the_bit(scores: dict[str, float]) -> None:
    for indent in (None, 1):
        found = parse_scores(json.dumps(scores, indent=indent))
        assert {name: value.hex() for name, value in found.items()} == {n: v.hex() for n, v in scores.items()}


@given(st.text())
def test_no_text_is_a_fault_of_ours(text: str) -> None:
    try:
        scores = parse_scores(text)
    except ScoringError:
        return
    assert scores and all(np.isfinite(value) for value in scores.values())


def test_numbers_of_functions() -> None:
    assert checked_scores(np.float32(0.5)) == {"score": 0.5}
    assert checked_scores({"a": np.int64(3), "b": Fraction(1, 4)}) == {"a": 3.0, "b": 0.25}
    for value in ("0.5", None, [1], np.bool_(True), {"a": None}, {1: 2.0}, {}):
        with pytest.raises(ScoringError):
            checked_scores(value)


def test_the_path_needs_no_quotes(tmp_path: Path) -> None:
    """No shell sees it: not even with a name that would be three commands."""
    path = tmp_path / "a b; touch stolen $(touch stolen) 'x' \"y\" {} *"
    path.mkdir()
    code = "import os, sys; a, b = sys.argv[1:]; assert os.path.isdir(a) and b == '-p=' + a; print(len(a))"
    assert python(code, "{}", "-p={}").score(path) == {"score": len(str(path))}
    shell = scorer_of("""sh -c 'test -d "$1" && echo 3 | tr 3 4' sh {}""")
    assert shell.score(path) == {"score": 4}
    assert not list(tmp_path.rglob("stolen"))


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("", "no {}"),
        ("true", "no {}"),
        ("cat '{}", "cannot be split"),
        ("no-such-program {}", "no program that can be run"),
        ("{}", "no program that can be run"),
    ],
)
def test_commands_that_cannot_be(command: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        scorer_of(command)


@pytest.mark.parametrize(
    ("code", "first"),
    [
        ("import sys; print('half'); print('oh \\x1b[31m', file=sys.stderr); sys.exit(3)", "exit code 3"),
        ("import os; print('half', flush=True); os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("print('half')", "its last line is no number"),
        ("1 / 0", "exit code 1"),
    ],
)
def test_a_failure_shows_what_was_printed(tmp_path: Path, code: str, first: str) -> None:
    with pytest.raises(ScoringError) as error:
        python(code, "{}").score(tmp_path)
    lines = str(error.value).split("\n")
    assert lines[0].startswith(first) and all(line.isprintable() for line in lines)
    assert ("ZeroDivisionError" in lines[-1]) if code == "1 / 0" else "  stdout: half" in lines


def test_only_the_end_of_much_output_is_told(tmp_path: Path) -> None:
    code = "import sys; print('x' * 3_000_000); print('\\n'.join(map(str, range(200_000)))); sys.exit(int(sys.argv[2]))"
    assert python(code, "{}", "0").score(tmp_path) == {"score": 199_999}
    with pytest.raises(ScoringError) as error:
        python(code, "{}", "1").score(tmp_path)
    assert len(str(error.value)) < 3000 and str(error.value).endswith("199999")


def test_it_waits_for_no_input(tmp_path: Path) -> None:
    assert scorer_of("sh -c 'cat; echo 1' sh {}").score(tmp_path) == {"score": 1}


def test_a_program_that_goes_away(tmp_path: Path) -> None:
    program = tmp_path / "score"
    program.write_text("#!/bin/sh\necho 1\n")
    program.chmod(0o755)
    scorer = scorer_of(f"{program} {{}}")
    assert scorer.score(tmp_path) == {"score": 1}
    program.write_text("#!/no/such/interpreter\n")
    with pytest.raises(ScoringError, match="could not be run"):
        scorer.score(tmp_path)


def test_functions(tmp_path: Path) -> None:
    def length(path: str) -> float:
        return len(path) / 2

    def fails(_path: str) -> float:
        raise ValueError("no such task")

    scorer = scorer_of(length)
    assert scorer.score(tmp_path) == {"score": len(str(tmp_path)) / 2} and "length" in scorer.name
    with pytest.raises(ScoringError, match="ValueError: no such task"):
        scorer_of(fails).score(tmp_path)
    assert not scorer.lasting  # nobody knows what is in it


def test_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a command: its words, the directory, its program and its script; not of files that it may write."""
    monkeypatch.chdir(tmp_path)
    script, log = tmp_path / "score.py", tmp_path / "log"
    script.write_text("print(1)")
    log.write_text("")

    def identity(command: str = f"{sys.executable} score.py {{}} log --out log") -> str:
        return scorer_of(command).identity

    known = identity()
    log.write_text("more")
    assert identity() == known and identity(f"{sys.executable}  'score.py' {{}} log --out log") == known
    assert identity(f"{sys.executable} score.py {{}} log") != known
    script.write_text("print(10)")
    assert identity() != known
    assert scorer_of(f"sh -c '{'x' * 300}' {{}}").identity  # no path
    (tmp_path / "else").mkdir()
    known = identity("cat {}")
    monkeypatch.chdir(tmp_path / "else")
    assert identity("cat {}") != known


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A process that a shell starts in the background ignores SIGINT; and so do those that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interruption_ends_the_command_and_what_it_started(tmp_path: Path) -> None:
    """As for a caller in Python: KeyboardInterrupt."""
    code = "import os, sys, time\nos.fork()\nopen(f'{sys.argv[1]}/{os.getpid()}', 'w').close()\ntime.sleep(60)"

    def strike() -> None:
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=strike)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        python(code, "{}").score(tmp_path)
    thread.join()
    deadline = time.monotonic() + 60
    while any(alive(int(path.name)) for path in tmp_path.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alive(process: int) -> bool:
    """Whether it runs; one that ended and was not waited for by its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
