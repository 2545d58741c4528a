"""What users ask of an OUT in a store as of one here: one file, adapters, --verify, --force."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FIXTURES, snapshot
from fake_store import FakeS3

import adaptertool
from adaptertool.errors import OutputError, StorageError, UnsupportedError, UsageError
from adaptertool.files import upload
from adaptertool.output import verified

BASE, LORA, TUNED = FIXTURES / "base", FIXTURES / "lora", FIXTURES / "tuned"
OUT = "s3://bucket/models/out"
SHARD = "model-00002-of-00003.safetensors"
FILE = "s3://bucket/models/one.safetensors"


def refused_once(name: str) -> Callable[[str, str], str | None]:
    return lambda method, target: "503" if method == "PUT" and target.partition("?")[0].endswith(name) else None


ADAPTERS: dict[str, Callable[[str], object]] = {
    "sum": lambda out: adaptertool.sum_adapters([LORA, FIXTURES / "rslora"], out),
    "truncate": lambda out: adaptertool.truncate(LORA, out, rank=2),
    "extract": lambda out: adaptertool.extract(BASE, TUNED, out, rank=2),
    "wise": lambda out: adaptertool.wise(BASE, LORA, out, "0.5", as_adapter=True),
    "convert": lambda out: adaptertool.convert(LORA, f"{out}.safetensors", to="kohya", base=BASE),
}


@pytest.mark.parametrize("command", ADAPTERS)
def test_adapters(s3: FakeS3, command: str, tmp_path: Path) -> None:
    """The bytes of a local run; the config last, and nothing else stays."""
    (tmp_path / "here").mkdir()
    ADAPTERS[command](str(tmp_path / "here" / "out"))
    ADAPTERS[command](OUT)
    assert s3.tree("models") == snapshot(tmp_path / "here")
    puts = [target for method, target, _ in s3.log if method == "PUT"]
    assert command == "convert" or puts[-1].endswith("adapter_config.json")
    with pytest.raises(OutputError, match=r"exists|is an object"):
        ADAPTERS[command](OUT)
    assert s3.tree("models") == snapshot(tmp_path / "here")


def test_an_adapter_whose_sending_fails(s3: FakeS3) -> None:
    """What was sent of it is not taken for one; the same command, or `clean`, goes on from there."""
    s3.fault = refused_once("adapter_config.json")
    for _ in range(2):
        with pytest.raises(StorageError, match="cannot be written: 503"):
            ADAPTERS["sum"](OUT)
        assert "adapter_config.json" not in s3.tree("models/out")
    s3.fault = lambda *_: None
    with pytest.raises(OutputError, match="another command has left"):
        ADAPTERS["truncate"](OUT)
    ADAPTERS["sum"](OUT)
    assert not [name for name in s3.tree("models/out") if name.startswith(".")]
    s3.buckets["bucket"].clear()
    s3.fault = refused_once("adapter_config.json")
    with pytest.raises(StorageError):
        ADAPTERS["sum"](OUT)
    s3.fault = lambda *_: None
    assert len(adaptertool.tasks.clean.clean(OUT)) == 1
    assert s3.tree("models/out") == {}


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A base that is one file."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    tensors = {name: tensor for path in BASE.glob("*.safetensors") for name, tensor in load_file(path).items()}
    save_file(tensors, tmp_path / "base.safetensors")
    shutil.copy(BASE / "config.json", tmp_path)
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize("whole", [1 << 30, 1 << 10])
def test_one_file(s3: FakeS3, one: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: int) -> None:
    monkeypatch.setattr(upload, "WHOLE", whole)
    adaptertool.merge(one, [LORA], tmp_path / "out.safetensors")
    adaptertool.merge(one, [LORA], FILE, verify=True)
    assert s3.tree("models") == {"one.safetensors": (tmp_path / "out.safetensors").read_bytes()}
    for force in (False, True):
        with pytest.raises(OutputError, match="is an object"):
            adaptertool.merge(one, [LORA], FILE, force=force)
    with pytest.raises(UsageError, match="without a place for SHA256SUMS"):
        adaptertool.merge(one, [LORA], FILE.replace("one", "two"), sha256=True)
    with pytest.raises(UsageError, match="is sent to a store whole"):
        adaptertool.plan_merge(one, [LORA], FILE.replace("one", "two"), tmp_path / "plan.json")


def test_one_file_that_comes_to_exist(s3: FakeS3, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late() -> None:
        s3.put("models/one.safetensors", b"theirs")

    monkeypatch.setattr(verified, "verify_outputs", lambda *_: late())
    with pytest.raises(OutputError, match="came to exist during the run"):
        adaptertool.merge(one, [LORA], FILE, verify=True)
    assert s3.tree("models") == {"one.safetensors": b"theirs"}


def test_verify_reads_the_store(s3: FakeS3, tmp_path: Path) -> None:
    """A shard that is other bytes there is found, and made anew by the same command. The tag tells nothing."""

    def flip() -> None:
        shard = bytearray(s3.buckets["bucket"][f"models/out/{SHARD}"])
        shard[-1] ^= 1
        s3.put(f"models/out/{SHARD}", bytes(shard), tag=s3.tags["bucket", f"models/out/{SHARD}"])

    adaptertool.merge(BASE, [LORA], tmp_path / "local")
    s3.fault = lambda method, target: flip() if method == "PUT" and "model-00003" in target else None  # type: ignore[func-returns-value]
    with pytest.raises(StorageError, match=r"is not what was computed: .*; 5 finished files kept"):
        adaptertool.merge(BASE, [LORA], OUT, verify=True)
    assert "config.json" not in s3.tree("models/out")
    s3.fault = lambda *_: None
    assert adaptertool.merge(BASE, [LORA], OUT, verify=True).verified
    assert s3.tree("models/out") == snapshot(tmp_path / "local")


def test_verify_of_a_sweep(s3: FakeS3, tmp_path: Path) -> None:
    adaptertool.wise(BASE, TUNED, OUT, "0,0.5", verify=True)
    adaptertool.wise(BASE, TUNED, tmp_path / "local", "0,0.5")
    assert s3.tree("models/out") == snapshot(tmp_path / "local")


def test_force_replaces_what_adaptertool_made(s3: FakeS3, tmp_path: Path) -> None:
    """First goes what loaders look for; a removal that was interrupted goes on; and two kinds of OUT."""
    adaptertool.wise(BASE, TUNED, OUT, "0,0.5", sha256=True)
    with pytest.raises(OutputError, match="replace it with --force"):
        adaptertool.merge(BASE, [LORA], OUT)
    old = s3.tree("models/out")
    s3.put("models/out/notes.txt", b"mine")
    with pytest.raises(OutputError, match=r"holds notes\.txt, which adaptertool did not put there"):
        adaptertool.merge(BASE, [LORA], OUT, force=True)
    del s3.buckets["bucket"]["models/out/notes.txt"]
    assert s3.tree("models/out") == old
    s3.fault = lambda method, target: "503" if method == "POST" and "delete" in target else None
    with pytest.raises(StorageError):
        adaptertool.merge(BASE, [LORA], OUT, force=True)
    s3.fault = refused_once(SHARD)
    with pytest.raises(StorageError, match="the same command goes on"):
        adaptertool.merge(BASE, [LORA], OUT, force=True)
    s3.fault = lambda *_: None
    s3.log.clear()
    adaptertool.merge(BASE, [LORA], OUT, force=True)
    assert not any("model-00001" in target for method, target, _ in s3.log if method == "PUT")
    adaptertool.merge(BASE, [LORA], tmp_path / "local")
    assert s3.tree("models/out") == snapshot(tmp_path / "local")
    adaptertool.truncate(LORA, OUT, rank=2, force=True)
    adaptertool.truncate(LORA, tmp_path / "cut", rank=2)
    assert s3.tree("models/out") == snapshot(tmp_path / "cut")
    with pytest.raises(UsageError, match="--force with parts"):
        adaptertool.plan_merge(BASE, [LORA], OUT, tmp_path / "plan.json", force=True)


def test_force_that_fails_says_that_the_old_is_gone(s3: FakeS3) -> None:
    adaptertool.merge(BASE, [LORA], OUT)
    s3.fault = lambda method, target: "503" if method == "PUT" and "model-" in target else None
    with pytest.raises(StorageError, match=r"what was in s3://bucket/models/out is removed already"):
        adaptertool.merge(BASE, [LORA], OUT, force=True)
    assert s3.tree("models/out") == {}


def test_codes_in_a_store_are_not_verified_one_by_one() -> None:
    plan = adaptertool.prepare_merge(BASE, [LORA])
    plan.choices["quantise"] = "keep"  # type: ignore[index]
    with pytest.raises(UnsupportedError, match="`adaptertool verify` later"):
        verified.require_verifiable_alone(plan)
