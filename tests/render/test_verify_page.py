"""The pages of verify and diff: what they say, what a click does, and what they look like in a browser."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from browser import after_clicks, look, needs_browser, require_fit, require_self_contained
from conftest import FIXTURES, load, main_here, write_checkpoint

import adaptertool

BASE, LORA, TUNED = FIXTURES / "base", FIXTURES / "lora", FIXTURES / "tuned"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge with half the weight that it should have, and how it differs from the base, which has a tensor more."""
    folder = tmp_path_factory.mktemp("pages")
    adaptertool.merge(BASE, [LORA], folder / "half", weights=[0.5])
    more = load(BASE) | {"model.<img src=x>": torch.ones(3)}
    write_checkpoint(folder / "more", more, config=json.loads((BASE / "config.json").read_text()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "86400")
        patch.chdir(folder)
        verify = ["verify", "half", str(BASE), str(LORA), "--html", "verify.html", "-q"]
        assert main_here(verify, patch) == 1
        assert main_here(["verify", str(BASE), str(BASE), "--html", "right.html", "-q"], patch) == 0
        assert main_here(["diff", "half", "more", "--html", "diff.html", "-q"], patch) == 1
    return folder


@pytest.mark.parametrize("name", ["verify", "right", "diff"])
def test_self_contained_and_whole(pages: Path, name: str) -> None:
    require_self_contained((pages / f"{name}.html").read_text())


def rows(text: str, title: str) -> list[list[str]]:
    """The cells of a table."""
    table = text[text.index(f"<caption>{title}</caption>") :].split("</table>")[0]
    return [re.findall(r'data-value="([^"]*)"', row) for row in table.split("<tbody>")[1].split("</tr>")[:-1]]


def test_what_verify_says(pages: Path) -> None:
    text = (pages / "verify.html").read_text()
    assert '<span class="badge wrong">WRONG</span> 11 exact, 0 within rounding, 28 wrong; found: wrong-scale' in text
    assert "<title>Is half the merge of base + lora?: WRONG · adaptertool verify</title>" in text
    report = adaptertool.verify(pages / "half", BASE, [LORA])
    told = {row[0]: row[1:] for row in rows(text, "Tensors, the worst first")}
    assert told.keys() == {one.name for one in report.tensors}
    for one in report.tensors:
        assert told[one.name][0] == one.status and (one.rel_error is None or one.status != "wrong" or (
            told[one.name][2:] == [f"{one.fitted_scale:.4g}", f"{one.max_ulp:,}", f"{one.rel_error:.2e}"]
        ))  # fmt: skip
    groups = rows(text, "What is wrong")
    assert sum(int(row[2]) for row in groups) == 28 and {row[1] for row in groups} == {"wrong-scale"}
    assert text.count("<svg") == 1
    right = (pages / "right.html").read_text()
    assert '<span class="badge right">right</span> 39 exact' in right and "<svg" not in right


def test_what_diff_says(pages: Path) -> None:
    text = (pages / "diff.html").read_text()
    assert '<span class="badge wrong">DIFFERENT</span> 11 of 40 tensors hold the same bits' in text
    assert "&lt;img src=x&gt;" in text and "<img" not in text
    one, other = load(pages / "half"), load(BASE)
    for name, *cells in rows(text, "Tensors that differ, the furthest first"):
        if cells[0] == "changed":
            a, b = one[name].double(), other[name].double()
            assert cells[1] == f"{(a != b).double().mean():.1%}"
            assert float(cells[2]) == pytest.approx(((b - a).norm() / a.norm()).item(), rel=0.006)
            assert float(cells[4]) == pytest.approx((b - a).abs().max().item(), rel=0.006)


def test_the_footer_tells_how_the_page_was_made(pages: Path) -> None:
    text = (pages / "verify.html").read_text().partition("<footer>")[2]
    assert "1970-01-02 00:00 UTC" in text and f"adaptertool {adaptertool.__version__}, Python 3" in text
    assert f"adaptertool verify half {BASE} {LORA} --html verify.html -q" in text and text.count("BLAKE3") == 3


@pytest.mark.parametrize("command", [["verify", BASE, BASE], ["diff", BASE, BASE]])
def test_what_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[object]
) -> None:
    precious = tmp_path / "weights.safetensors"
    precious.write_bytes(b"not a page")
    asked = [*map(str, command), "--html"]
    assert main_here([*asked, str(tmp_path / "none" / "page.html")], monkeypatch) == 2
    assert main_here([*asked, str(precious)], monkeypatch) == 2
    assert "is no HTML page" in capsys.readouterr().err and precious.read_bytes() == b"not a page"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert main_here([*asked, str(tmp_path / "page.html")], monkeypatch) == 2
    assert "SOURCE_DATE_EPOCH is yesterday" in capsys.readouterr().err and list(tmp_path.iterdir()) == [precious]


def test_a_long_table_says_that_it_is_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("adaptertool.render.sheet.ROWS", 5)
    monkeypatch.setattr("adaptertool.render.page.ROWS", 5)
    assert main_here(["diff", str(TUNED), str(BASE), "--html", str(tmp_path / "page.html"), "-q"], monkeypatch) == 1
    text = (tmp_path / "page.html").read_text()
    assert len(rows(text, "Tensors that differ, the furthest first")) == 5 and "The first 5 of 39; --json" in text


@needs_browser
def test_sorting_and_filtering(pages: Path, tmp_path: Path) -> None:
    report = adaptertool.verify(pages / "half", BASE, [LORA])
    script = """
      const table = [...d.querySelectorAll("table")].at(-1), heads = table.tHead.rows[0].cells, body = table.tBodies[0];
      const names = () => [...body.rows].filter((row) => !row.hidden).map((row) => row.cells[0].dataset.value);
      const click = (place) => heads[place].querySelector("[role=button]").click();
      const place = [...heads].findIndex((head) => head.textContent === "rel error");
      click(place); const down = names(); click(place); const up = names(); const sorted = heads[place].ariaSort;
      const box = d.querySelector("input"), view = d.defaultView;
      box.value = "layers.3. gate"; box.dispatchEvent(new view.Event("input"));
      return JSON.stringify({ down, up, sorted, left: names(), count: d.querySelector(".filter span").textContent });"""
    found = json.loads(after_clicks(tmp_path, pages / "verify.html", script))
    errors = {one.name: float(f"{one.rel_error:.2e}") for one in report.tensors if one.rel_error}
    down = [errors[name] for name in found["down"][: len(errors)]]
    assert down == sorted(errors.values(), reverse=True) and len(found["down"]) == 39
    assert [errors[name] for name in found["up"][: len(errors)]] == sorted(errors.values())
    assert found["sorted"] == "ascending" and found["left"] == ["model.layers.3.mlp.gate_proj.weight"]
    assert found["count"] == "1 of 39 rows"


@needs_browser
@pytest.mark.parametrize(("name", "dark"), [("verify", False), ("diff", True)])
def test_screenshot(pages: Path, tmp_path: Path, name: str, dark: bool) -> None:
    look(tmp_path, pages / f"{name}.html", 1280, dark=dark, colour=0.01)


@needs_browser
def test_nothing_is_wider_than_a_phone(pages: Path, tmp_path: Path) -> None:
    require_fit(tmp_path, *((pages / f"{name}.html", 390) for name in ("verify", "diff")))
