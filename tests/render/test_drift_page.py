"""The page of drift: its bytes, what is escaped, and what it looks like in a browser."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from browser import VIEWS, look, needs_browser, require_fit, require_self_contained
from conftest import FIXTURES, lora_factors, main_here, write_adapter, write_checkpoint
from conftest import adaptertool as command


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two adapters, judged against a merge of one of them only: some of it is suspect."""
    folder = tmp_path_factory.mktemp("page")
    merged = command("merge", FIXTURES / "base", FIXTURES / "lora", "-o", folder / "merged", "-q")
    assert merged.returncode == 0, merged.stderr
    sources = FIXTURES / "base", FIXTURES / "lora", FIXTURES / "rslora"
    done = command("drift", *sources, "--merged", folder / "merged", "--time", "--html", folder / "page.html", "-q")
    assert done.returncode == 1, done.stderr
    return folder / "page.html"


def test_self_contained_and_whole(page: Path) -> None:
    text = page.read_text()
    require_self_contained(text)
    assert text.count("<svg") == 2 and "currentColor" in text
    assert "model.<wbr>layers.<wbr>0.<wbr>self_attn.<wbr>q_proj" in text and "suspect" in text and "overhead" in text


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    """Apart from the footer, which tells when and by which command."""
    for name in "ab":
        done = command(
            "drift", FIXTURES / "base", FIXTURES / "lora", "--html", tmp_path / name, "--threads", ord(name) % 3
        )
        assert done.returncode == 0
    one, other = ((tmp_path / name).read_text().partition("<footer>")[0] for name in "ab")
    assert one == other and len(one) > 10_000


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "model.<img src=x onerror=alert(1)>"
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.randn(16, 16).to(torch.bfloat16)}, config={})
    adapter = write_adapter(tmp_path / "a", lora_factors(name, (16, 16)), fan_in_fan_out=False)
    done = command("drift", base, adapter, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text and "&lt;img" in text


@pytest.mark.parametrize("target", ["", ".", "none/page.html"])
def test_where_no_page_can_be(tmp_path: Path, target: str) -> None:
    done = command("drift", FIXTURES / "base", FIXTURES / "lora", "--html", target, cwd=tmp_path)
    assert done.returncode == 2 and "cannot be a page" in done.stderr


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    arguments = ["drift", str(FIXTURES / "base"), str(FIXTURES / "lora"), "--html", str(tmp_path / "page.html")]
    assert main_here(arguments, monkeypatch) == 2
    assert "pip install 'adaptertool[report]'" in capsys.readouterr().err


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_screenshot(tmp_path: Path, page: Path, width: int, dark: bool) -> None:
    look(tmp_path, page, width, dark=dark)


@needs_browser
def test_nothing_is_wider_than_the_window(tmp_path: Path, page: Path) -> None:
    require_fit(tmp_path, (page, 390), (page, 1200))
