"""The page of inspect: its bytes, what is escaped, and what it looks like in a browser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from browser import VIEWS, look, needs_browser, require_fit, require_self_contained
from conftest import FIXTURES, lora_factors, write_adapter, write_checkpoint
from conftest import adaptertool as command

PAGES = ["adapter", "checkpoint", "refused"]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    named = {
        "adapter": (FIXTURES / "lora", "--base", FIXTURES / "base", "--tokens", 1e6, "--nats-per-token", 1.5),
        "checkpoint": (FIXTURES / "tuned", "--base", FIXTURES / "base"),
        "refused": (FIXTURES / "rslora", "--base", write_checkpoint(folder / "b", {"w": torch.ones(2, 2)})),
    }
    for name, arguments in named.items():
        done = command("inspect", *arguments, "--html", folder / f"{name}.html", "-q")
        assert done.returncode == (name == "refused") and not done.stdout, done.stderr
    return folder


@pytest.mark.parametrize("name", PAGES)
def test_self_contained_and_whole(pages: Path, name: str) -> None:
    text = (pages / f"{name}.html").read_text()
    require_self_contained(text)
    assert "<svg" in text


def test_what_the_pages_say(pages: Path) -> None:
    adapter, checkpoint, refused = ((pages / f"{name}.html").read_text() for name in PAGES)
    assert adapter.count("<svg") == 3 and "Effective rank by layer and module" in adapter and ">fits<" in adapter
    assert "data / capacity" in adapter and "model.<wbr>layers.<wbr>*.<wbr>mlp.<wbr>up_proj" in adapter
    assert checkpoint.count("<svg") == 1 and "model.<wbr>safetensors" in checkpoint
    assert refused.count("<svg") == 2 and ">refused<" in refused and "merge refuses it" in refused


def test_an_adapter_without_spectra_has_a_page(tmp_path: Path) -> None:
    done = command("inspect", FIXTURES / "lora", "--no-spectra", "--html", tmp_path / "page.html")
    assert done.returncode == 0 and (tmp_path / "page.html").read_text().count("<svg") == 0


def test_names_are_escaped(tmp_path: Path) -> None:
    name = "model.<img src=x onerror=alert(1)>"
    adapter = write_adapter(tmp_path / "a", lora_factors(name, (16, 16)), base_model_name_or_path="<b>$x$</b>")
    done = command("inspect", adapter, "--html", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "page.html").read_text()
    assert "<img" not in text and "&lt;img" in text and "<b>" not in text


def test_where_no_page_can_be(tmp_path: Path) -> None:
    done = command("inspect", FIXTURES / "lora", "--html", "none/page.html", cwd=tmp_path)
    assert done.returncode == 2 and "cannot be a page" in done.stderr


@needs_browser
@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), VIEWS)
def test_screenshot(tmp_path: Path, pages: Path, width: int, dark: bool) -> None:
    look(tmp_path, pages / "adapter.html", width, dark=dark)


@needs_browser
def test_nothing_is_wider_than_a_phone(tmp_path: Path, pages: Path) -> None:
    require_fit(tmp_path, *((pages / f"{name}.html", 390) for name in PAGES))
