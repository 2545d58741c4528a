"""The manifest: hash and size of every input and output; SHA256SUMS; provenance; and `verify` of files against it.

All hashes are compared with those of an independent pass over the files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blake3 import blake3
from conftest import FIXTURES, adaptertool, lora_factors, snapshot, write_adapter, write_checkpoint
from safetensors.torch import load_file, save_file

from adaptertool import inspect, merge, sum_adapters, wise
from adaptertool.arithmetic import tiling
from adaptertool.errors import AdapterToolError, InputError, OutputError, StorageError, UsageError
from adaptertool.files import hashing, leftovers, writer
from adaptertool.files.hashing import InOrder, Loans
from adaptertool.output.integrity import check_files
from adaptertool.render.machine import to_json
from adaptertool.render.verify import files_text

MANIFEST, SUMS = "adaptertool.manifest.json", "SHA256SUMS"
PROJ = "model.layers.0.mlp.up_proj"


def facts(path: Path, *, sha256: bool = False) -> dict[str, Any]:
    data = path.read_bytes()
    found: dict[str, Any] = {"size": len(data), "blake3": blake3(data).hexdigest()}
    return found | ({"sha256": hashlib.sha256(data).hexdigest()} if sha256 else {})


def tree(folder: Path, *, sha256: bool = False) -> dict[str, dict[str, Any]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): facts(path, sha256=sha256) for path in files}


def manifest(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
    return content


def checkpoint(folder: Path, *, shards: int = 3, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Path:
    torch.manual_seed(seed)
    tensors = {f"model.layers.{n}.mlp.up_proj.weight": torch.randn(96, 40).to(dtype) for n in range(5)}
    tensors |= {"model.norm.weight": torch.randn(40), "model.layers.0.steps": torch.arange(9)}
    return write_checkpoint(folder, tensors, shards=shards)


def lora(folder: Path, modules: tuple[str, ...] = (PROJ,), **config: Any) -> Path:
    tensors = {key: value for name in modules for key, value in lora_factors(name, (96, 40)).items()}
    return write_adapter(folder, tensors, **config)


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that these small files have many parts, which come out of order."""
    monkeypatch.setattr(tiling, "BLOCK_ELEMENTS", 160)
    monkeypatch.setattr(hashing, "_PIECE", 192)


def check(out: Path, base: Path, *sources: Path, sha256: bool = False) -> dict[str, Any]:
    found = manifest(out)
    assert found["inputs"]["base"] == tree(base, sha256=sha256)
    assert found["inputs"]["sources"] == [tree(source, sha256=sha256) for source in sources]
    expected = tree(out, sha256=sha256)
    del expected[MANIFEST]
    expected.pop(SUMS, None)
    assert found["files"] == expected
    assert str(out.parent) not in (out / MANIFEST).read_text()
    return found


# --- the hashes of inputs ---


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("modules", [(PROJ,), tuple(PROJ.replace("0", str(n)) for n in range(5))], ids=["one", "all"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_file_of_a_merge(tmp_path: Path, threads: int, modules: tuple[str, ...], shards: int) -> None:
    base = checkpoint(tmp_path / "base", shards=shards)
    (base / "sub").mkdir()
    (base / "sub/notes.txt").write_text("notes")
    (base / "empty").write_bytes(b"")
    adapters = [lora(tmp_path / "a", modules), lora(tmp_path / "b", modules)]
    merge(base, adapters, tmp_path / "out", weights=[1, 0.5], threads=threads, compose="mixed", sha256=True)
    found = check(tmp_path / "out", base, *adapters, sha256=True)
    assert found["recipe"] == {
        "command": "merge",
        "base": "base",
        "sources": [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 0.5}],
        "alphas": [1.0],
        "precision": "exact",
        "compose": "mixed",
        "renames": [],
    }


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("alphas", ["0", "1", "0.5", "0,0.25,1"])
def test_two_checkpoints(tmp_path: Path, threads: int, alphas: str) -> None:
    """The tuned one has other shards, in another order, and is read wherever the base is at."""
    base, tuned = checkpoint(tmp_path / "base"), checkpoint(tmp_path / "tuned", shards=2, seed=1)
    for file in ("config.json", "model.safetensors.index.json"):
        assert (tuned / file).exists()
    wise(base, tuned, tmp_path / "out", alphas, threads=threads)
    for folder in sorted((tmp_path / "out").rglob(MANIFEST)):
        found = manifest(folder.parent)
        assert found["inputs"]["base"] == tree(base)
        weights = {name: own for name, own in tree(tuned).items() if name.endswith(".safetensors")}
        assert found["inputs"]["sources"] == [weights]


def test_a_method_on_a_checkpoint_and_an_adapter(tmp_path: Path) -> None:
    base, tuned, adapter = checkpoint(tmp_path / "base"), checkpoint(tmp_path / "tuned", seed=1), lora(tmp_path / "a")
    merge(base, [tuned, adapter], tmp_path / "out", method="ties", density="0.5", threads=2)
    found = manifest(tmp_path / "out")
    weights = {name: own for name, own in tree(tuned).items() if name.endswith(".safetensors")}
    assert found["inputs"] == {"base": tree(base), "sources": [weights, tree(adapter)]}
    assert {"method": "ties", "density": 0.5, "seed": 0, "renames": []}.items() <= found["recipe"].items()


def test_fisher_weights(tmp_path: Path) -> None:
    base, tuned, f0, f1 = (
        checkpoint(tmp_path / name, seed=seed) for seed, name in enumerate(("base", "t", "f0", "f1"))
    )
    for folder in (f0, f1):
        for file in folder.glob("*.safetensors"):
            save_file({name: tensor.abs() for name, tensor in load_file(file).items()}, file)
    wise(base, tuned, tmp_path / "out", "0.5", fisher=(f0, f1))
    found = manifest(tmp_path / "out")["inputs"]
    assert found["base"] == tree(base)
    assert found["sources"] == [
        {name: own for name, own in tree(folder).items() if name.endswith(".safetensors")} for folder in (tuned, f0, f1)
    ]


def test_tensors_that_others_take_the_place_of(tmp_path: Path) -> None:
    """Of a saved module the base's is never read, yet it is in a file that is hashed."""
    base = checkpoint(tmp_path / "base", shards=1)
    saved = {f"{PROJ.replace('0', '3')}.weight": torch.randn(96, 40).bfloat16()}
    adapter = write_adapter(tmp_path / "a", {**lora_factors(PROJ, (96, 40)), **saved})
    merge(base, [adapter], tmp_path / "out", threads=2)
    check(tmp_path / "out", base, adapter)


def test_vocabulary_of_another_size(tmp_path: Path) -> None:
    """Header, index and config are made anew, and the base's embedding is not read."""
    name = "model.embed_tokens.weight"
    tensors = {name: torch.randn(12, 8), "lm_head.weight": torch.randn(12, 8), f"{PROJ}.weight": torch.randn(96, 40)}
    config = {"model_type": "llama", "vocab_size": 12, "tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", tensors, shards=2, config=config)
    saved = {name: torch.randn(16, 8), "lm_head.weight": torch.randn(16, 8)}
    adapter = write_adapter(tmp_path / "a", {**saved, **lora_factors(PROJ, (96, 40))})
    merge(base, [adapter], tmp_path / "out", threads=2)
    check(tmp_path / "out", base, adapter)


@pytest.mark.parametrize("transposed", [False, True])
def test_dora_as_adapter(tmp_path: Path, transposed: bool) -> None:
    """The base is read in part, more than once; the shards of which nothing is read have no hash."""
    shape = (40, 96) if transposed else (96, 40)
    module = "transformer.h.0.mlp.c_fc"
    tensors = {f"transformer.h.{n}.mlp.c_fc.weight": torch.randn(shape) for n in range(4)}
    config = {"model_type": "gpt2" if transposed else "llama", "tie_word_embeddings": False}
    base = write_checkpoint(tmp_path / "base", tensors, shards=2, config=config)
    factors = {**lora_factors(module, (96, 40)), f"{module}.lora_magnitude_vector": torch.rand(96) + 1}
    adapter = write_adapter(tmp_path / "a", factors, use_dora=True, fan_in_fan_out=transposed)
    wise(base, adapter, tmp_path / "out", "0.5", as_adapter=True)
    found, expected = manifest(tmp_path / "out"), tree(base)
    del expected["model-00002-of-00002.safetensors"]["blake3"]
    assert found["inputs"] == {"base": expected, "sources": [tree(adapter)]}


def test_an_adapter_inside_the_base_and_given_twice(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    adapter = lora(base / "lora")
    merge(base, [adapter, adapter], tmp_path / "out")
    check(tmp_path / "out", base, adapter, adapter)


def test_links_of_the_hub_cache(tmp_path: Path) -> None:
    plain = checkpoint(tmp_path / "plain")
    snapshots = tmp_path / "models--x--y/snapshots/0123"
    snapshots.mkdir(parents=True)
    (tmp_path / "models--x--y/blobs").mkdir()
    for number, path in enumerate(sorted(plain.iterdir())):
        shutil.copy(path, tmp_path / f"models--x--y/blobs/{number}")
        (snapshots / path.name).symlink_to(f"../../blobs/{number}")
    adapter = lora(tmp_path / "a")
    merge(snapshots, [adapter], tmp_path / "out")
    check(tmp_path / "out", plain, adapter)


def test_without_copying_in_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_kernel_copy", lambda *_: None)
    base, adapter = checkpoint(tmp_path / "base"), lora(tmp_path / "a")
    merge(base, [adapter], tmp_path / "out")
    check(tmp_path / "out", base, adapter)


@pytest.mark.parametrize("seed", range(20))
def test_parts_in_any_order(seed: int) -> None:
    """Parts overlap, come early, come twice, come with and without their bytes: the hash is that of the file."""
    generator = torch.Generator().manual_seed(seed)

    def number(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    data = os.urandom(number(2000))

    def read(offset: int, view: memoryview) -> None:
        view[:] = data[offset : offset + len(view)]

    state, loans, lent = InOrder(len(data), read, hashing.WITH_SHA256), Loans(), [bytearray(), bytearray()]
    for _ in range(number(60) + 1):
        begin = number(len(data) + 1)
        size = number(len(data) - begin + 1)
        loans.next_job()
        lent.append(bytearray(data[begin : begin + size]))
        gone = lent.pop(0)
        gone[:] = b"x" * len(gone)  # what was lent is used for something else
        how = number(3)
        state.has(begin, size, memoryview(lent[-1]) if how else None, loans if how == 2 else None)
    assert state.digests() == {"blake3": blake3(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest()}


def test_many_shards_need_few_descriptors(tmp_path: Path) -> None:
    """A tuned checkpoint in many files, of a base in one."""
    torch.manual_seed(0)
    tensors = {f"t{n:03}": torch.randn(6) for n in range(300)}
    base = write_checkpoint(tmp_path / "base", tensors)
    tuned = write_checkpoint(tmp_path / "tuned", {name: t + 1 for name, t in tensors.items()}, shards=300)
    most = 0

    def watch(_: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/proc/self/fd")))  # noqa: PTH208

    wise(base, tuned, tmp_path / "out", "0.5", progress=watch)
    assert most < 150
    assert len(manifest(tmp_path / "out")["inputs"]["sources"][0]) == 300


# --- sha256 ---


@pytest.mark.parametrize("alphas", ["0.5", "0,0.5"])
def test_sums_are_those_of_sha256sum(tmp_path: Path, alphas: str) -> None:
    base = checkpoint(tmp_path / "base")
    odd = ["a b.txt", "new\nline.txt", "back\\slash.txt", "ünï.txt", "sub/SHA256SUMS"]
    (base / "sub").mkdir()
    for name in odd:
        (base / name).write_text(name)
    (base / SUMS).write_text("of other files")
    report = wise(base, lora(tmp_path / "a"), tmp_path / "out", alphas, sha256=True)
    assert any(SUMS in note for note in report.notes)
    for path in (tmp_path / "out").rglob(MANIFEST):
        done = subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=path.parent, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len([p for p in path.parent.rglob("*") if p.is_file()]) - 1
    assert check_files(tmp_path / "out").ok
    wise(base, lora(tmp_path / "a"), tmp_path / "out", alphas, force=True)
    assert not (tmp_path / "out" / SUMS).exists()


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    base, adapter, out = checkpoint(tmp_path / "base"), lora(tmp_path / "a"), tmp_path / "out"
    odd = os.fsdecode(b"odd\xff.txt")
    (base / odd).write_text("odd")
    for _ in range(2):  # the second takes the place of the first
        merge(base, [adapter], out, sha256=True, force=True)
        assert check_files(out).ok
        subprocess.run(["sha256sum", "-c", "--strict", SUMS], cwd=out, capture_output=True, check=True)
    assert (facts_of := inspect(out).checkpoint) and facts_of.manifest and facts_of.manifest["changed"] == []
    (out / odd).write_text("even")
    assert [file.name for file in check_files(out).wrong] == [odd]
    assert adaptertool("verify", out).returncode == 1


def test_sums_have_no_place_beside_one_file(tmp_path: Path) -> None:
    base, adapter = checkpoint(tmp_path / "base", shards=1), lora(tmp_path / "a")
    file, out = base / "model.safetensors", tmp_path / "out.safetensors"
    with pytest.raises(UsageError, match="--provenance"):
        merge(file, [adapter], out, sha256=True)
    merge(file, [adapter], out, provenance=tmp_path / "p.json")
    statement = json.loads((tmp_path / "p.json").read_text())
    sha256 = facts(out, sha256=True)["sha256"]
    assert statement["subject"] == [{"name": "out.safetensors", "digest": {"sha256": sha256}}]


# --- provenance ---


def test_provenance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = checkpoint(tmp_path / "base"), lora(tmp_path / "a")
    merge(base, [adapter], tmp_path / "out", weights=[0.5], provenance=tmp_path / "p.json")
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["_type"] == "https://in-toto.io/Statement/v1"
    assert content["predicateType"] == "https://slsa.dev/provenance/v1"
    subjects = {subject["name"]: subject["digest"] for subject in content["subject"]}
    assert subjects == {name: {"sha256": own["sha256"]} for name, own in tree(tmp_path / "out", sha256=True).items()}
    definition, details = content["predicate"]["buildDefinition"], content["predicate"]["runDetails"]
    assert definition["externalParameters"] == manifest(tmp_path / "out")["recipe"]
    assert definition["buildType"] == "pkg:generic/adaptertool#checkpoint/v1"
    found = {dependency["name"]: dependency["digest"]["sha256"] for dependency in definition["resolvedDependencies"]}
    expected = {f"base/{name}": own["sha256"] for name, own in tree(base, sha256=True).items()}
    expected |= {f"sources/0/{name}": own["sha256"] for name, own in tree(adapter, sha256=True).items()}
    assert found == expected
    assert details == {"builder": {"id": "pkg:generic/adaptertool", "version": {"adaptertool": "0.1.0"}}}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    for name in ("q.json", "r.json"):
        merge(base, [adapter], tmp_path / name[0], weights=[0.5], provenance=tmp_path / name)
    assert (tmp_path / "q.json").read_bytes() == (tmp_path / "r.json").read_bytes()
    again = json.loads((tmp_path / "q.json").read_text())
    time = {"startedOn": "2023-11-14T22:13:20Z", "finishedOn": "2023-11-14T22:13:20Z"}
    assert again["predicate"]["runDetails"].pop("metadata") == time
    assert again == content
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        merge(base, [adapter], tmp_path / "z", provenance=tmp_path / "z.json")


REFUSED: dict[str, tuple[Callable[[Path], Path], type[AdapterToolError]]] = {
    "exists": (lambda p: (p / "there.json", (p / "there.json").write_text("dear"))[0], OutputError),
    "link": (lambda p: (p / "link", (p / "link").symlink_to("nowhere"))[0], OutputError),
    "folder": (lambda p: p / "base/..", OutputError),
    "inside OUT": (lambda p: p / "out/p.json", UsageError),
    "OUT": (lambda p: p / "out", UsageError),
    "inside the base": (lambda p: p / "base/p.json", UsageError),
    "inside the adapter": (lambda p: p / "a/../a/p.json", UsageError),
    "no folder": (lambda p: p / "none/p.json", UsageError),
    "no path": (lambda p: p / "x\0y", UsageError),
}


@pytest.mark.parametrize("case", REFUSED)
def test_provenance_that_cannot_be_written(tmp_path: Path, case: str) -> None:
    base, adapter = checkpoint(tmp_path / "base"), lora(tmp_path / "a")
    make, error = REFUSED[case]
    file = make(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(error):
        merge(base, [adapter], tmp_path / "out", provenance=file)
    assert snapshot(tmp_path) == before and not (tmp_path / "out").exists()


def test_provenance_of_the_longest_name(tmp_path: Path) -> None:
    base, adapter, file = checkpoint(tmp_path / "base"), lora(tmp_path / "a"), tmp_path / ("\U0001f9ca" * 63)
    merge(base, [adapter], tmp_path / "out", provenance=file)
    assert b"in-toto" in file.read_bytes()


def test_provenance_replaces_only_its_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a base that is one file stands a config, which is read."""
    base, adapter = checkpoint(tmp_path / "base", shards=1), lora(tmp_path / "a")
    out, file = tmp_path / "out.safetensors", tmp_path / "p.json"
    for number, text in enumerate([None, "", "[]", "{}", '{"predicate": 1}']):
        other = base / "config.json" if text is None else tmp_path / f"{number}.json"
        if text is not None:
            other.write_text(text)
        before = snapshot(tmp_path)
        with pytest.raises(OutputError, match="no provenance by adaptertool"):
            merge(base / "model.safetensors", [adapter], out, provenance=other, force=True)
        assert snapshot(tmp_path) == before
    merge(base, [adapter], tmp_path / "out", provenance=file)
    old = file.read_bytes()
    merge(base, [adapter], tmp_path / "out", weights=[0.5], provenance=file, force=True)
    assert b"in-toto" in file.read_bytes() and file.read_bytes() != old
    late = tmp_path / "late.json"  # comes while the run is at work
    monkeypatch.setattr("adaptertool.output.checkpoint.publish.publish", lambda *_, **__: late.write_text("dear"))
    with pytest.raises(StorageError, match="could not be put in place"):
        merge(base, [adapter], tmp_path / "out2", provenance=late)
    assert late.read_text() == "dear"


def test_provenance_is_there_only_with_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = checkpoint(tmp_path / "base"), lora(tmp_path / "a")
    real, file = os.link, tmp_path / "p.json"

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("adaptertool.files.publish.publish", fail)
        with pytest.raises(OSError):
            merge(base, [adapter], tmp_path / "out", provenance=file)
    assert not file.exists() and not (tmp_path / "out").exists()

    def not_that(source: Any, target: Any, **options: Any) -> None:
        (fail if os.fspath(target) == str(file) else real)(source, target, **options)

    with monkeypatch.context() as patched:
        patched.setattr(os, "link", not_that)
        with pytest.raises(StorageError, match="OUT is complete, but the provenance") as caught:
            merge(base, [adapter], tmp_path / "out", provenance=file)
    assert "goes on" not in str(caught.value)
    assert check_files(tmp_path / "out").ok and not file.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "base", "out"]
    assert real is os.link


# --- files against the manifest ---


@pytest.fixture
def out(tmp_path: Path) -> Path:
    base = checkpoint(tmp_path / "base")
    (base / "sub").mkdir()
    (base / "sub/notes.txt").write_text("notes")
    merge(base, [lora(tmp_path / "a")], tmp_path / "out", sha256=True)
    return tmp_path / "out"


def test_right_files(out: Path) -> None:
    read: list[int] = []
    report = check_files(out, read.append)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert report.ok and report.wrong == ()
    assert report.files == report.right == len(files)
    assert sum(read) == report.bytes == sum(p.stat().st_size for p in files if p.name not in (MANIFEST, SUMS))
    assert files_text(report).startswith(f"{out}: all {len(files)} files are as the manifest says")
    assert json.loads(to_json(report))["schema"] == "files/1"


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


SHARD = "model-00001-of-00003.safetensors"
HARM: dict[str, tuple[Callable[[Path], object], dict[str, str]]] = {
    "missing": (lambda out: (out / SHARD).unlink(), {SHARD: "missing"}),
    "extra": (lambda out: (out / "sub/more").write_text(""), {"sub/more": "not in the manifest"}),
    "shorter": (lambda out: os.truncate(out / SHARD, 5), {SHARD: "size"}),
    "a bit": (lambda out: _flip(out / SHARD), {SHARD: "content"}),
    "a link": (lambda out: _link(out / SHARD), {SHARD: "no plain file"}),
    "a link to a folder": (
        lambda out: ((out / "sub").rename(out.parent / "sub"), (out / "sub").symlink_to("../sub")),
        {"sub": "no plain file", "sub/notes.txt": "missing"},
    ),
    "a FIFO": (lambda out: ((out / SHARD).unlink(), os.mkfifo(out / SHARD)), {SHARD: "no plain file"}),
    "sums": (lambda out: _flip(out / SUMS), {SUMS: "content"}),
    "no sums": (lambda out: (out / SUMS).unlink(), {SUMS: "missing"}),
    "manifest": (lambda out: (out / MANIFEST).write_bytes((out / MANIFEST).read_bytes() + b" "), {SUMS: "content"}),
}


@pytest.mark.parametrize("case", HARM)
def test_wrong_files(out: Path, case: str) -> None:
    harm, expected = HARM[case]
    harm(out)
    report = check_files(out)
    assert not report.ok
    assert {wrong.name: wrong.status for wrong in report.wrong} == expected
    assert report.right == report.files - len(expected.keys() & {SHARD, SUMS, "sub/notes.txt"})
    for name, status in expected.items():
        assert f"\n  {status}: {name}" in files_text(report)


def test_a_sweep_and_each_part_of_it(tmp_path: Path) -> None:
    wise(checkpoint(tmp_path / "base"), lora(tmp_path / "a"), tmp_path / "out", "0,0.5")
    assert check_files(tmp_path / "out").ok and check_files(tmp_path / "out/alpha-0.500").ok
    _flip(tmp_path / "out/alpha-0.500" / MANIFEST)
    assert [wrong.name for wrong in check_files(tmp_path / "out").wrong] == [f"alpha-0.500/{MANIFEST}"]


GOOD = {"size": 1, "blake3": "0" * 64}
MALFORMED: dict[str, object] = {
    "empty": {},
    "other schema": {"schema": "manifest/9", "files": {"a": GOOD}},
    "schema of another type": {"schema": ["manifest/1"], "files": {"a": GOOD}},
    "no files": {"files": {}},
    "list": {"files": ["a"]},
    "number": {"files": {"a": 1}},
    "no size": {"files": {"a": {"blake3": "0" * 64}}},
    "no hash": {"files": {"a": {"size": 1}}},
    "more": {"files": {"a": {**GOOD, "md5": "0"}}},
    "size": {"files": {"a": {**GOOD, "size": "1"}}},
    "negative": {"files": {"a": {**GOOD, "size": -1}}},
    "true": {"files": {"a": {**GOOD, "size": True}}},
    "short hash": {"files": {"a": {**GOOD, "blake3": "0"}}},
    "hash of another type": {"files": {"a": {**GOOD, "blake3": 0}}},
    "sha256 of some": {"files": {"a": GOOD, "b": {**GOOD, "sha256": "0" * 64}}},
    "itself": {"files": {MANIFEST: GOOD}},
    "not an object": [],
    **{
        f"leads out: {name!r}": {"files": {name: GOOD}}
        for name in ("../a", "/a", "a/../b", "", ".", "a//b", "a\0", "a/")
    },
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_manifests(tmp_path: Path, case: str) -> None:
    content = MALFORMED[case]
    if isinstance(content, dict) and content:
        content = {"schema": "manifest/1", **content}
    (tmp_path / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InputError, match=MANIFEST):
        check_files(tmp_path)


def test_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "none", tmp_path / "file"):
        with pytest.raises(InputError, match="manifest"):
            check_files(path)
    (tmp_path / "real").write_text("{}")
    (tmp_path / MANIFEST).symlink_to("real")
    with pytest.raises(InputError, match="is a link"):
        check_files(tmp_path)


def test_what_cannot_be_read(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "readv", fail)
    with pytest.raises(StorageError, match="Input/output error"):
        check_files(out)


def test_options_of_the_command_line(tmp_path: Path) -> None:
    command = ["merge", FIXTURES / "base", FIXTURES / "lora", "-o", tmp_path / "out", "--sha256"]
    done = adaptertool(*command, "--provenance", tmp_path / "p.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / SUMS).is_file() and (tmp_path / "p.json").is_file()
    assert adaptertool(*command, "--provenance", tmp_path / "p.json", "--force").returncode == 0
    assert leftovers.left_behind(tmp_path / "out") == []


def test_verify_without_a_base(tmp_path: Path) -> None:
    base, adapter, out = checkpoint(tmp_path / "base"), lora(tmp_path / "a"), tmp_path / "out"
    merge(base, [adapter], out)
    done = adaptertool("verify", out)
    assert done.returncode == 0
    assert "files are as the manifest says" in done.stdout
    weights = next(out.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x55")
    done = adaptertool("verify", out, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert (found["schema"], found["wrong"]) == ("files/1", [{"name": weights.name, "status": "content"}])
    done = adaptertool("verify", out, "--strict")
    assert (done.returncode, "give the BASE too" in done.stderr) == (2, True)
    done = adaptertool("verify", base)
    assert (done.returncode, "has no adaptertool.manifest.json" in done.stderr) == (3, True)


def test_the_manifest_of_a_sum(tmp_path: Path) -> None:
    """Of adapters made of adapters too: every input and output file."""
    adapters, out = [lora(tmp_path / "a"), lora(tmp_path / "b")], tmp_path / "out"
    sum_adapters(adapters, out, weights=[1, "0.5"])
    found = manifest(out)
    assert found["inputs"] == {"sources": [tree(adapter) for adapter in adapters]}
    assert found["files"] == {name: own for name, own in tree(out).items() if name != MANIFEST}
    assert found["recipe"] == {
        "command": "sum",
        "sources": [{"name": "a"}, {"name": "b"}],
        "weights": ["1", "0.5"],
        "method": "cat",
        "cut": {},
    }
    assert check_files(out).ok
