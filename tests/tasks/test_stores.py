"""Commands over inputs in a store: what they make, and say, is what they do of files of this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES, main_here, snapshot
from fake_store import FakeS3, served

import adaptertool
from adaptertool.errors import InputError
from adaptertool.files import objects

NAMES = ("base", "lora", "tuned", "rslora")
THERE = "s3://bucket/models"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    pytest.importorskip("obstore")
    objects.forget()
    for fake in served(monkeypatch):
        for name in NAMES:
            fake.put_tree(FIXTURES / name, f"models/{name}")
        yield fake


WRITE: dict[str, Callable[[str, Path], object]] = {
    "merge": lambda root, out: adaptertool.merge(f"{root}/base", [f"{root}/lora", f"{root}/rslora"], out, sha256=True),
    "method": lambda root, out: adaptertool.merge(
        f"{root}/base", [f"{root}/lora", f"{root}/tuned"], out, method="ties", density=0.5
    ),
    "wise": lambda root, out: adaptertool.wise(f"{root}/base", f"{root}/tuned", out, "0:1:0.5"),
    "as adapter": lambda root, out: adaptertool.wise(f"{root}/base", f"{root}/lora", out, "0.5", as_adapter=True),
    "sum": lambda root, out: adaptertool.sum_adapters([f"{root}/lora", f"{root}/rslora"], out),
    "truncate": lambda root, out: adaptertool.truncate(f"{root}/lora", out, rank=2),
    "extract": lambda root, out: adaptertool.extract(f"{root}/base", f"{root}/tuned", out, rank=2),
}  # fmt: skip


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("command", WRITE)
def test_the_same_is_written(command: str, tmp_path: Path) -> None:
    """With the manifest, to the last byte."""
    for name, root in (("here", str(FIXTURES)), ("there", THERE)):
        (tmp_path / name).mkdir()
        WRITE[command](root, tmp_path / name / "out")
    assert snapshot(tmp_path / "here") == snapshot(tmp_path / "there") != {}


TELL: dict[str, Callable[[str], Any]] = {
    "verify": lambda root: adaptertool.verify(f"{root}/tuned", f"{root}/base", [f"{root}/lora"]),
    "diff": lambda root: adaptertool.diff(f"{root}/base", f"{root}/tuned"),
    "diff of adapters": lambda root: adaptertool.diff(f"{root}/lora", f"{root}/rslora"),
    "inspect": lambda root: adaptertool.inspect(f"{root}/lora", f"{root}/base"),
    "drift": lambda root: adaptertool.drift(f"{root}/base", [f"{root}/lora"], probe=2),
}


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize("command", TELL)
def test_the_same_is_told(command: str) -> None:
    def told(root: str) -> str:
        text = repr(TELL[command](root)).replace(root, "ROOT")
        return re.sub(r"(seconds|memory|bytes_per_second)=[\d.e+-]+", r"\1", text)

    assert told(THERE) == told(str(FIXTURES))


def test_a_checkpoint_in_a_store_is_checked_by_its_manifest(s3: FakeS3, tmp_path: Path) -> None:
    adaptertool.merge(FIXTURES / "base", [FIXTURES / "lora"], tmp_path / "out", sha256=True)
    s3.put_tree(tmp_path / "out", "out")
    here, there = adaptertool.check_files(tmp_path / "out"), adaptertool.check_files("s3://bucket/out")
    assert there.ok
    assert (there.files, there.bytes, there.hashes) == (here.files, here.bytes, here.hashes)
    shard = "model-00001-of-00003.safetensors"
    wrong = bytearray(s3.buckets["bucket"][f"out/{shard}"])
    wrong[-1] ^= 1
    s3.put(f"out/{shard}", bytes(wrong))
    s3.put("out/more", b"")
    objects.forget()
    found = adaptertool.check_files("s3://bucket/out")
    assert {one.name for one in found.wrong} == {shard, "more"}


def test_an_input_that_changes_during_the_run(s3: FakeS3, tmp_path: Path) -> None:
    """It is noticed at the end, and nothing is published."""
    tuned = s3.buckets["bucket"]["models/lora/adapter_model.safetensors"]

    def fault(method: str, target: str) -> None:
        if method == "GET" and target.endswith("lora/adapter_model.safetensors"):
            s3.put("models/base/generation_config.json", b"{}")
            s3.put("models/lora/adapter_model.safetensors", tuned[:-1] + b"\0")

    s3.fault = fault
    with pytest.raises(InputError, match=r"s3://bucket/models/lora/adapter_model\.safetensors changed since"):
        adaptertool.merge(f"{THERE}/base", [f"{THERE}/lora"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_few_requests(s3: FakeS3, tmp_path: Path) -> None:
    """Each costs some 50 ms: of a small file 3 (when it is looked at, when it is read, at the end)."""
    adaptertool.merge(f"{THERE}/base", [f"{THERE}/lora"], tmp_path / "out")
    files = sum(key.startswith(("models/base/", "models/lora/")) for key in s3.buckets["bucket"])
    assert len(s3.log) <= 6 * files + 20


def test_the_command_line(
    s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Addresses are said as they are typed, and no credentials."""
    arguments = ["merge", f"{THERE}/base", f"{THERE}/lora", "-o", str(tmp_path / "out"), "--json"]
    assert main_here(arguments, monkeypatch) in (0, None)
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert report["base"] == f"{THERE}/base"
    assert report["sources"] == [f"{THERE}/lora"]
    assert main_here(["inspect", f"{THERE}/none"], monkeypatch) == 3
    said = "".join(capfd.readouterr())
    assert said == f"adaptertool: {THERE}/none does not exist\n"
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir() if path.suffix == ".json")
    for secret in ("AKIDFAKE", "SECRETFAKE", s3.url):
        assert secret not in out + err + said
        assert secret.encode() not in written
