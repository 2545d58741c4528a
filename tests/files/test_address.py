"""Addresses in stores: they are paths, printed as typed, and hold no secrets."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from adaptertool.arguments import as_path
from adaptertool.errors import UsageError
from adaptertool.files import LOCAL, store_of
from adaptertool.files.address import Address


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_an_address_is_a_path(scheme: str) -> None:
    path = as_path(f"{scheme}://bucket/models/base/", "BASE")
    assert isinstance(path, Address)
    assert str(path) == f"{scheme}://bucket/models/base"
    assert str(path / "x.json") == f"{scheme}://bucket/models/base/x.json"
    assert isinstance((path / "x.json").parent, Address)
    assert (path / "x.json").parent == path
    assert {path / "x.json": 1}[(path / "x.json").with_name("y").with_name("x.json")] == 1
    assert (path / "a" / "x.json").relative_to(path).as_posix() == "a/x.json"
    assert (path.name, path.suffix, path.resolve(), path.resolve().name) == ("base", "", path, "base")
    assert path in (path / "a" / "b").parents
    assert sorted([path / "b", path / "a"]) == [path / "a", path / "b"]
    assert pickle.loads(pickle.dumps(path)) == path
    assert as_path(path, "BASE") == path
    assert str(as_path(Path(f"{scheme}://bucket/x"), "BASE")) == f"{scheme}://bucket/x"
    assert store_of(path).scheme == store_of(as_path(f"{scheme}://bucket", "BASE")).scheme == scheme


@pytest.mark.parametrize("text", ["x", "./s3/x", "/s3:/x", "s3", "s3:x", "x:/y", "./x://y"])
def test_others_are_of_this_machine(text: str) -> None:
    assert type(as_path(text, "BASE")) is type(Path())
    assert store_of(as_path(text, "BASE")) is LOCAL


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3:///key", "names no bucket"),
        ("gs://-x/y", "names no bucket"),
        ("s3://b/x/../y", "a part '..'"),
        ("s3://b/./y", "a part '.'"),
        ("s3://b/x//y", "two slashes"),
        ("az://c/\x1b", "a part"),
    ],
)
def test_what_no_store_has_is_refused(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        as_path(text, "BASE")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("https://user:SECRET@host/x", "which is not read: download it"),
        ("https:/user:SECRET@host/x", "which is not read: download it"),  # as pathlib has it
        ("HTTPS://host/x?X-Amz-Signature=SECRET", "an address of https://"),
        ("hf://SECRET", "hf download ORG/NAME"),
        ("https://huggingface.co/org/small", "`hf download org/small` first"),
        ("http://hf.co/org/small/tree/main", "`hf download org/small` first"),
        ("https://huggingface.co/org/small?token=SECRET", "which is not read: download it"),
        ("file:///SECRET", "the path alone"),
        ("s3a://SECRET/x", "S3 is s3://"),
        ("abfss://SECRET@account/x", "az://CONTAINER"),
        ("S3x://SECRET", "an address of s3x://"),
    ],
)
def test_other_addresses_are_refused_and_not_repeated(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        as_path(text, "BASE")
    assert "SECRET" not in str(caught.value)


def test_schemes_have_no_case() -> None:
    assert str(as_path("S3://Bucket/Key", "BASE")) == "s3://Bucket/Key"
    with pytest.raises(UsageError, match="credentials are taken from the environment"):
        as_path("GS://b/x?x-goog-signature=1", "BASE")


@pytest.mark.parametrize(
    "text",
    [
        "s3://AKID:SECRET@bucket/x",
        "s3://SECRET@bucket/x",
        "az://container/x?sv=2024&sig=SECRET",
        "s3://b/x?X-Amz-Credential=SECRET",
        "gs://b/x?X-Goog-Signature=SECRET",
    ],
)
def test_secrets_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="credentials are taken from the environment") as caught:
        as_path(text, "BASE")
    assert "SECRET" not in str(caught.value)


def test_messages_hold_no_secrets() -> None:
    """Of arguments that are no paths, and of what files say."""
    text = "x 'https://u:SECRET@host/a@b?X-Amz-Signature=SECRET&n=1' s3://b/k@1 y"
    assert str(UsageError(text)) == "x 'https://...@host/a@b?X-Amz-Signature=...&n=1' s3://b/k@1 y"
    assert UsageError(text).on_command_line == str(UsageError(text))
