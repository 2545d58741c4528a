"""Every kind of adapter that PEFT knows is read, or refused by name with the reason; no command fails otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import write_adapter
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft_files import Q, adapter, base_of, refusal
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import InputError, UnsupportedError
from adaptertool.formats.peft.keys import TUNER_PARAMETER
from adaptertool.formats.peft.refused import REFUSED
from adaptertool.kinds import SPELLED

HANDLED = {"LORA", *(tag for name, tag in SPELLED if name == "peft")}
OLD = {"BONE"}  # of PEFT before 0.19; MISS took its place


def test_every_kind_of_peft_is_handled_or_refused() -> None:
    """A new version of PEFT with a new kind fails here: read what it does, then add a kind, or a line to the table."""
    known = {kind.value for kind in peft.PeftType}
    assert HANDLED.isdisjoint(REFUSED), f"is handled: take it out of the table: {HANDLED & REFUSED.keys()}"
    assert HANDLED | REFUSED.keys() == known | OLD


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_refused_with_a_reason_and_a_way_out(base: Path, kind: str) -> None:
    message = refusal(base, adapter(base, peft_type=kind), UnsupportedError)
    assert f"adapter_config.json: peft_type {kind} " in message
    assert ": " in REFUSED[kind] and ("PEFT" in REFUSED[kind] or "adaptertool" in REFUSED[kind])


@pytest.mark.parametrize("kind", [None, "", "lora", "\x1b[31m", ["LORA"], 1, "NEW"], ids=ascii)
def test_kinds_that_are_not_known_are_refused_by_name(base: Path, kind: object) -> None:
    message = refusal(base, adapter(base, peft_type=kind), UnsupportedError)
    assert "is not known" in message
    assert ascii(str(kind))[1:-1] in message


def parameters() -> Iterator[str]:
    for tuner in PEFT_TYPE_TO_TUNER_MAPPING.values():
        yield from getattr(getattr(tuner, "tuner_layer_cls", None), "adapter_layer_names", ())


@pytest.mark.parametrize("name", sorted(set(parameters())))
def test_parameters_of_tuners_are_never_taken_for_tensors_of_a_model(base: Path, name: str) -> None:
    assert TUNER_PARAMETER.fullmatch(name)
    tensors = {f"{Q}.{name}": torch.ones(8), f"{Q}.bias": torch.ones(8)}
    other = adapter(base, tensors, peft_type="LORA", bias="all")
    message = refusal(base, other)
    assert name in message or "has no lora_" in message


# As PEFT 0.21.2 saves them: keys, or keys without a module, and shapes
PROMPT = {"prompt_embeddings": torch.ones(3, 6)}
SAVED: dict[str, dict[str, torch.Tensor]] = {
    **dict.fromkeys(("PROMPT_TUNING", "P_TUNING", "CPT", "PREFIX_TUNING", "CARTRIDGE"), PROMPT),
    "MULTITASK_PROMPT_TUNING": PROMPT | {
        "prefix_task_cols": torch.ones(2, 3, 1), "prefix_task_rows": torch.ones(2, 1, 6)},
    "ADAPTION_PROMPT": {
        f"base_model.model.{Q[:-7]}.adaption_gate": torch.ones(1),
        f"base_model.model.{Q[:-7]}.adaption_prompt": torch.ones(1, 3, 6)},
    "LILY": {f"base_model.model.{Q}.lily_A.weight": torch.ones(2, 6), f"base_model.model.{Q}.lily_B.weight":
             torch.ones(4, 8), f"base_model.model.{Q}.lily_router.weight": torch.ones(2, 2)},
    "PSOFT": {f"base_model.model.{Q}.psoft_R.weight": torch.ones(1)},
    "POLY": {f"base_model.model.{Q}.poly_lora_A": torch.ones(1, 2, 6, 3),
             f"base_model.model.{Q}.poly_lora_B": torch.ones(1, 2, 3, 8)},
    "ADAMSS": {f"base_model.model.{Q}.adamss_A.0": torch.ones(1, 4), f"base_model.model.{Q}.adamss_B.0":
               torch.ones(3, 1), f"base_model.model.{Q}.adamss_newB": torch.ones(4, 6)},
    "SHADOW": {"shadow_model.layers.0.weight": torch.ones(2, 2)},
    "XLORA": {"internal_xlora_classifier.layers.0.weight": torch.ones(2, 6)},
}  # fmt: skip


def saved(folder: Path, kind: str) -> Path:
    folder.mkdir()
    fields = {"peft_type": kind, "r": 2, "base_model_name_or_path": None, "num_virtual_tokens": 3}
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    save_file(SAVED[kind], folder / "adapter_model.safetensors")
    return folder


def test_all_that_is_refused_is_tried_as_it_is_saved() -> None:
    assert REFUSED.keys() == SAVED.keys()


@pytest.mark.parametrize("kind", SAVED)
def test_inspect_describes_what_is_refused(tmp_path: Path, kind: str) -> None:
    base, folder = base_of(tmp_path, {}), saved(tmp_path / "a", kind)
    for more in ({}, {"base": base}):
        report = adaptertool.inspect(folder, **more)  # type: ignore[arg-type]
        assert report.refusal is not None and REFUSED[kind] in report.refusal


@pytest.mark.parametrize("kind", SAVED)
def test_every_other_command_refuses_it_with_the_reason(tmp_path: Path, kind: str) -> None:
    base, folder = base_of(tmp_path, {}), saved(tmp_path / "a", kind)
    plain = write_adapter(
        tmp_path / "plain", {f"{Q}.lora_A.weight": torch.ones(4, 6), f"{Q}.lora_B.weight": torch.ones(8, 4)}
    )
    calls: dict[str, Callable[[], Any]] = {
        "merge": lambda: adaptertool.merge(base, [folder], tmp_path / "out"),
        "second": lambda: adaptertool.merge(base, [plain, folder], tmp_path / "out"),
        "wise": lambda: adaptertool.wise(base, folder, tmp_path / "out", [0.5]),
        "as adapter": lambda: adaptertool.wise(base, folder, tmp_path / "out", [0.5], as_adapter=True),
        "verify": lambda: adaptertool.verify(base, base, [folder]),
        "drift": lambda: adaptertool.drift(base, [folder]),
        "sum": lambda: adaptertool.sum_adapters([folder, plain], tmp_path / "out"),
        "truncate": lambda: adaptertool.truncate(folder, tmp_path / "out", rank=1),
    }
    for name, call in calls.items():
        with pytest.raises(InputError) as caught:
            call()
        assert f"peft_type {kind} {REFUSED[kind]}" in str(caught.value), name
        assert not (tmp_path / "out").exists()
