"""What a terminal is shown: colours that mean something, lines that fit, bars that know their end; and a pipe none of
it."""

from __future__ import annotations

import io
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from commands import BASE, LORA, TUNED, Result, on_a_terminal
from conftest import adaptertool

from adaptertool.cli import terminal
from adaptertool.render.text import table

RED, GREEN, YELLOW, COLOUR = "\x1b[31m", "\x1b[32m", "\x1b[33m", re.compile(r"\x1b\[\d+m")
MERGED = Path("MERGED")  # in the place of the folder of the fixture


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("typed", "environment", "on_terminal", "in_pipe"),
    [
        ([], {}, True, False),
        ([], {"NO_COLOR": "1"}, False, False),
        ([], {"NO_COLOR": ""}, True, False),
        ([], {"TERM": "dumb"}, False, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True, True),
        (["--color=never"], {}, False, False),
        (["--color=never", "--color", "auto"], {}, True, False),
    ],
)
def test_where_there_are_colours(
    monkeypatch: pytest.MonkeyPatch,
    typed: list[str],
    environment: dict[str, str],
    *,
    on_terminal: bool,
    in_pipe: bool,
) -> None:
    monkeypatch.setattr(sys, "argv", ["adaptertool", "verify", *typed])
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert (terminal.colours(Terminal()), terminal.colours(io.StringIO())) == (on_terminal, in_pipe)


def test_what_has_a_colour() -> None:
    """Words that only we say at that place; a file or a tensor of such a name has none."""
    for text, word, colour in (
        ("verify merged: WRONG\n  against  base", "WRONG", RED),
        ("verify merged: right", "right", GREEN),
        ("diff a b: equal", "equal", GREEN),
        ("drift base + lora: x\n  verdict   suspect: 3 of 8", "suspect", RED),
        ("x\n  model.q_proj  0.1  suspect\n", "suspect", RED),
        ("x\n  problem  config.json", "problem", RED),
        ("adaptertool: base does not exist", "adaptertool:", RED),
        ("adaptertool: note: stale", "note:", YELLOW),
    ):
        found = terminal.painted(text)
        assert COLOUR.sub("", found) == text
        assert f"{colour}\x1b[1m{word}\x1b[0m" in found, found
    for text in ("inspect WRONG: a checkpoint", "  wrong.weight  exact", "a suspect", '{"verdict": "WRONG"}'):
        assert terminal.painted(text) == text


def test_lines_end_between_words_and_go_on_below_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "room", lambda _: 30)
    text = "  capacity 55,296 parameters at 2 bits each\n  wrong  model.layers.0.q_proj  negated, scale -1"
    assert terminal.fitted(text).split("\n") == [
        "  capacity 55,296 parameters",
        "           at 2 bits each",
        "  wrong  model.layers.0.q_proj",
        "    negated, scale -1",
    ]
    facts = "  lm_head  in 0.993 of all  rel 0.229  ulp 30,882"
    assert terminal.fitted(facts).split("\n") == ["  lm_head  in 0.993 of all", "    rel 0.229  ulp 30,882"]
    command = "`hf download org/name --local-dir DIR`"  # is copied, so it stays whole, though it is longer
    told = f"there is no such model here: {command}, and give it"
    assert terminal.fitted(told).split("\n") == ["there is no such model here:", f"    {command},", "    and give it"]
    monkeypatch.setattr(terminal, "room", lambda _: None)
    assert terminal.fitted(text) == text


def test_a_table_that_does_not_fit_has_two_lines_a_row() -> None:
    head, rows = ("module", "drift", "verdict"), [("model.layers.0.q_proj", "0.004", "right"), ("b", "1", "wrong")]
    wide = [
        "  module                 drift  verdict",
        "  model.layers.0.q_proj  0.004    right",
        "  b                          1    wrong",
    ]
    assert list(table(head, rows)) == list(table(head, rows, 39)) == wide
    narrow = "\n".join(table(head, rows, 38)).split("\n")
    assert narrow[:4] == ["  module", "    drift  verdict", "  model.layers.0.q_proj", "    0.004    right"]


COMMANDS: dict[str, tuple[list[object], int, int, str]] = {
    "verify": (["verify", MERGED, BASE, LORA, "-w", "0.5"], 80, 1, f"{RED}\x1b[1mWRONG"),
    "inspect": (["inspect", LORA, "--base", BASE], 80, 0, f"{GREEN}\x1b[1mfits"),
    "drift": (["drift", BASE, LORA, "--probe", "2"], 80, 0, f"{GREEN}\x1b[1mexpected"),
    "diff": (["diff", BASE, TUNED], 100, 1, f"{RED}\x1b[1mDIFFERENT"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_terminal_shows_all_words_whole(merged: tuple[Path, Result], command: str) -> None:
    arguments, columns, code, coloured = COMMANDS[command]
    typed = [str(merged[0] if one is MERGED else one) for one in arguments]
    done = adaptertool(*typed)
    assert done.returncode == code
    assert max(map(len, done.stdout.splitlines())) > columns or command == "diff"
    assert not COLOUR.search(done.stdout + done.stderr)
    found, seen = on_a_terminal(typed, columns=columns, stdout=True)
    assert found == code and coloured in seen
    assert re.search(rf"{command}: +0%.*/[\d.]+[kM]", seen)  # the bar knows its end
    report = COLOUR.sub("", seen[seen.rindex("\r", 0, seen.index(f"{command} ")) + 1 :]).replace("\r\n", "\n")
    assert max(len(line) for line in report.splitlines() if "/" not in line) <= columns  # paths may be longer
    times = re.compile(r"[\d.]+ s,")
    words = [Counter(times.sub("", text).split()) for text in (report, done.stdout)]
    assert words[0] == words[1]


def test_letters_of_two_columns_count_as_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of China, Japan and Korea; in tables and where lines are broken."""
    lines = list(table(("名", "n"), [("ab", "10"), ("模型一", "9")]))
    assert lines == ["  名       n", "  ab      10", "  模型一   9"]
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setattr(terminal, "room", lambda _stream: 20)
    broken = terminal.fitted("模型一 模型二 模型三 模型四").split("\n")
    assert broken == ["模型一 模型二 模型三", "    模型四"]
