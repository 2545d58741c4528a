"""The key of a run: the same wherever the same files are seen, and another for anything that matters."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from staged import Place

from adaptertool import prepare_merge
from adaptertool.files.hashing import DEFAULT, WITH_SHA256
from adaptertool.output.manifest import labels_of, recipe_key


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def key_of(folder: Path) -> str:
    return recipe_key(prepare_merge(folder / "base", [folder / "adapter"]), DEFAULT)


def test_a_copy_with_its_times_has_the_same(tmp_path: Path) -> None:
    """As another machine sees it: another path, device and inode. And by another process, with other addresses."""
    Place(tmp_path)
    shutil.copytree(tmp_path, tmp_path / "elsewhere", copy_function=shutil.copy2)
    assert key_of(tmp_path) == key_of(tmp_path / "elsewhere")
    code = f"from test_key import key_of; from pathlib import Path; print(key_of(Path({str(tmp_path)!r})))"
    paths = f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}"
    call = [sys.executable, "-c", code]
    done = subprocess.run(call, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [key_of(tmp_path)]


@pytest.mark.parametrize("what", ["time", "size", "header", "config", "name"])
def test_a_change_has_another(place: Place, tmp_path: Path, what: str) -> None:
    before, shard = key_of(tmp_path), place.base / "model-00002-of-00002.safetensors"
    info = shard.stat()
    if what == "time":
        os.utime(shard, ns=(info.st_atime_ns, info.st_mtime_ns + 1))
    elif what == "size":
        (place.base / "sub/notes.txt").write_text("other notes")
    elif what == "config":
        config = place.adapter / "adapter_config.json"
        times = config.stat().st_mtime_ns
        fields = json.loads(config.read_text())
        config.write_text(json.dumps({**fields, "lora_alpha": fields["lora_alpha"] + 1}))
        os.utime(config, ns=(times, times))
    elif what == "name":
        (place.base / "sub/notes.txt").rename(place.base / "sub/notes.md")
    else:  # as long, of the same time, with a tensor of the same bytes in another dtype
        content = shard.read_bytes()
        assert b'"F32"' in content
        shard.write_bytes(content.replace(b'"F32"', b'"I32"'))
        os.utime(shard, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert key_of(tmp_path) != before


def test_the_call_counts(place: Place) -> None:
    plan = prepare_merge(place.base, [place.adapter])
    others = [
        recipe_key(plan, WITH_SHA256),
        recipe_key(dataclasses.replace(plan, precision="fast"), DEFAULT),
        recipe_key(prepare_merge(place.base, [place.adapter], [0.5]), DEFAULT),
        recipe_key(prepare_merge(place.base, [place.adapter] * 2), DEFAULT),
        recipe_key(prepare_merge(place.base, [place.adapter], max_shard_size=1000), DEFAULT),
        recipe_key(prepare_merge(place.base, [place.adapter], dtype="f32"), DEFAULT),
    ]
    assert len({recipe_key(plan, DEFAULT), *others}) == len(others) + 1


def test_every_input_has_a_label(place: Place) -> None:
    plan = prepare_merge(place.base, [place.adapter])
    labels = labels_of(plan)
    assert labels.keys() >= plan.inputs.keys() and len(set(labels.values())) == len(labels)
    assert labels[place.base / "sub/notes.txt"] == "0/sub/notes.txt"
    assert labels[place.adapter / "adapter_model.safetensors"] == "1/adapter_model.safetensors"
