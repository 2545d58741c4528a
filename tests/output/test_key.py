"""The key of a run: the same wherever the same files are seen, and another for anything that matters."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import ROOT
from staged import Place

from adaptertool import prepare_merge
from adaptertool.files.hashing import DEFAULT, WITH_SHA256
from adaptertool.output.manifest import labels_of, recipe_key
from adaptertool.spec.adapter import Module
from adaptertool.spec.plan import Blend, Edit, Keeping, Step
from adaptertool.spec.tensors import Making, Ref, View


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
    code = (
        "import sys; from adaptertool import prepare_merge; from adaptertool.files.hashing import DEFAULT; "
        "from adaptertool.output.manifest import recipe_key; "
        "print(recipe_key(prepare_merge(sys.argv[1] + '/base', [sys.argv[1] + '/adapter']), DEFAULT))"
    )
    call = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(call, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
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


def test_files_that_are_as_long_and_as_old(place: Place, tmp_path: Path) -> None:
    """Two adapters out of one archive, the one in the place of the other."""
    before, factors = key_of(tmp_path), place.adapter / "adapter_model.safetensors"
    content, times = factors.read_bytes(), factors.stat()
    factors.write_bytes(content[:-400] + bytes(400))
    os.utime(factors, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(content) == factors.stat().st_size
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


def test_every_field_of_a_tensor_and_of_an_edit_counts(place: Place) -> None:
    plan = prepare_merge(place.base, [place.adapter])
    (shard,) = (one for one in plan.shards if any(step.edits for step in one.steps))
    (step,) = (one for one in shard.steps if one.edits)
    ((edit,), base, (role, factor)) = step.edits, step.base, next(iter(step.edits[0].factors.items()))

    def of_factor(ref: Ref) -> Step:
        return step._replace(edits=(edit._replace(factors={**edit.factors, role: ref}),))

    view = View(4, range(6), range(4), (6, 4))
    part = Module("m", "w", "lora", edit.factors, 1.0)
    edits = [
        edit._replace(**{field: value})
        for field, value in {
            "kind": "dora", "adapter": 1, "module": "m", "factors": {}, "scale": 3.0, "weight": 3.0, "transposed": True,
            "view": view, "on_base": True, "part_of": part,
        }.items()
    ]  # fmt: skip
    steps = [
        *(step._replace(edits=(one,)) for one in edits),
        step._replace(edits=(edits[-1]._replace(part_of=part._replace(factors={role: factor})),)),
        step._replace(edits=()),
        step._replace(edits=(edit, edit)),
        *(of_factor(factor._replace(spec=factor.spec._replace(**{field: value})))
          for field, value in {"name": "n", "dtype": "I32", "shape": (7,), "nbytes": 7}.items()),
        of_factor(factor._replace(offset=1)),
        of_factor(factor._replace(path=base.path)),
        of_factor(factor._replace(columns=range(2))),
        of_factor(factor._replace(made=Making((base,), print))),
        of_factor(factor._replace(made=Making((base, base), print))),
        of_factor(factor._replace(made=Making((base,), print, first=1))),
        *(step._replace(**{field: value}) for field, value in {
            "spec": step.spec._replace(name="n"), "offset": 1, "base": base._replace(offset=1), "makes": "lora_A",
            "blend": Blend("ties", (1.0,), {}), "fisher": (base, base), "keeps": Keeping(None, factor),
            "share": Fraction(0),
        }.items()),
    ]  # fmt: skip
    assert len(Edit._fields) == len(edits)

    def key(other: Step) -> str:
        changed = dataclasses.replace(shard, steps=tuple(other if one is step else one for one in shard.steps))
        shards = tuple(changed if one is shard else one for one in plan.shards)
        return recipe_key(dataclasses.replace(plan, shards=shards), DEFAULT)

    assert len({*map(key, [step, *steps])}) == len(steps) + 1
    assert key(step._replace(spec=step.spec._replace())) == key(step) == recipe_key(plan, DEFAULT)


def test_every_input_has_a_label(place: Place) -> None:
    plan = prepare_merge(place.base, [place.adapter])
    labels = labels_of(plan)
    assert labels.keys() >= plan.inputs.keys() and len(set(labels.values())) == len(labels)
    assert labels[place.base / "sub/notes.txt"] == "0/sub/notes.txt"
    assert labels[place.adapter / "adapter_model.safetensors"] == "1/adapter_model.safetensors"
