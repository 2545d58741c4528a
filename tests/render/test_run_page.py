"""The page of a run of merge or wise: what it says, and what it looks like in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from browser import look, needs_browser, require_self_contained, width_of
from conftest import FIXTURES, adaptertool, load, main_here

BASE, LORA, RSLORA, TUNED = (str(FIXTURES / name) for name in ("base", "lora", "rslora", "tuned"))


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        merge = ["merge", BASE, LORA, RSLORA, "-w", "0.7", "-w", "0.3", "-o", "two", "--verify", "--html", "merge.html"]
        assert main_here([*merge, "-q"], patch) == 0
        assert main_here(["wise", BASE, TUNED, "--alpha", "0,0.5", "-o", "s", "--html", "wise.html", "-q"], patch) == 0
    return folder


def test_what_a_merge_says(pages: Path) -> None:
    text = (pages / "merge.html").read_text()
    require_self_contained(text)
    assert "<title>two: base + lora × 0.7 + rslora × 0.3: verified · adaptertool merge</title>" in text
    assert "read back from the disk" in text and "--verify --html merge.html" in text
    base, merged = load(Path(BASE)), load(pages / "two")
    edited = sum(not torch.equal(merged[name], tensor) for name, tensor in base.items())
    assert f"<dt>tensors edited</dt><dd>{edited}</dd>" in text.replace("\n", "")
    assert f"lora scale 2 weight 0.7 of {LORA} then lora scale" in text.replace("<wbr>", "")


def test_what_a_sweep_says(pages: Path) -> None:
    text = (pages / "wise.html").read_text()
    require_self_contained(text)
    table = text[text.index("<caption>Checkpoints</caption>") :].split("</table>")[0]
    assert 'data-value="0.0%"' in table and table.count("<tr") == 3  # alpha 0 is the base


@pytest.mark.parametrize(
    ("more", "said"),
    [(["--dry-run"], "a dry run has --json"), (["--score", "true {}"], "curve.html")],
)
def test_a_page_is_of_what_was_done(tmp_path: Path, more: list[str], said: str) -> None:
    page = ["--html", str(tmp_path / "page.html")]
    done = adaptertool("wise", BASE, TUNED, "--alpha", "0.5", "-o", str(tmp_path / "out"), *page, *more)
    assert done.returncode == 2 and said in done.stderr and not list(tmp_path.iterdir())


@needs_browser
def test_what_it_looks_like(pages: Path, tmp_path: Path) -> None:
    look(tmp_path, pages / "merge.html", 1280, dark=True, colour=0)
    assert width_of(tmp_path, pages / "merge.html", 390) == 390
