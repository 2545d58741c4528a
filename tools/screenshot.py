"""Makes docs/page.png: the page of `drift` for a merge that lacks one of two adapters, as Chromium shows it. Needs
Chromium, and Pillow, which comes with matplotlib."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import adaptertool
from adaptertool.render.drift_page import drift_page

ROOT = Path(__file__).parent.parent
FIXTURES = ROOT / "fixtures"
PICTURE = ROOT / "docs" / "page.png"
WIDTH, HEIGHT = 1120, 930  # pixels
COLOURS = 255  # enough for what a page has, and a third of the bytes


def main() -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("there is no Chromium here to show the page")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        adaptertool.merge(FIXTURES / "base", [FIXTURES / "lora"], folder / "merged")
        report = adaptertool.drift(
            FIXTURES / "base", [FIXTURES / "lora", FIXTURES / "rslora"], merged=folder / "merged"
        )
        text = drift_page(report).replace(str(FIXTURES), "fixtures").replace(f"{folder}/", "")
        (folder / "page.html").write_text(text, encoding="utf-8")
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        shot = [
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={folder / 'shot.png'}",
            f"--user-data-dir={folder / 'p'}",
        ]
        page = (folder / "page.html").as_uri()
        subprocess.run([browser, *flags, *shot, page], check=True, capture_output=True, timeout=120)
        picture = Image.open(folder / "shot.png").convert("RGB").quantize(COLOURS)
        picture.save(PICTURE, optimize=True)
    print(f"{PICTURE}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
