"""The page of truncate: what it says, its bytes, and what it looks like in a browser."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from browser import VIEWS, look, needs_browser, require_fit, require_self_contained
from conftest import FIXTURES, lora_factors, main_here, write_adapter, write_checkpoint

from adaptertool.tasks.truncate import truncate

LORA, BASE = str(FIXTURES / "lora"), str(FIXTURES / "base")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    arguments = ["truncate", LORA, "--energy", "0.9", "--base", BASE, "-o", str(folder / "out"), "-q"]
    with pytest.MonkeyPatch.context() as patch:
        assert main_here([*arguments, "--html", str(folder / "page.html")], patch) == 0
    return folder / "page.html"


def test_self_contained_and_whole(page: Path) -> None:
    require_self_contained(page.read_text())


def test_what_the_page_says(page: Path) -> None:
    text = page.read_text()
    assert text.count("<svg") == 4 and "Error by layer and module" in text and "Effect by layer and module" in text
    assert "--energy 0.9" in text and ">effect<" in text and "effect, at most" in text
    assert "A diamond is the rank that was kept" in text
    report = truncate(LORA, page.parent / "again", energy="0.9")
    for one in report.layers:
        name = one.layer.replace(".", ".<wbr>")
        row = text[text.index(f"<code>{name}</code>") :].split("</tr>")[0]
        cells = re.findall(r'data-value="([^"]*)"', row)
        assert cells[:2] == [f"{one.rank_before}", f"{one.rank}"] and cells[3] == f"{one.error:.3g}"


def test_without_a_base_nothing_is_said_of_effects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "page.html"
    arguments = ["truncate", LORA, "--rank", "2", "-o", str(tmp_path / "out"), "--html", str(target), "--dry-run"]
    assert main_here(arguments, monkeypatch) == 0
    text = target.read_text()
    assert text.count("<svg") == 2 and "ffect" not in text and "dry run" in text


def test_singular_values_against_a_dense_svd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = {**lora_factors("layers.0.q_proj", (30, 20), 8), **lora_factors("layers.0.up_proj", (9, 40), 8)}
    adapter = write_adapter(tmp_path / "a", factors, r=8)
    for number, rank in enumerate((3, 8)):  # also where nothing is cut off
        report = truncate(adapter, tmp_path / str(number), rank=rank, spectra=True)
        for one, family in zip(report.layers, ("attention", "MLP"), strict=True):
            b, a = (factors[f"{one.layer}.lora_{name}.weight"].double() for name in "BA")
            wanted = torch.linalg.svdvals(b @ a)[:8]
            assert one.values == pytest.approx((wanted / wanted[0]).tolist(), abs=1e-6)
            assert one.family == family
    monkeypatch.setattr("adaptertool.tasks.truncate.MAX_VALUES", 6)
    assert [len(one.values) for one in truncate(adapter, tmp_path / "few", rank=3, spectra=True).layers] == [3, 3]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pages = []
    for threads in "13":
        arguments = ["truncate", LORA, "--rank", "2", "--threads", threads, "-o", str(tmp_path / "out"), "--force"]
        assert main_here([*arguments, "--html", str(tmp_path / "page.html")], monkeypatch) == 0
        pages.append((tmp_path / "page.html").read_text().partition("<footer>")[0])
    assert pages[0] == pages[1]


def test_names_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = write_adapter(tmp_path / "a", lora_factors("model.<img src=x onerror=alert(1)>", (16, 16)))
    arguments = ["truncate", str(adapter), "--rank", "2", "-o", str(tmp_path / "<b>out")]
    assert main_here([*arguments, "--html", str(tmp_path / "page.html")], monkeypatch) == 0
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text and "&lt;img" in text and "<b>" not in text


def test_what_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, other = str(tmp_path / "out"), write_checkpoint(tmp_path / "b", {"w": torch.ones(2, 2)})
    arguments = ["truncate", LORA, "--rank", "2", "-o", out]
    assert main_here([*arguments, "--html", str(tmp_path / "none" / "page.html")], monkeypatch) == 2
    assert "cannot be a page" in capsys.readouterr().err
    assert main_here([*arguments, "--base", str(other), "--html", str(tmp_path / "p.html")], monkeypatch) == 3
    assert "28 of 28 modules" in capsys.readouterr().err
    assert main_here([*arguments, "--rename", "a=>b"], monkeypatch) == 2
    assert "renamings are for a base" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_screenshot(tmp_path: Path, page: Path, width: int, dark: bool) -> None:
    look(tmp_path, page, width, dark=dark)


@needs_browser
def test_nothing_is_wider_than_a_phone(tmp_path: Path, page: Path) -> None:
    require_fit(tmp_path, (page, 390))
