"""Object stores: what is asked of them, and what becomes of their faults. The server is in this process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from fake_store import FakeS3, served

from adaptertool.errors import AdapterToolError, InputError, StorageError
from adaptertool.files import ahead, bucket, objects, store_of
from adaptertool.files.address import Address
from adaptertool.files.reader import Inputs, exists, is_file, is_folder, names_in, open_input, read_exact, stamp_of

ROOT = Address("s3:/bucket")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeS3]:
    pytest.importorskip("obstore")
    monkeypatch.setattr(bucket, "_RETRIES", 2)
    bucket._client.cache_clear()
    objects.forget()
    yield from served(monkeypatch)


def read(path: Path) -> bytes:
    with open_input(path) as file:
        return read_exact(file, 0, file.size)


def test_a_header_takes_two_requests(s3: FakeS3) -> None:
    s3.put("x", os.urandom(3 << 20))
    with open_input(ROOT / "x") as file:
        read_exact(file, 0, 512)
        read_exact(file, 8, 100_000)
    assert [method for method, *_ in s3.log] == ["HEAD", "GET"]
    assert s3.log[1][2] == f"bytes=0-{(1 << 20) - 1}"


def test_a_folder_is_listed_once(s3: FakeS3) -> None:
    for name in ("a", "b", "c/d", "c/e/f"):
        s3.put(f"model/{name}", b"x")
    assert is_folder(ROOT / "model")
    assert [name for name in "abcdefgh" if exists(ROOT / "model" / name)] == ["a", "b", "c"]
    assert names_in(ROOT / "model", "*") == ["a", "b", "c"]
    assert len([method for method, *_ in s3.log if method == "GET"]) == 1


def test_names_of_all_kinds(s3: FakeS3) -> None:
    names = ["é", "two words", "a+b", "a%20b", "a#b", "a?b", "a&b=c", "~x", "model-00001-of-00002.safetensors", "日本"]
    for name in names:
        s3.put(f"model/{name}", name.encode())
    assert names_in(ROOT / "model", "*") == sorted(names)
    assert [read(ROOT / "model" / name).decode() for name in names] == names


def test_long_lists_are_read_to_their_end(s3: FakeS3) -> None:
    for number in range(2500):
        s3.put(f"model/{number:04}", b"x")
    assert names_in(ROOT / "model", "*") == [f"{number:04}" for number in range(2500)]


def test_a_key_that_stands_for_a_folder_is_no_file(s3: FakeS3) -> None:
    """The console of AWS makes such, and so do others."""
    for key in ("model/", "model/x", "model/sub/", "empty/"):
        s3.put(key, b"")
    assert store_of(ROOT).look(ROOT / "model") == "folder"
    assert names_in(ROOT / "model", "*") == ["sub", "x"]
    assert is_folder(ROOT / "model" / "sub")
    assert not is_file(ROOT / "empty")


def test_a_file_that_changes_while_it_is_open(s3: FakeS3) -> None:
    """Its pieces are asked for on the condition that it is the same still."""
    path, first, second = ROOT / "x", os.urandom(30 << 20), os.urandom(30 << 20)
    s3.put("x", first)
    with Inputs({path: stamp_of(path)}) as inputs:
        assert inputs.read(path, 100, 50) == first[100:150]
        s3.put("x", second)
        with pytest.raises(InputError, match="s3://bucket/x changed since it was first read"):
            inputs.read(path, 25 << 20, 10)
        with pytest.raises(InputError, match="changed since it was first read"):
            inputs.check_unchanged()


def test_a_file_that_vanishes_while_it_is_open(s3: FakeS3) -> None:
    s3.put("x", bytes(20 << 20))
    with open_input(ROOT / "x") as file:
        del s3.buckets["bucket"]["x"]
        with pytest.raises(InputError, match="s3://bucket/x does not exist"):
            read_exact(file, 10 << 20, 10)


@pytest.mark.parametrize("fault", ["503", "cut", "drop"])
def test_single_faults_are_got_over(s3: FakeS3, fault: str) -> None:
    data, asked = os.urandom(3 << 20), set[tuple[str, str]]()
    s3.put("model/x", data)

    def once(method: str, target: str) -> str | None:
        known = (method, target) in asked
        asked.add((method, target))
        return None if known or (method == "HEAD" and fault == "cut") else fault

    s3.fault = once
    assert names_in(ROOT / "model", "*") == ["x"]
    assert read(ROOT / "model" / "x") == data


@pytest.mark.parametrize(("fault", "words"), [("503", "503 Service Unavailable, SlowDown"), ("drop", "connection")])
def test_lasting_faults_are_told(s3: FakeS3, fault: str, words: str) -> None:
    s3.put("x", bytes(3 << 20))
    with open_input(ROOT / "x") as file:
        s3.fault = lambda *_: fault
        with pytest.raises(StorageError, match=f"reading s3://bucket/x failed: .*{words}"):
            read_exact(file, 2 << 20, 10)
    with pytest.raises(StorageError, match=r"s3://bucket/model cannot be listed: "):
        names_in(ROOT / "model", "*")
    with pytest.raises(StorageError, match=r"s3://bucket/y cannot be opened: "):
        open_input(ROOT / "y")


def refusal(path: Path) -> str:
    with pytest.raises(AdapterToolError) as caught:
        open_input(path)
    text = str(caught.value)
    assert "SECRETFAKE" not in text
    assert "http://127" not in text
    return text


def test_what_is_not_there(s3: FakeS3) -> None:
    assert refusal(ROOT / "x") == "s3://bucket/x does not exist"
    assert refusal(Address("s3:/none/x")) == "s3://none does not exist: there is no such bucket"
    s3.put("folder/x", b"")
    assert refusal(ROOT / "folder") == "s3://bucket/folder is not a regular file"
    assert refusal(ROOT) == "s3://bucket is not a regular file"


def test_what_is_refused(s3: FakeS3) -> None:
    s3.fault = lambda *_: "403"
    assert "refuses it (403 Forbidden)" in refusal(ROOT / "x")
    assert "credentials in the environment (AWS_*)" in refusal(ROOT / "x")


def test_an_address_that_nobody_listens_at(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(ROOT / "x")
    assert not s3.log


@pytest.mark.parametrize(("scheme", "words"), [("s3", "AWS_ACCESS_KEY_ID"), ("gs", "gcloud auth"), ("az", "ACCOUNT")])
def test_without_credentials_nobody_is_asked(
    scheme: str, words: str, s3: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in list(os.environ):
        if name.startswith(("AWS_ACCESS", "AWS_SECRET", "GOOGLE_", "AZURE_")):
            monkeypatch.delenv(name)
    text = refusal(Address(f"{scheme}:/bucket/x"))
    assert "credentials" in text
    assert words in text
    assert not s3.log


def test_variables_that_make_no_client(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "SECRETFAKE")
    assert "the variables AWS_* of the environment" in refusal(ROOT / "x")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "SECRETFAKE")
    assert "AZURE_STORAGE_ACCOUNT_NAME" in refusal(Address("az:/container/x"))
    assert not s3.log


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    for credentials in ("x", ""):
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", credentials)
        bucket._client.cache_clear()
        assert "pip install 'adaptertool[stores]'" in refusal(ROOT / "x")


def test_a_process_that_was_forked_is_told(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for ever."""
    s3.put("x", b"1")
    assert read(ROOT / "x") == b"1"
    parent = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: parent + 1)
    assert "start it by `spawn`" in refusal(ROOT / "x")


def test_a_signal_ends_waiting(s3: FakeS3, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(Exception):
        pass

    def stopped(_future: Any, _seconds: float) -> None:
        raise Stopped

    s3.put("x", b"1")
    monkeypatch.setattr("concurrent.futures.Future.exception", stopped)
    monkeypatch.setattr("concurrent.futures.Future.done", lambda _: False)
    with pytest.raises(Stopped):
        open_input(ROOT / "x")


def test_pieces_are_large(s3: FakeS3) -> None:
    data = os.urandom(40 << 20)
    s3.put("x", data)
    path = ROOT / "x"
    with Inputs({path: stamp_of(path)}) as inputs:
        for at in range(0, len(data), 1 << 18):
            assert inputs.read(path, at, 1 << 18) == data[at : at + (1 << 18)]
    asked = [text for method, _, text in s3.log if method == "GET"]
    assert len(asked) == len(set(asked)) == 1 + -(-39 // (ahead.PIECE >> 20))


def test_nothing_is_imported_without_an_address(tmp_path: Path) -> None:
    """And no socket is opened."""
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('a socket')\n"
        "socket.socket = socket.create_connection = refuse\n"
        "from adaptertool.tasks.run import merge\n"
        f"merge({str(FIXTURES / 'base')!r}, [{str(FIXTURES / 'lora')!r}], {str(tmp_path / 'out')!r})\n"
        "assert not [name for name in sys.modules if name.startswith('obstore')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "config.json").exists()
