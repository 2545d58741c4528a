"""OUT in a store: absent or complete, the bytes of a local run, and the same command goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from conftest import FIXTURES, main_here, snapshot
from fake_store import FakeS3

import adaptertool
from adaptertool.errors import InputError, Interrupted, OutputError, StorageError, UsageError
from adaptertool.files.address import Address
from adaptertool.files.upload import put_file
from adaptertool.output import published
from adaptertool.tasks.clean import clean

BASE, LORA, TUNED = FIXTURES / "base", FIXTURES / "lora", FIXTURES / "tuned"
OUT = "s3://bucket/models/out"
SHARD = "model-00002-of-00003.safetensors"
LAST = ["adaptertool.manifest.json", "model.safetensors.index.json", "config.json"]


def merged(tmp_path: Path) -> dict[str, bytes]:
    adaptertool.merge(BASE, [LORA], tmp_path / "local")
    return snapshot(tmp_path / "local")


def written(s3: FakeS3) -> list[str]:
    """Keys below OUT, in the order in which they were written."""
    targets = [target.partition("?")[0] for method, target, _ in s3.log if method in ("PUT", "POST")]
    return [target.partition("/models/out/")[2] for target in targets if "/models/out/" in target]


def test_a_merge(s3: FakeS3, tmp_path: Path) -> None:
    adaptertool.merge(BASE, [LORA], OUT)
    assert s3.tree("models/out") == merged(tmp_path)
    assert written(s3)[-3:] == LAST
    assert not s3.uploads


def test_lists_whose_tags_have_no_quotes(s3: FakeS3, tmp_path: Path) -> None:
    """As those of Azure and of Google."""
    s3.listed_tag = "{}"
    s3.fault = lambda method, target: "503" if method == "PUT" and target.endswith(SHARD) else None
    with pytest.raises(StorageError, match="the same command goes on"):
        adaptertool.merge(BASE, [LORA], OUT)
    s3.fault = lambda *_: None
    s3.log.clear()
    adaptertool.merge(BASE, [LORA], OUT)
    assert "model-00001-of-00003.safetensors" not in written(s3)
    assert s3.tree("models/out") == merged(tmp_path)


def test_google(s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = OUT.replace("s3:", "gs:")
    s3.put_tree(BASE, "base")
    adaptertool.merge("gs://bucket/base", [LORA], out)
    assert s3.tree("models/out") == merged(tmp_path)
    assert any(headers.get("x-goog-if-generation-match") == "0" for headers in s3.headers)
    with pytest.raises(OutputError, match="exists"):
        adaptertool.merge(BASE, [LORA], out)
    monkeypatch.delenv("GOOGLE_BEARER_TOKEN")
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    with pytest.raises(StorageError, match="cannot be written to without credentials"):
        adaptertool.merge(BASE, [LORA], f"{out}-2")


def test_a_sweep(s3: FakeS3, tmp_path: Path) -> None:
    adaptertool.wise(BASE, TUNED, OUT, "0:1:0.5", sha256=True)
    adaptertool.wise(BASE, TUNED, tmp_path / "local", "0:1:0.5", sha256=True)
    assert s3.tree("models/out") == snapshot(tmp_path / "local")
    assert all(name.endswith("/config.json") for name in written(s3)[-3:])


def test_large_files_go_in_parts(s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adaptertool.files.upload._PART", 1 << 20)
    large = tmp_path / "large"
    large.write_bytes(os.urandom((3 << 20) + 5))
    put_file(Address("s3:/bucket/large"), large, lambda: False)
    assert sum("partNumber" in target for _, target, _ in s3.log) == 4
    assert s3.buckets["bucket"]["large"] == large.read_bytes()
    with pytest.raises(Interrupted):
        put_file(Address("s3:/bucket/other"), large, lambda: True)
    assert "other" not in s3.buckets["bucket"]
    assert not s3.uploads


@pytest.mark.parametrize("request_of", ["uploads", "uploadId"])
def test_replies_of_an_upload_that_break_off(
    s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request_of: str
) -> None:
    """What opens and ends an upload is a POST, which the library does not send again once a reply has begun."""
    monkeypatch.setattr("adaptertool.files.upload._PART", 1 << 20)
    large = tmp_path / "large"
    large.write_bytes(os.urandom((3 << 20) + 5))
    cut = iter(["cut", "cut"])
    s3.fault = lambda method, target: next(cut, None) if method == "POST" and request_of in target else None
    put_file(Address("s3:/bucket/large"), large, lambda: False)
    assert s3.buckets["bucket"]["large"] == large.read_bytes()
    s3.fault = lambda method, _target: "cut" if method == "POST" else None
    with pytest.raises(StorageError, match="the connection broke off, several times"):
        put_file(Address("s3:/bucket/other"), large, lambda: False)


@pytest.mark.parametrize("fault", ["503", "drop", "lost"])
def test_each_request_that_fails_once(s3: FakeS3, tmp_path: Path, fault: str) -> None:
    """A reply that is lost is of what was done: it counts as ours."""
    seen = set[tuple[str, str]]()

    def once(method: str, target: str) -> str | None:
        known = (method, target) in seen
        seen.add((method, target))
        return None if known else fault

    s3.fault = once
    adaptertool.merge(BASE, [LORA], OUT)
    assert s3.tree("models/out") == merged(tmp_path)


def test_the_same_command_goes_on(s3: FakeS3, tmp_path: Path) -> None:
    s3.fault = lambda method, target: "503" if method == "PUT" and target.endswith(SHARD) else None
    with pytest.raises(StorageError, match=r"kept in s3://bucket/models/out: the same command goes on"):
        adaptertool.merge(BASE, [LORA], OUT)
    first = set(s3.tree("models/out"))
    assert "model-00001-of-00003.safetensors" in first
    assert not first & set(LAST)
    with pytest.raises(InputError, match=r"neither|not finished"):
        adaptertool.inspect(OUT)
    with pytest.raises(OutputError, match="another command has left"):
        adaptertool.merge(BASE, [LORA], OUT, weights=["0.5"])
    s3.fault = lambda *_: None
    s3.log.clear()
    adaptertool.merge(BASE, [LORA], OUT)
    assert "model-00001-of-00003.safetensors" not in written(s3)
    assert s3.tree("models/out") == merged(tmp_path)


def test_a_file_that_is_no_longer_what_its_receipt_says_is_made_anew(s3: FakeS3, tmp_path: Path) -> None:
    s3.fault = lambda method, target: "503" if method == "PUT" and target.endswith(SHARD) else None
    with pytest.raises(StorageError):
        adaptertool.merge(BASE, [LORA], OUT)
    s3.fault = lambda *_: None
    s3.put("models/out/model-00001-of-00003.safetensors", b"others")
    adaptertool.merge(BASE, [LORA], OUT)
    assert s3.tree("models/out") == merged(tmp_path)


@pytest.mark.parametrize("name", LAST)
def test_a_run_that_ends_while_it_publishes(s3: FakeS3, tmp_path: Path, name: str) -> None:
    s3.fault = lambda method, target: "503" if method == "PUT" and target.endswith(f"out/{name}") else None
    with pytest.raises(StorageError):
        adaptertool.merge(BASE, [LORA], OUT)
    assert "config.json" not in s3.tree("models/out")
    s3.fault = lambda *_: None
    adaptertool.merge(BASE, [LORA], OUT)
    assert s3.tree("models/out") == merged(tmp_path)


def test_what_is_changed_during_the_run_is_not_published(s3: FakeS3, tmp_path: Path) -> None:
    def fault(method: str, target: str) -> None:
        if method == "PUT" and target.endswith("model-00003-of-00003.safetensors"):
            s3.put("models/out/model-00001-of-00003.safetensors", b"others")

    s3.fault = fault
    with pytest.raises(StorageError, match="removed or changed during the run; run again"):
        adaptertool.merge(BASE, [LORA], OUT)
    assert not set(LAST) & set(s3.tree("models/out"))
    s3.fault = lambda *_: None
    adaptertool.merge(BASE, [LORA], OUT)
    assert s3.tree("models/out") == merged(tmp_path)


def test_two_runs_of_one_command(s3: FakeS3, tmp_path: Path) -> None:
    """The second comes in the middle of the first, and is done before it."""
    inner = list[str]()

    def fault(method: str, target: str) -> str | None:
        if method == "PUT" and target.endswith(SHARD) and not inner:
            inner.append(target)
            return "503"
        return None

    s3.fault = fault
    adaptertool.merge(BASE, [LORA], OUT)
    assert s3.tree("models/out") == merged(tmp_path)
    with pytest.raises(OutputError, match="exists"):
        adaptertool.merge(BASE, [LORA], OUT)


def test_clean(s3: FakeS3, tmp_path: Path) -> None:
    s3.put("models/outer/x", b"1")
    s3.fault = lambda method, target: "503" if method == "PUT" and target.endswith(SHARD) else None
    with pytest.raises(StorageError):
        adaptertool.merge(BASE, [LORA], OUT)
    s3.fault = lambda *_: None
    (found,) = clean(OUT)
    assert found.startswith(f"{OUT}/.adaptertool-")
    assert s3.tree("models/out") == {}
    assert s3.tree("models/outer") == {"x": b"1"}
    adaptertool.merge(BASE, [LORA], OUT)
    assert clean(OUT) == ()
    assert s3.tree("models/out") == merged(tmp_path)


def test_an_error_that_no_later_run_gets_over_leaves_nothing(s3: FakeS3) -> None:
    def fault(method: str, target: str) -> None:
        if method == "PUT" and target.endswith(SHARD):
            s3.put("models/lora/adapter_config.json", s3.buckets["bucket"]["models/lora/adapter_config.json"] + b" ")

    s3.put_tree(LORA, "models/lora")
    s3.fault = fault
    with pytest.raises(InputError, match="changed since"):
        adaptertool.merge(BASE, ["s3://bucket/models/lora"], OUT)
    assert s3.tree("models/out") == {}


def test_what_is_there_is_never_replaced(s3: FakeS3) -> None:
    s3.put("models/out/x", b"theirs")
    with pytest.raises(OutputError, match=f"{OUT} exists; choose another OUT"):
        adaptertool.merge(BASE, [LORA], OUT)
    with pytest.raises(OutputError, match="not made by adaptertool"):
        adaptertool.merge(BASE, [LORA], OUT, force=True)
    s3.put("models/file", b"theirs")
    with pytest.raises(OutputError, match="is an object"):
        adaptertool.merge(BASE, [LORA], "s3://bucket/models/file")
    assert s3.tree("models") == {"out/x": b"theirs", "file": b"theirs"}


@pytest.mark.parametrize(
    ("out", "options", "words"),
    [
        ("s3://bucket", {}, "a whole bucket"),
        ("s3://bucket/x.safetensors", {}, "named like a file, but this run makes a directory"),
        ("out", {"scratch": "x"}, "--scratch is for an OUT in a store"),
    ],
)
def test_calls_that_are_refused(
    s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str, options: dict[str, object], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=words):
        adaptertool.merge(BASE, [LORA], out, **options)  # type: ignore[arg-type]
    assert not s3.buckets["bucket"]


def test_no_bucket(s3: FakeS3) -> None:
    with pytest.raises(InputError, match="s3://none does not exist: there is no such bucket"):
        adaptertool.merge(BASE, [LORA], "s3://none/out")
    assert not s3.buckets["bucket"]


def test_a_scratch_folder_that_is_not_there(s3: FakeS3, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"choose another \(--scratch\)"):
        adaptertool.merge(BASE, [LORA], OUT, scratch=tmp_path / "none")
    assert not s3.buckets["bucket"]


def test_the_command_line(s3: FakeS3, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert main_here(["merge", str(BASE), str(LORA), "-o", OUT], monkeypatch) in (0, None)
    assert main_here(["verify", OUT], monkeypatch) in (0, None)
    assert main_here(["clean", OUT], monkeypatch) in (0, None)
    said = "".join(capfd.readouterr())
    assert f"-> {OUT}" in said
    assert f"{OUT}: all" in said
    assert not any(secret in said for secret in ("AKIDFAKE", "SECRETFAKE", s3.url))


def test_in_parts(s3: FakeS3, tmp_path: Path) -> None:
    """By whomever, again, and after a shard was replaced: the bytes of a local run; and then OUT is as it is."""
    file, expected = tmp_path / "plan.json", merged(tmp_path)
    adaptertool.plan_merge(BASE, [LORA], OUT, file)
    with pytest.raises(StorageError, match="3 of 3 shards"):
        adaptertool.finish(file)
    for part in (2, 0, 0, 1):
        adaptertool.run_part(file, part, 3, verify=part == 1)
    s3.put(f"models/out/{SHARD}", b"another")
    with pytest.raises(StorageError, match="1 of 3 shards"):
        adaptertool.finish(file)
    assert adaptertool.run_part(file).made == (SHARD,)
    assert adaptertool.finish(file, verify=True).out == OUT
    assert s3.tree("models/out") == expected
    assert adaptertool.run_part(file).published and adaptertool.finish(file).schema == "published/1"
    assert s3.tree("models/out") == expected and not s3.uploads


@pytest.mark.usefixtures("s3")
def test_an_out_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large input that was written after OUT is another one than OUT was made of."""
    file = tmp_path / "plan.json"
    shutil.copytree(LORA, tmp_path / "lora")
    adaptertool.plan_merge(BASE, [tmp_path / "lora"], OUT, file)
    adaptertool.merge(BASE, [tmp_path / "lora"], OUT)
    assert adaptertool.run_part(file).published
    monkeypatch.setattr(published, "_HASHED", 0)
    with pytest.raises(OutputError, match=rf"^{OUT} exists"):
        adaptertool.run_part(file)


def test_a_part_that_begins_as_out_is_published(s3: FakeS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes nothing there any more."""
    file, expected = tmp_path / "plan.json", merged(tmp_path)
    adaptertool.plan_merge(BASE, [LORA], OUT, file)

    def first(*_: object) -> None:
        monkeypatch.setattr("adaptertool.output.parts.check_call", lambda *_: None)
        adaptertool.run_part(file)
        adaptertool.finish(file)
        s3.log.clear()

    monkeypatch.setattr("adaptertool.output.parts.check_call", first)
    assert adaptertool.run_part(file).published
    assert s3.tree("models/out") == expected
    assert [name for name in written(s3) if not name.startswith(".adaptertool")] == []
