"""The page of a run of merge or wise: what it says, and what it looks like in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from browser import look, needs_browser, require_fit, require_self_contained
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


def test_a_sweep_says_which_of_its_figures_are_told(pages: Path) -> None:
    text = (pages / "wise.html").read_text()
    assert "elements changed, at most" in text and "update that survives, at least" in text
    assert "at most" not in (pages / "merge.html").read_text()


def test_a_method_is_named_and_nothing_is_said_to_be_settled(tmp_path: Path) -> None:
    """Changes are combined in float64: no element is settled, and none comes after another."""
    merge = ["merge", BASE, LORA, RSLORA, "--method", "ties", "--density", "0.5", "-o", str(tmp_path / "ties")]
    planned, page = adaptertool(*merge, "--dry-run"), tmp_path / "ties.html"
    assert f"of {LORA} and lora scale" in planned.stdout and " then " not in planned.stdout
    done = adaptertool(*merge, "--html", page)
    for text in (planned.stdout, done.stdout):
        assert "\n  method   ties, in float64 and rounded once\n" in text
    assert "settled exactly" not in done.stdout
    text = page.read_text().replace("<wbr>", "")
    assert f"of {LORA} and lora scale" in text and "<dt>method</dt>" in text
    config = tmp_path / "linear.yml"
    source = {"model": BASE, "parameters": {"weight": 1}}
    config.write_text(json.dumps({"models": [source], "merge_method": "linear"}))
    told = adaptertool("mergekit", config, "-o", tmp_path / "linear", "--json").stdout
    assert json.loads(told)["method"] == "linear"


def test_layers_have_no_sources(tmp_path: Path) -> None:
    done = adaptertool("layers", BASE, "0-1", "-o", tmp_path / "short", "--html", tmp_path / "page.html", "--json")
    text = (tmp_path / "page.html").read_text()
    assert done.returncode == 0 and json.loads(done.stdout)["method"] is None
    assert "<title>short: base: written" in text and "<dt>sources</dt>" not in text


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
    require_fit(tmp_path, (pages / "merge.html", 390))
