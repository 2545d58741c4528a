"""New heads: onto a base without one, or with another number of labels; transformers is the judge."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import adaptertool as command
from conftest import load, lora_factors, same_bits, write_adapter
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

import adaptertool
from adaptertool.errors import MismatchError, UnsupportedError

TINY = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 50, "max_position_embeddings": 32, "pad_token_id": 0, "head_dim": 12,
}  # fmt: skip
GPT2 = {"n_embd": 24, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32, "pad_token_id": 0}
TASKS = {"SEQ_CLS": AutoModelForSequenceClassification, "TOKEN_CLS": AutoModelForTokenClassification}


def config_of(family: str, **fields: Any) -> Any:
    return AutoConfig.for_model(family, **((GPT2 if family == "gpt2" else TINY) | fields))


def body(model: Any) -> dict[str, torch.Tensor]:
    """Without a head."""
    prefix = f"{model.base_model_prefix}."
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}


def train(folder: Path, base: Any, labels: int, task: str, **options: Any) -> tuple[Path, Any]:
    """An adapter of PEFT's on the model with a head for labels over `base`; and that model, unmerged."""
    config = copy.deepcopy(base.config)
    config.num_labels = labels
    model = TASKS[task].from_config(config).float()
    model.load_state_dict(body(base), strict=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = get_peft_model(model, LoraConfig(**{"r": 2, "task_type": task, "lora_alpha": 8} | options))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) / 8)
    tuned.save_pretrained(folder)
    return folder, tuned.eval()


def loaded(folder: Path, task: str, caplog: pytest.LogCaptureFixture) -> Any:
    """By transformers, which has nothing to complain of."""
    caplog.clear()
    model, info = TASKS[task].from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


TEXT = torch.arange(3, 19).reshape(2, 8)


@pytest.mark.long("family")
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma", "gpt2", "gpt_neox"])
def test_decoders(tmp_path: Path, family: str, task: str, tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    base = AutoModelForCausalLM.from_config(config_of(family, tie_word_embeddings=tied)).float()
    base.save_pretrained(tmp_path / "base", max_shard_size="10KB" if tied else "5GB")
    adapter, unmerged = train(tmp_path / "adapter", base, 3, task)
    report = adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out", verify=True)
    assert any("ForSequenceClassification with 3 labels" in note or "ForTokenClassification with 3 labels" in note
               for note in report.notes)  # fmt: skip
    merged = loaded(tmp_path / "out", task, caplog)
    assert merged.config.num_labels == 3
    with torch.no_grad():
        torch.testing.assert_close(merged(TEXT).logits, unmerged(TEXT).logits, rtol=1e-4, atol=1e-5)
    assert adaptertool.verify(tmp_path / "out", tmp_path / "base", [adapter]).ok
    unmerged.merge_and_unload().save_pretrained(tmp_path / "by-peft")
    assert load(tmp_path / "out").keys() == load(tmp_path / "by-peft").keys()
    assert adaptertool.verify(tmp_path / "by-peft", tmp_path / "base", [adapter]).summary.wrong == 0


ENCODER = {
    "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50,
    "max_position_embeddings": 40, "pad_token_id": 0, "dim": 24, "hidden_dim": 40, "n_layers": 2, "n_heads": 2,
    "type_vocab_size": 2,
}  # fmt: skip
ATTENTION = {"distilbert": ["q_lin", "v_lin"]}


def encoder(family: str) -> Any:
    fields = {
        key: value for key, value in ENCODER.items() if family == "distilbert" or key[0] != "n" or key != "_layers"
    }
    if family != "distilbert":
        fields = {
            key: value for key, value in fields.items() if key not in ("dim", "hidden_dim", "n_layers", "n_heads")
        }
    return AutoModelForMaskedLM.from_config(AutoConfig.for_model(family, **fields)).float()


@pytest.mark.parametrize(
    ("family", "task", "saved"),
    [
        ("bert", "TOKEN_CLS", ["classifier"]),
        ("roberta", "SEQ_CLS", ["classifier"]),
        ("roberta", "TOKEN_CLS", ["classifier"]),
        ("distilbert", "SEQ_CLS", ["classifier", "pre_classifier"]),
        ("electra", "SEQ_CLS", ["classifier"]),
    ],
)
def test_encoders(tmp_path: Path, family: str, task: str, saved: list[str], caplog: pytest.LogCaptureFixture) -> None:
    base = encoder(family)
    base.save_pretrained(tmp_path / "base")
    targets = ATTENTION.get(family, ["query", "value"])
    adapter, unmerged = train(tmp_path / "a", base, 4, task, modules_to_save=saved, target_modules=targets)
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    merged = loaded(tmp_path / "out", task, caplog)
    with torch.no_grad():
        torch.testing.assert_close(merged(TEXT).logits, unmerged(TEXT).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "saved", "message"),
    [
        ("distilbert", ["classifier"], "but not pre_classifier"),
        ("bert", ["classifier"], r"has no bert\.pooler\.dense\.weight, which BertForSequenceClassification needs"),
    ],
)
def test_a_head_that_is_not_all_there(tmp_path: Path, family: str, saved: list[str], message: str) -> None:
    """What is in neither the base nor the adapter was made by chance in training, and is lost."""
    base = encoder(family)
    base.save_pretrained(tmp_path / "base")
    targets = ATTENTION.get(family, ["query", "value"])
    adapter, _ = train(tmp_path / "a", base, 4, "SEQ_CLS", modules_to_save=saved, target_modules=targets)
    fields = json.loads((adapter / "adapter_config.json").read_text())
    if family == "distilbert":  # PEFT of today saves it; older ones did not
        strip(adapter, "pre_classifier")
    assert fields["task_type"] == "SEQ_CLS"
    with pytest.raises(UnsupportedError, match=message):
        adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")


def strip(adapter: Path, part: str) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415

    kept = {name: tensor for name, tensor in load(adapter).items() if part not in name}
    save_file(kept, adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_a_base_saved_without_the_prefix(tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture) -> None:
    base = AutoModelForCausalLM.from_config(config_of(family, tie_word_embeddings=True)).float()
    base.base_model.save_pretrained(tmp_path / "base")
    adapter, unmerged = train(tmp_path / "adapter", base, 3, "SEQ_CLS")
    adaptertool.merge(tmp_path / "base", [adapter], tmp_path / "out")
    merged = loaded(tmp_path / "out", "SEQ_CLS", caplog)
    with torch.no_grad():
        torch.testing.assert_close(merged(TEXT).logits, unmerged(TEXT).logits, rtol=1e-4, atol=1e-5)


@pytest.fixture
def llama(tmp_path: Path) -> tuple[Path, Path]:
    """A base in bfloat16, and an adapter with a head of three labels."""
    base = AutoModelForCausalLM.from_config(config_of("llama", tie_word_embeddings=False)).bfloat16()
    base.save_pretrained(tmp_path / "base")
    adapter, _ = train(tmp_path / "adapter", base, 3, "SEQ_CLS")
    return tmp_path / "base", adapter


def test_another_number_of_labels(tmp_path: Path, llama: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    base, adapter = llama
    adaptertool.merge(base, [adapter], tmp_path / "three")
    five = AutoModelForSequenceClassification.from_pretrained(tmp_path / "three").float()
    more, unmerged = train(tmp_path / "more", five, 5, "SEQ_CLS")
    adaptertool.merge(tmp_path / "three", [more], tmp_path / "five")
    merged = loaded(tmp_path / "five", "SEQ_CLS", caplog)
    assert merged.config.num_labels == 5
    with torch.no_grad():
        torch.testing.assert_close(merged.float()(TEXT).logits, unmerged(TEXT).logits, rtol=0.1, atol=0.1)
    score = load(more)["base_model.model.score.weight"]
    assert same_bits(load(tmp_path / "five")["score.weight"], score.bfloat16())
    same, _ = train(tmp_path / "same", five, 3, "SEQ_CLS")
    notes = adaptertool.merge(tmp_path / "three", [same], tmp_path / "again").notes
    assert not any("labels" in note for note in notes)


def test_the_files_of_the_output(tmp_path: Path, llama: tuple[Path, Path]) -> None:
    base, adapter = llama
    result = command("merge", base, adapter, "-o", tmp_path / "out", "--verify", "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert any("LlamaForSequenceClassification with 3 labels" in note for note in report["notes"])
    assert "left out, since such a model has none: lm_head.weight" in report["notes"]
    before, after = load(base), load(tmp_path / "out")
    assert after.keys() == (before.keys() | {"score.weight"}) - {"lm_head.weight"}
    assert after["score.weight"].dtype == torch.bfloat16
    config, old = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", base))
    changed = {"architectures", "num_labels", "id2label", "label2id"}
    assert {key for key in config.keys() | old.keys() if config.get(key) != old.get(key)} == changed
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    assert command("verify", tmp_path / "out").returncode == 0
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "out", other)
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file(after | {"score.weight": after["score.weight"] * 2}, other / "model.safetensors")
    report = adaptertool.verify(other, base, [adapter])
    assert not report.ok and [one.name for one in report.tensors if one.status == "wrong"] == ["score.weight"]


def test_wise_makes_it_at_alpha_1_only(tmp_path: Path, llama: tuple[Path, Path]) -> None:
    adaptertool.wise(*llama, tmp_path / "one", 1)
    adaptertool.merge(llama[0], [llama[1]], tmp_path / "merged")
    assert all(
        same_bits(a, b)
        for a, b in zip(load(tmp_path / "one").values(), load(tmp_path / "merged").values(), strict=True)
    )
    with pytest.raises(UnsupportedError, match="brings a new head; between"):
        adaptertool.wise(*llama, tmp_path / "half", "0,0.5,1")


def test_what_is_not_certain_is_refused(tmp_path: Path, llama: tuple[Path, Path]) -> None:
    base, adapter = llama

    def refused(message: str, *adapters: Path, **options: Any) -> None:
        with pytest.raises((UnsupportedError, MismatchError), match=message):
            adaptertool.merge(base, adapters or [adapter], tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()

    refused("give it weight 1", weights=[0.5])
    refused("as an adapter before it does", adapter, adapter)
    refused("the method linear cannot be used", method="linear")
    head = {"score.weight": torch.randn(3, 24), **lora_factors("model.layers.0.self_attn.q_proj", (24, 24))}
    refused("task_type none in its config does not tell which model", write_adapter(tmp_path / "none", head))
    refused("task_type CAUSAL_LM in its", write_adapter(tmp_path / "causal", head, task_type="CAUSAL_LM"))
    wide = head | {"score.weight": torch.randn(3, 25)}
    refused("has .24. features", write_adapter(tmp_path / "wide", wide, task_type="SEQ_CLS"))
    both = head | lora_factors("lm_head", (50, 24))
    refused(
        r"lm_head\.weight is changed, but a new head makes .* a LlamaForSeq",
        write_adapter(tmp_path / "both", both, task_type="SEQ_CLS"),
    )
    for number, odd in enumerate((torch.tensor(1.0), torch.zeros(0, 24), torch.zeros(3, 24, 1))):
        name = tmp_path / f"odd{number}"
        refused("which is no part of a head", write_adapter(name, head | {"score.weight": odd}, task_type="SEQ_CLS"))
    bias = head | {"score.bias": torch.randn(4)}
    refused(r"tensors have \[3, 4\] rows", write_adapter(tmp_path / "rows", bias, task_type="TOKEN_CLS"))
    refused("but not score.bias", write_adapter(tmp_path / "token", head, task_type="TOKEN_CLS"))
    other = head | {"other.weight": torch.randn(3, 24)}
    refused("other.weight", write_adapter(tmp_path / "other", other, task_type="SEQ_CLS"))
    config = json.loads((base / "config.json").read_text())
    for change in ({"model_type": "never_heard_of"}, {"auto_map": {"AutoModel": "x.y"}}):
        (base / "config.json").write_text(json.dumps(config | change))
        refused("have no tensor|code of its own")


def test_a_model_in_memory_has_its_head_already(llama: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama[0])
    message = "the head of a LlamaForSequenceClassification with 3 labels"
    with pytest.raises(UnsupportedError, match=message), adaptertool.applied(model, llama[1]):
        pass
