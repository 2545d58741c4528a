"""The page of drift: its bytes, what is escaped, and what it looks like in a browser."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FIXTURES, lora_factors, main_here, write_adapter, write_checkpoint
from conftest import adaptertool as command
from PIL import Image

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here to look at the page with")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


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


def chromium(folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [CHROMIUM, *FLAGS, profile, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def test_self_contained_and_whole(page: Path) -> None:
    text = page.read_text()
    assert text.count("<svg") == 2 and "<script" not in text and "currentColor" in text
    assert not re.search(r'(src|href)="(?!#)(?!http://www\.w3\.org)', text.replace("xlink:", ""))
    assert "model.<wbr>layers.<wbr>0.<wbr>self_attn.<wbr>q_proj" in text and "suspect" in text and "overhead" in text


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        done = command(
            "drift", FIXTURES / "base", FIXTURES / "lora", "--html", tmp_path / name, "--threads", ord(name) % 3
        )
        assert done.returncode == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (390, False)])
def test_screenshot(tmp_path: Path, page: Path, width: int, dark: bool) -> None:
    mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
    chromium(tmp_path, *mode, f"--window-size={width},1500", f"--screenshot={tmp_path / 'shot.png'}", page.as_uri())
    picture = np.asarray(Image.open(tmp_path / "shot.png").convert("L")).astype(int)
    assert picture.shape == (1500, width)
    paper = picture[2, 2]
    assert paper < 40 if dark else paper > 215
    for third in np.array_split(abs(picture - paper) > 60, 3):  # ink from the top to the bottom
        assert third.mean() > 0.005
    heat = np.asarray(Image.open(tmp_path / "shot.png").convert("HSV"))
    assert (heat[..., 1] > 120).mean() > 0.02  # colours of the pictures


@needs_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_is_wider_than_the_window(tmp_path: Path, page: Path, width: int) -> None:
    """In a frame of that width, since a window has a least one."""
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<body><iframe id="f" width="{width}" height="900" style="border:0" srcdoc="{html.escape(page.read_text())}">'
        "</iframe><script>onload = () => { const d = f.contentDocument.documentElement;"
        "document.body.dataset.widths = d.scrollWidth + '/' + d.clientWidth }</script>"
    )
    dom = chromium(tmp_path, "--window-size=1400,1000", "--dump-dom", frame.as_uri())
    found = re.search(r'data-widths="(\d+)/(\d+)"', dom)
    assert found is not None
    scroll, client = map(int, found.groups())
    assert scroll == client == width
