"""What tells inputs apart, against BLAKE3 computed here."""

from __future__ import annotations

from pathlib import Path

import pytest
from blake3 import blake3
from conftest import FIXTURES

from adaptertool.files import identity as module
from adaptertool.files.identity import identity


def test_a_file_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"weights")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/config.json").write_bytes(b"{}")
    (tmp_path / "README.md").write_bytes(b"not counted")
    whole = blake3(b"weights").hexdigest()
    assert identity(str(tmp_path / "a.safetensors")) == f"7 bytes, BLAKE3 {whole[:32]}"
    lines = f"a.safetensors 7 {whole}\nsub/config.json 2 {blake3(b'{}').hexdigest()}\n"
    assert identity(str(tmp_path)) == f"9 bytes, BLAKE3 {blake3(lines.encode()).hexdigest(32)[:32]}"


def test_a_large_file_is_sampled_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WHOLE", 100)
    monkeypatch.setattr(module, "_END", 10)
    (tmp_path / "a.gguf").write_bytes(bytes(range(200)))
    wanted = blake3(bytes(range(10)) + bytes(range(190, 200))).hexdigest()[:32]
    said = identity(str(tmp_path / "a.gguf"))
    assert said == f"200 bytes, BLAKE3 of the first and last MiB of large files {wanted}"


@pytest.mark.parametrize("path", ["none", "s3://bucket/model", "x" * 5000])
def test_what_is_not_here_has_none(path: str) -> None:
    assert identity(path).startswith("no hash")


def test_models_differ() -> None:
    assert len({identity(str(FIXTURES / name)) for name in ("base", "tuned", "lora")}) == 3
