"""Reports in notebooks: cards, from the same sheets as pages, or text."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Nesting
from conftest import FIXTURES, lora_factors, write_adapter

import adaptertool
from adaptertool.render import card

BASE, LORA, TUNED = FIXTURES / "base", FIXTURES / "lora", FIXTURES / "tuned"

CARDS: dict[str, Callable[[Path], object]] = {
    "verify": lambda _: adaptertool.verify(TUNED, BASE, [LORA]),
    "diff": lambda _: adaptertool.diff(TUNED, BASE),
    "drift": lambda _: adaptertool.drift(BASE, [LORA], probe=1),
    "inspect": lambda _: adaptertool.inspect(LORA),
    "truncate": lambda out: adaptertool.truncate(LORA, out, rank=2, dry_run=True),
}
TEXTS: dict[str, Callable[[Path], object]] = {
    "sum": lambda out: adaptertool.sum_adapters([LORA], out, dry_run=True),
    "extract": lambda out: adaptertool.extract(BASE, TUNED, out, rank=1, dry_run=True),
    "merge": lambda out: adaptertool.merge(BASE, [LORA], out),
    "plan": lambda out: adaptertool.preview(adaptertool.prepare_merge(BASE, [LORA]), out),
}


def shown(report: object) -> str:
    found = report._repr_html_()  # type: ignore[attr-defined]
    assert isinstance(found, str)
    return found


@pytest.mark.parametrize("name", CARDS)
def test_cards(name: str, tmp_path: Path) -> None:
    text, parser = shown(CARDS[name](tmp_path / "out")), Nesting()
    parser.feed(text)
    assert not parser.open and {"strong", "details", "table"} <= parser.seen and "script" not in parser.seen
    assert text.startswith('<div class="adaptertool">') and text.count("<tr") < 120


@pytest.mark.parametrize("name", TEXTS)
def test_reports_without_a_page_are_text(name: str, tmp_path: Path) -> None:
    text = shown(TEXTS[name](tmp_path / "out"))
    assert text.startswith(f"<pre>{'merge' if name == 'plan' else name} ") and text.endswith("</pre>")


def test_a_verdict_stands_on_its_card() -> None:
    text = shown(adaptertool.verify(BASE, BASE, [LORA]))
    assert '<span class="badge wrong">WRONG</span>' in text and "not-applied" in text


def test_text_where_the_extra_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    evil = "model.<img src=x>\x1b"
    adapter = write_adapter(tmp_path / "a", lora_factors(evil, (16, 16)))
    report = adaptertool.inspect(adapter)
    assert "<img" not in shown(report) and "\x1b" not in shown(report)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    text = shown(report)
    assert text.startswith("<pre>inspect ") and "&lt;img src=x&gt;" in text and "\x1b" not in text


def test_every_public_report_has_one() -> None:
    reports = {getattr(adaptertool, name) for name in adaptertool.__all__ if name.endswith("Report")}
    assert reports == set(card._TEXTS)
    assert all(hasattr(report, "_repr_html_") for report in reports)
