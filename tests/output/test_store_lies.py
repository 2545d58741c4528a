"""Stores that do not keep to what they should, and objects that change at the wrong moment: found, or harmless."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FIXTURES, snapshot
from fake_store import FakeS3, served

import adaptertool
from adaptertool.errors import InputError
from adaptertool.files import bucket, objects
from adaptertool.files.address import Address
from adaptertool.files.reader import Inputs, stamp_of

LORA, OUT = FIXTURES / "lora", "s3://bucket/models/out"
SHARD = "models/base/model-00002-of-00003.safetensors"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    pytest.importorskip("obstore")
    monkeypatch.setattr(bucket, "_RETRIES", 2)
    bucket._client.cache_clear()
    objects.forget()
    for fake in served(monkeypatch):
        fake.put_tree(FIXTURES / "base", "models/base")
        yield fake


@pytest.fixture
def local(tmp_path: Path) -> dict[str, bytes]:
    adaptertool.merge(FIXTURES / "base", [LORA], tmp_path / "local")
    return snapshot(tmp_path / "local")


def changed(s3: FakeS3) -> None:
    """One byte of a shard's weights: the same size, and the same header."""
    data = bytearray(s3.buckets["bucket"][SHARD])
    data[-3] ^= 1
    s3.put(SHARD, bytes(data))
    s3.time = "Sat, 28 Nov 2026 02:00:01 GMT"


@pytest.mark.parametrize("told_tag", ['"{}"', 'W/"{}"', 'W/"constant"', ""])
@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("moment", ["first bytes", "last bytes"])
def test_a_change_between_the_header_and_the_weights(
    s3: FakeS3, tmp_path: Path, told_tag: str, conditions: bool, moment: str
) -> None:
    s3.told_tag, s3.conditions = told_tag, conditions
    seen = list[str]()

    def fault(method: str, target: str) -> None:
        if SHARD in target:
            seen.append(method)
            if len(seen) == (2 if moment == "first bytes" else 3):
                changed(s3)

    s3.fault = fault
    with pytest.raises(InputError, match="changed since it was first read"):
        adaptertool.merge("s3://bucket/models/base", [LORA], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("told_tag", ['"{}"', 'W/"constant"', ""])
def test_pieces_of_two_versions(s3: FakeS3, told_tag: str) -> None:
    s3.told_tag, s3.conditions = told_tag, False
    path, first, second = Address("s3:/bucket/x"), os.urandom(12 << 20), os.urandom(12 << 20)
    s3.put("x", first)
    with Inputs({path: stamp_of(path)}) as inputs:
        assert inputs.read(path, 0, 9) == first[:9]
        s3.put("x", second)
        s3.time = "Sat, 28 Nov 2026 02:00:01 GMT"
        with pytest.raises(InputError, match="changed since it was first read"):
            inputs.read(path, 11 << 20, 9)


def test_a_change_between_plan_and_run(s3: FakeS3, tmp_path: Path) -> None:
    adaptertool.plan_merge("s3://bucket/models/base", [LORA], tmp_path / "out", tmp_path / "plan.json")
    changed(s3)
    with pytest.raises(InputError, match="is not what comes out now"):
        adaptertool.run_part(tmp_path / "plan.json")


def test_a_list_that_lags(s3: FakeS3, local: dict[str, bytes]) -> None:
    """What was just sent is not told of: the object itself is asked."""
    s3.hidden = lambda key: key.startswith("models/out")
    adaptertool.merge("s3://bucket/models/base", [LORA], OUT)
    assert s3.tree("models/out") == local


def test_a_server_without_conditions(s3: FakeS3, local: dict[str, bytes]) -> None:
    s3.conditions = False
    report = adaptertool.merge("s3://bucket/models/base", [LORA], OUT)
    assert any("replaces objects though it is asked not to" in note for note in report.notes)
    assert s3.tree("models/out") == local


@pytest.mark.parametrize("length", [0, 5])
def test_ranges_that_are_not_those_asked_for(s3: FakeS3, tmp_path: Path, length: int) -> None:
    """A reply that is short, and says so, is no end of the file."""
    s3.put("models/base/model-00002-of-00003.safetensors", s3.buckets["bucket"][SHARD][:length])
    with pytest.raises(InputError, match="cut short"):
        adaptertool.merge("s3://bucket/models/base", [LORA], tmp_path / "out")
