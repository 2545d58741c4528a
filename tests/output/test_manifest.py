"""The manifest: hash and size of every input and output; SHA256SUMS; provenance; and `verify` of files against it.

All hashes are compared with those of an independent pass over the files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from blake3 import blake3
from conftest import adaptertool, lora_factors, write_adapter, write_checkpoint
from manifests import MANIFEST, PROJ, SUMS, check, checkpoint, facts, lora, manifest, tree
from safetensors.torch import load_file, save_file

from adaptertool import inspect, merge, sum_adapters, wise
from adaptertool.errors import UsageError
from adaptertool.files import hashing
from adaptertool.files.hashing import InOrder
from adaptertool.output.integrity import check_files

pytestmark = pytest.mark.usefixtures("small_pieces")


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


@pytest.mark.parametrize("seed", range(20))
def test_parts_in_any_order(seed: int) -> None:
    """Parts overlap, come early, come twice, or not at all: the hash is that of the file."""
    generator = torch.Generator().manual_seed(seed)

    def number(end: int) -> int:
        return int(torch.randint(end, (), generator=generator))

    data = os.urandom(number(2000))

    def read(offset: int, view: memoryview) -> None:
        view[:] = data[offset : offset + len(view)]

    state = InOrder(len(data), read, hashing.WITH_SHA256)
    for _ in range(number(60) + 1):
        begin = number(len(data) + 1)
        buffer = bytearray(data[begin : begin + number(len(data) - begin + 1)])
        state.has(begin, memoryview(buffer))
        buffer[:] = b"x" * len(buffer)  # it is used for something else
    assert state.digests() == {"blake3": blake3(data).hexdigest(), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("threads", [1, 4])
def test_files_of_many_groups(tmp_path: Path, threads: int) -> None:
    """Large enough that they are hashed by parts: a tensor is edited, another replaced, and the others are copied to
    outputs that begin as the base does."""
    torch.manual_seed(0)
    names = [f"model.layers.{n}.mlp.up_proj" for n in range(4)]
    tensors = {f"{name}.weight": torch.randn(301, 401).bfloat16() for name in names}
    base = write_checkpoint(tmp_path / "base", tensors)
    replaced = {f"{names[1]}.weight": torch.randn(301, 401).bfloat16()}
    adapter = write_adapter(tmp_path / "a", {**lora_factors(names[2], (301, 401)), **replaced})
    merge(base, [adapter], tmp_path / "out", threads=threads)
    check(tmp_path / "out", base, adapter)
    plain = write_adapter(tmp_path / "b", lora_factors(names[2], (301, 401)))
    wise(base, plain, tmp_path / "sweep", "0,0.5,1", threads=threads)
    for alpha in ("0.000", "0.500", "1.000"):
        check(tmp_path / f"sweep/alpha-{alpha}", base, plain)
    tuned = write_checkpoint(tmp_path / "tuned", {name: tensors[name] + 1 for name in reversed(tensors)}, shards=3)
    wise(base, tuned, tmp_path / "between", "0.5", threads=threads)
    weights = {name: own for name, own in tree(tuned).items() if name.endswith(".safetensors")}
    assert manifest(tmp_path / "between")["inputs"] == {"base": tree(base), "sources": [weights]}


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
