"""Pages as headless Chromium shows them."""

from __future__ import annotations

import base64
import hashlib
import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

_CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
needs_browser = pytest.mark.skipif(_CHROMIUM is None, reason="no Chromium here to look at the page with")
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
VIEWS = [(1280, False), (1280, True), (390, False)]  # width, dark


def _chromium(folder: Path, *arguments: str) -> str:
    assert _CHROMIUM is not None
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [_CHROMIUM, *_FLAGS, profile, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


def look(folder: Path, page: Path, width: int, *, dark: bool, colour: float = 0.02) -> None:
    """Ink from the top of the page to the bottom, on paper that fits the mode, and colours of pictures: a share of
    `colour` at least."""
    mode = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _chromium(folder, *mode, f"--window-size={width},1500", f"--screenshot={folder / 'shot.png'}", page.as_uri())
    picture = np.asarray(Image.open(folder / "shot.png").convert("L")).astype(int)
    assert picture.shape == (1500, width)
    paper = picture[2, 2]
    assert paper < 40 if dark else paper > 215
    for third in np.array_split(abs(picture - paper) > 60, 3):
        assert third.mean() > 0.005
    colours = np.asarray(Image.open(folder / "shot.png").convert("HSV"))
    assert (colours[..., 1] > 120).mean() > colour


def require_fit(folder: Path, *shown: tuple[Path, int]) -> None:
    """No page is wider than a frame of the width that stands beside it, since a window has a least one. All of them in
    one browser, which takes a second to start."""
    frame, style = folder / "frame.html", "height=900 style='border:0'"
    frames = "".join(
        f'<iframe width="{width}" {style} srcdoc="{html.escape(page.read_text())}"></iframe>' for page, width in shown
    )
    script = """onload = () => {
        const widths = f => { const d = f.contentDocument.documentElement; return d.scrollWidth + '/' + d.clientWidth };
        document.body.dataset.widths = [...document.querySelectorAll('iframe')].map(widths).join(' ') }"""
    frame.write_text(f"<body>{frames}<script>{script}</script>")
    dom = _chromium(folder, "--window-size=1400,1000", "--dump-dom", frame.as_uri())
    found = re.search(r'data-widths="([^"]*)"', dom)
    assert found is not None
    for told, (page, width) in zip(found[1].split(), shown, strict=True):
        assert told == f"{width}/{width}", page.name


def after_clicks(folder: Path, page: Path, script: str) -> str:
    """What a script returns that has the document of the page as `d`, once the page is loaded."""
    frame = folder / "clicks.html"
    frame.write_text(
        f'<body><iframe id="f" width="1200" height="900" srcdoc="{html.escape(page.read_text())}"></iframe><script>'
        f"onload = () => {{ document.body.dataset.found = (d => {{ {script} }})(f.contentDocument) }}</script>"
    )
    dom = _chromium(folder, "--window-size=1400,1000", "--dump-dom", frame.as_uri())
    found = re.search(r'data-found="([^"]*)"', dom)
    assert found is not None
    return html.unescape(found[1])


VOID = {"meta", "wbr", "br", "input"}


class Nesting(HTMLParser):
    """Whether every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  # as it is called
        self.seen.add(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  # of pictures
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, tag


def require_self_contained(text: str) -> None:
    """A whole page that reaches for nothing outside itself, and has no script but its own, which alone may run."""
    parser = Nesting()
    parser.feed(text)
    assert not parser.open and {"html", "table", "h1", "caption", "footer"} <= parser.seen
    assert not parser.seen & {"link", "iframe", "img", "object"} and "@import" not in text
    assert not re.search(r'(src|href)="(?!#)(?!http://www\.w3\.org)', text.replace("xlink:", ""))
    assert not re.search(r"url\((?!#)", text)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert text.count("<script") == 1 and f"script-src 'sha256-{hashed}'" in text and "default-src 'none'" in text
    assert "mathdefault" not in text  # numbers on axes are no formulas
