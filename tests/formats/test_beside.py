"""What lies beside an adapter in its folder: read, known to be no weights, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, adaptertool, load, lora_factors, same_bits, write_adapter, write_checkpoint
from safetensors.torch import save_file

import adaptertool as library
from adaptertool.errors import InputError, UnsupportedError, UsageError

Q, P = "model.layers.0.self_attn.q_proj", "model.mm_projector.0"
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
WEIGHTS = {f"{Q}.weight": torch.ones(8, 6), f"{P}.weight": torch.ones(6, 4), f"{P}.bias": torch.ones(6)}
TRAINED = {f"{P}.weight": torch.full((6, 4), 3.0), f"{P}.bias": torch.full((6,), 2.0)}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "base", WEIGHTS, config=CONFIG)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", lora_factors(Q, (8, 6)))


def notes(base: Path, adapter: Path, **options: Any) -> str:
    return "\n".join(library.prepare_merge(base, [adapter], **options).notes)


def refusal(base: Path, adapter: Path, error: type[Exception] = UnsupportedError, **options: Any) -> str:
    with pytest.raises(error) as caught:
        library.prepare_merge(base, [adapter], **options)
    return str(caught.value)


LOST = [
    "value_head.safetensors", "new_embeddings.safetensors", "vit.safetensors", "non_lora_trainables.bin",
    "mm_projector.bin", "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "value_head.pt", "head.pth",
    "state.ckpt", "emb.npz", "emb.npy", "head.pkl", "flax_model.msgpack", "tf_model.h5",
    "vision_tower/model.safetensors", "vision_tower/pytorch_model.bin", "a/b/head.PT", "head", "weights.dat",
]  # fmt: skip


@pytest.mark.parametrize("name", LOST)
def test_what_may_hold_trained_weights_is_refused_and_named(base: Path, adapter: Path, name: str) -> None:
    file = adapter / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if name.endswith(".safetensors"):
        save_file({"v_head.summary.weight": torch.ones(1, 6)}, file)
    else:
        file.write_bytes(b"\x80\x02}q\0.")
    message = refusal(base, adapter)
    assert f"  {name}: " in message and f"--leave-out {name}" in message
    said = notes(base, adapter, leave_out=[name])
    assert f"{name} is left out" in said
    with pytest.raises(UnsupportedError, match="would be lost"):  # and what else reads adapters
        library.sum_adapters([adapter], base.parent / "out")
    with pytest.raises(UnsupportedError, match="would be lost"):
        library.prepare_wise(base, adapter, 0.5)


NO_WEIGHTS = [
    "README.md", "LICENSE", ".gitattributes", "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt",
    "rng_state.pth", "rng_state_3.pth", "random_states_0.pkl", "trainer_state.json", "training_args.bin", "latest",
    "zero_to_fp32.py", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "spiece.model", "chat_template.jinja", "config.json",
    "additional_chat_templates/tool_use.jinja", "global_step500/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "checkpoint-500/adapter_model.bin", "runs/Nov01/events.out.tfevents.1.host.2.0", "wandb/run.bin", "loss.png",
    "all_results.json", "args.json", "logs/x.pt", ".cache/huggingface/x.lock", "preprocessor_config.json",
]  # fmt: skip


def test_what_holds_no_weights_makes_no_noise(base: Path, adapter: Path) -> None:
    for name in NO_WEIGHTS:
        (adapter / name).parent.mkdir(parents=True, exist_ok=True)
        (adapter / name).write_bytes(b"x" * 20 if name.endswith((".md", "LICENSE")) else b"{}")
    before = notes(base, adapter)
    assert "beside" not in before and "left out" not in before and "not read" not in before


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_tensors_of_the_base_are_read(base: Path, adapter: Path, tmp_path: Path, prefix: str) -> None:
    save_file({prefix + name: tensor for name, tensor in TRAINED.items()}, adapter / "mm_projector.safetensors")
    report = library.merge(base, [adapter], tmp_path / "out")
    assert any("mm_projector.safetensors is read: it replaces 2 of the base's tensors" in note for note in report.notes)
    merged = load(tmp_path / "out")
    assert all(same_bits(merged[name], tensor) for name, tensor in TRAINED.items())
    assert not merged[f"{Q}.weight"].equal(WEIGHTS[f"{Q}.weight"])
    manifest = json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())
    assert set(manifest["inputs"]["sources"][0]) == {
        "adapter_config.json", "adapter_model.safetensors", "mm_projector.safetensors"
    }  # fmt: skip
    assert library.verify(tmp_path / "out", base, [adapter]).ok
    half = library.wise(base, adapter, tmp_path / "half", 0.5)
    assert half.tensors_edited == 3 and load(tmp_path / "half")[f"{P}.weight"].equal(torch.full((6, 4), 2.0))
    without = library.verify(tmp_path / "out", base, [adapter], leave_out=["mm_projector"])
    assert not without.ok


def test_renamed_tensors_are_read(base: Path, adapter: Path) -> None:
    save_file({name.replace("model.mm_", ""): tensor for name, tensor in TRAINED.items()}, adapter / "p.safetensors")
    message = refusal(base, adapter)
    assert "projector.0.weight is no tensor of" in message or "projector.0.bias is no tensor of" in message
    assert "it replaces 2 of the base's tensors" in notes(base, adapter, renames=["^projector=>model.mm_projector"])


def test_a_changed_file_beside_the_factors_is_noticed(base: Path, adapter: Path) -> None:
    file = adapter / "p.safetensors"
    save_file(TRAINED, file)
    plan = library.prepare_merge(base, [adapter])
    assert file in plan.inputs and "p.safetensors" in plan.files[1]


@pytest.mark.parametrize("where", ["factors", "saved", "another file"])
def test_two_tensors_for_the_same(base: Path, adapter: Path, where: str) -> None:
    save_file({f"{Q}.weight": torch.zeros(8, 6)}, adapter / "one.safetensors")
    if where == "saved":
        adapter = write_adapter(adapter, {f"{Q}.weight": torch.ones(8, 6)})
    elif where == "another file":
        adapter = write_adapter(adapter, {f"{P}.bias": torch.ones(6)})
        save_file({f"base_model.model.{Q}.weight": torch.zeros(8, 6)}, adapter / "two.safetensors")
    message = refusal(base, adapter, InputError)
    assert "which of them counts is not known" in message and f"{Q}.weight" in message


def test_integers_are_no_weights(base: Path, adapter: Path) -> None:
    save_file({f"{P}.bias": torch.ones(6, dtype=torch.int64)}, adapter / "p.safetensors")
    assert "is I64; weights are" in refusal(base, adapter)


def test_a_whole_checkpoint_in_the_folder_of_an_adapter(base: Path, adapter: Path) -> None:
    save_file(WEIGHTS, adapter / "model.safetensors")
    assert "a checkpoint, and not the base that was given" in refusal(base, adapter)
    assert "left out" in notes(base, adapter, leave_out=["model.safetensors"])


def test_base_and_adapter_in_one_folder(base: Path) -> None:
    write_adapter(base, lora_factors(Q, (8, 6)))
    assert "left out (other copies" in notes(base, base)


def test_exports_are_said(base: Path, adapter: Path) -> None:
    (adapter / "lora-f16.gguf").write_bytes(b"GGUF")
    assert "lora-f16.gguf is an export to another format" in notes(base, adapter)


def test_a_pickle_beside_its_safetensors_is_said(base: Path, adapter: Path) -> None:
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x02}.")
    assert "adapter_model.bin is not read: adapter_model.safetensors stands beside it" in notes(base, adapter)


def test_other_adapters_and_checkpoints_below_are_said(base: Path, adapter: Path) -> None:
    write_adapter(adapter / "second", lora_factors(Q, (8, 6)))
    write_checkpoint(adapter / "merged", WEIGHTS, config=CONFIG)
    said = notes(base, adapter)
    assert f"{adapter}/second is another adapter" in said and f"{adapter}/merged is a checkpoint of its own" in said
    tower = write_checkpoint(adapter / "tower", TRAINED, config={"architectures": ["CLIPVisionModel"]})
    assert f"  {tower.name}/model.safetensors: " in refusal(base, adapter)
    for architectures in ([], None):
        (base / "config.json").write_text(json.dumps(CONFIG | {"architectures": architectures}))
        assert f"  {tower.name}/model.safetensors: " in refusal(base, adapter)


WAYS: dict[str, Callable[[Path], str]] = {
    "name": lambda file: file.name,
    "path": str,
    "regex": lambda _: r"^value_.*\.safetensors$",
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_leave_a_file_out(base: Path, adapter: Path, tmp_path: Path, way: str) -> None:
    file = adapter / "value_head.safetensors"
    save_file({"v_head.weight": torch.ones(6)}, file)
    given = WAYS[way](file)
    library.merge(base, [adapter], tmp_path / "out", leave_out=[given])
    manifest = json.loads((tmp_path / "out" / "adaptertool.manifest.json").read_text())
    assert manifest["recipe"]["leave_out"] == ["value_head.safetensors"]
    for command in (["merge", base, adapter, "-o", tmp_path / "o2"], ["verify", tmp_path / "out", base, adapter]):
        done = adaptertool(*command, "--leave-out", given)
        assert done.returncode == 0 and "value_head.safetensors is left out" in done.stderr


@pytest.mark.parametrize("text", ["nothing like it", "README", "adapter_model", "("])
def test_leaving_out_what_is_not_there(base: Path, adapter: Path, text: str) -> None:
    (adapter / "README.md").write_text("x")
    (adapter / "value_head.bin").write_bytes(b"\x80\x02.")
    refusal(base, adapter, UsageError, leave_out=["value_head", text])


@pytest.mark.parametrize("leave_out", ["value_head", [""]], ids=str)
def test_leaving_out_what_is_not_said(base: Path, adapter: Path, leave_out: Any) -> None:
    """A text would be taken letter by letter, and what an unset variable leaves behind is found in every name."""
    assert "none of them empty" in refusal(base, adapter, UsageError, leave_out=leave_out)


def test_one_pattern_for_the_adapters_that_need_it(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", lora_factors(Q, (8, 6)))
    (adapter / "value_head.bin").write_bytes(b"\x80\x02.")
    assert "left out" in "\n".join(library.prepare_merge(base, [other, adapter], leave_out=["value_head"]).notes)
    library.sum_adapters([other, adapter], tmp_path / "sum", leave_out=["value_head"])


def test_what_makes_adapters_does_not_take_it_along(base: Path, adapter: Path, tmp_path: Path) -> None:
    (adapter / "value_head.bin").write_bytes(b"\x80\x02.")
    (adapter / "tokenizer.json").write_text("{}")
    options = {"leave_out": ["value_head"]}
    library.truncate(adapter, tmp_path / "truncated", rank=2, **options)  # type: ignore[arg-type]
    library.wise(base, adapter, tmp_path / "wise", 0.5, as_adapter=True, **options)  # type: ignore[arg-type]
    for out in ("truncated", "wise"):
        assert (tmp_path / out / "tokenizer.json").exists() and not (tmp_path / out / "value_head.bin").exists()


def test_tensors_beside_the_factors_are_no_part_of_an_adapter_that_is_written(base: Path, adapter: Path) -> None:
    save_file(TRAINED, adapter / "p.safetensors")
    with pytest.raises(UnsupportedError, match=r"p\.safetensors holds tensors beside"):
        library.prepare_wise(base, adapter, 0.5, as_adapter=True)


def test_inspect_describes_what_a_merge_refuses(base: Path, adapter: Path) -> None:
    (adapter / "value_head.bin").write_bytes(b"\x80\x02.")
    report = library.inspect(adapter, base)
    assert report.refusal and "value_head.bin" in report.refusal and report.fits is False
    assert report.adapter is not None


def test_diff_of_an_adapter(base: Path, adapter: Path) -> None:
    """With a checkpoint it has no tensor in common, whichever comes first, and however it is given."""
    for one, other in ((base, adapter), (adapter, base), (base, adapter / "adapter_model.safetensors")):
        done = adaptertool("diff", one, other)
        assert done.returncode == 3 and "is an adapter" in done.stderr and "a checkpoint" in done.stderr
    (adapter / "value_head.bin").write_bytes(b"\x80\x02.")
    report = library.diff(adapter, adapter)
    assert report.equal and any("not compared" in note and "value_head.bin" in note for note in report.notes)


def test_models_in_memory(adapter: Path) -> None:
    """As a merge does: tensors of the model are read, others refused unless they are left out, with a warning."""
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"q": torch.nn.Linear(6, 8), "p": torch.nn.Linear(4, 6)})
    write_adapter(adapter, lora_factors("q", (8, 6)))
    save_file({"p.bias": torch.full((6,), 2.0)}, adapter / "p.safetensors")
    with pytest.warns(UserWarning, match="it replaces 1 of the base's tensors"), library.applied(model, adapter):
        assert model["p"].bias.eq(2).all()
    (adapter / "value_head.bin").write_bytes(b"\x80\x02.")
    for way in (library.applied, library.attached):
        with pytest.raises(UnsupportedError, match="would be lost"), way(model, adapter):
            pass
        with pytest.warns(UserWarning, match=r"value_head\.bin is left out"), way(model, adapter, leave_out=["value"]):
            assert model["p"].bias.eq(2).all()


def test_nothing_is_left_out_of_checkpoints() -> None:
    with pytest.raises(UsageError, match="leaves nothing out"):
        library.prepare_wise(FIXTURES / "base", FIXTURES / "tuned", 0.5, leave_out=["x"])


@pytest.mark.parametrize("command", ["merge", "wise", "sweep", "truncate"])
def test_out_inside_the_folder_of_the_adapter(base: Path, adapter: Path, command: str) -> None:
    """Also again: what we made there is no part of the adapter, nor what a killed run has left."""
    out = adapter / "out"
    (adapter / f".out.adaptertool-{'0' * 16}").mkdir()
    (adapter / f".out.adaptertool-{'0' * 16}" / "work.safetensors").write_bytes(b"x")
    before = (adapter / "adapter_model.safetensors").read_bytes()
    arguments = {
        "merge": ["merge", base, adapter, "-o", out],
        "wise": ["wise", base, adapter, "-o", out, "--alpha", "0.5"],
        "sweep": ["wise", base, adapter, "-o", out, "--alpha", "0,0.5"],
        "truncate": ["truncate", adapter, "-o", out, "--rank", "2"],
    }[command]
    for more in ([], ["--force"]):
        done = adaptertool(*arguments, *more)
        assert done.returncode == 0, done.stderr
    assert (adapter / "adapter_model.safetensors").read_bytes() == before
    assert not (out / "out").exists()
    another = adaptertool("merge", base, adapter, "-o", adapter / "other")
    assert another.returncode == 0 and not (adapter / "other" / "out").exists()


def test_out_inside_the_base_or_at_the_adapter_is_refused(base: Path, adapter: Path) -> None:
    inside = write_adapter(base / "adapter", lora_factors(Q, (8, 6)))
    for out in (base / "out", inside / "out"):
        done = adaptertool("merge", base, inside, "-o", out)
        assert done.returncode == 2 and "overlap" in done.stderr
    for out in (adapter, adapter.parent, adapter / "adapter_model.safetensors"):
        assert adaptertool("merge", base, adapter, "-o", out, "--force").returncode == 2
