"""Names that come from files are escaped wherever they are printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import HOSTILE, MODULE, clean, refused
from conftest import adaptertool, lora_factors, write_adapter, write_checkpoint

from adaptertool import prepare_merge
from adaptertool.errors import InputError

# --- names that come from files ---


def _index(base: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def _shard_lacks_tensor(base: Path, _: Path) -> None:
    shard = f"x{HOSTILE}.safetensors"
    (base / "model-00002-of-00002.safetensors").rename(base / shard)
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": shard, "absent": shard}))


def _shard_missing(base: Path, _: Path) -> None:
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": f"x{HOSTILE}.safetensors"}))


def _shard_elsewhere(base: Path, _: Path) -> None:
    shard = base / f"x{HOSTILE}.safetensors"
    shard.symlink_to("../adapter/adapter_model.safetensors")
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": shard.name}))


def _shard_broken(base: Path, _: Path) -> None:
    (base / f"x{HOSTILE}.safetensors").write_text("short")
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": f"x{HOSTILE}.safetensors"}))


def _asset_is_a_pipe(base: Path, _: Path) -> None:
    os.mkfifo(base / f"x{HOSTILE}")


def _factor(_: Path, adapter: Path) -> None:
    write_adapter(adapter, lora_factors(f"model{HOSTILE}", (8, 6)))


def _config(**fields: object) -> Callable[[Path, Path], None]:
    def change(_: Path, adapter: Path) -> None:
        write_adapter(adapter, lora_factors(MODULE, (8, 6)), **fields)

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_shard_lacks_tensor, id="shard-lacks-tensor"),
        pytest.param(_shard_missing, id="shard-missing"),
        pytest.param(_shard_elsewhere, id="shard-is-a-link"),
        pytest.param(_shard_broken, id="shard-broken"),
        pytest.param(_asset_is_a_pipe, id="asset"),
        pytest.param(_factor, id="factor"),
        pytest.param(_config(**{HOSTILE: 1}), id="field"),
        pytest.param(_config(peft_type=HOSTILE), id="peft-type"),
        pytest.param(_config(bias=HOSTILE), id="bias"),
        pytest.param(_config(rank_pattern={"[z\x1b-\x07]": 4}), id="pattern"),
        pytest.param(_config(alpha_pattern={HOSTILE: "x"}), id="pattern-value"),
    ],
)
def test_names_from_files_are_escaped(small: tuple[Path, Path], spoil: Callable[[Path, Path], None]) -> None:
    spoil(*small)
    with pytest.raises(InputError) as caught:
        prepare_merge(small[0], [small[1]])
    assert not any(ord(c) < 32 and c != "\n" for c in str(caught.value))


def test_escaped_on_stderr(small: tuple[Path, Path], tmp_path: Path) -> None:
    _factor(*small)
    refused(adaptertool("merge", *small, "-o", tmp_path / "out"), 3, r"model\x1b]0;owned\x07.weight")


@pytest.mark.parametrize("verbose", [(), ("-v",)])
def test_names_are_escaped_in_the_plan_too(tmp_path: Path, verbose: tuple[str, ...]) -> None:
    """Valid names, so no error; they are printed on stdout, where a terminal may be."""
    name = f"model{HOSTILE}.up_proj"
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.randn(8, 6), "bell\x07": torch.ones(1)})
    adapter = write_adapter(tmp_path / "adapter", lora_factors(name, (8, 6)))
    text = clean(adaptertool("merge", base, adapter, "-o", tmp_path / "out", "--dry-run", *verbose), 0).stdout
    assert r"\x07" in text


def test_lone_surrogate_in_a_name(tmp_path: Path) -> None:
    """JSON can spell a name that UTF-8 cannot: refused or escaped, but no traceback when it is printed."""
    header = rb'{"a\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    base = tmp_path / "odd.safetensors"
    base.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    adapter = write_adapter(tmp_path / "saved", {"b": torch.ones(1)})
    for arguments in (("merge", base, adapter), ("wise", base, base, "--alpha", "1")):
        result = adaptertool(*arguments, "-o", tmp_path / "out", "--dry-run")
        assert result.returncode in (0, 3)
        clean(result, result.returncode)
