"""`evaluate`: its numbers are those of PEFT's unmerged layers and plain torch, written here a second time."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, main_here, snapshot
from json_schemas import require_valid
from models_on_prompts import (
    FACTS,
    LORA,
    PROMPTS,
    fresh,
    greedy,
    log_p,
    save,
    scores_of,
    tokens_of,
    with_adapter,
)
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import adaptertool
from adaptertool.errors import StorageError
from adaptertool.evaluation import logits, run

pytestmark = pytest.mark.filterwarnings("ignore")


# --- logits ---


@pytest.mark.parametrize("name", ["merged", "wrong"])
def test_drift_is_that_of_plain_torch(places: Path, name: str) -> None:
    report = adaptertool.evaluate(places / "base", [LORA], merged=[places / name], prompts=places / "prompts")
    drift = scores_of(report, "merged").drift
    assert drift is not None
    reference, ours = with_adapter(places / "base"), fresh(places / name)
    apart, divergence, same, texts = [], [], [], []
    for prompt in PROMPTS:
        ids = tokens_of(prompt)
        a, b = (model(input_ids=torch.tensor([ids])).logits[0].detach().double() for model in (reference, ours))
        apart.append((a - b).abs())
        p, q = a.softmax(-1), b.softmax(-1)
        divergence += (p * (p / q).log()).sum(-1).tolist()
        same += (a.argmax(-1) == b.argmax(-1)).tolist()
        texts.append(greedy(reference, ids, 16) == greedy(ours, ids, 16))
    close = {"rel": 1e-4, "abs": 2e-5}  # two ways to compute in float32
    assert drift.max_logit == pytest.approx(torch.cat(apart).max().item(), **close)
    assert drift.mean_logit == pytest.approx(torch.cat(apart).mean().item(), **close)
    assert drift.mean_kl == pytest.approx(sum(divergence) / len(divergence), rel=1e-3, abs=1e-9)
    assert drift.max_kl == pytest.approx(max(divergence), rel=1e-3, abs=1e-9)
    assert drift.top1_agreement == sum(same) / len(same)
    assert drift.text_equality == sum(texts) / len(texts)
    assert report.tokens == len(divergence) and report.prompts == 3 and report.ok
    if name == "merged":
        assert drift.mean_kl < 1e-9 and drift.max_logit < 1e-3 and drift.top1_agreement == drift.text_equality == 1
    else:
        assert drift.mean_kl > 0.1 and drift.top1_agreement < 1
        line = 1 + next(n for n, prompt in enumerate(PROMPTS) if max(divergence) in divergence_of(prompt, divergence))
        assert drift.worst_line == line


def divergence_of(prompt: str, divergence: list[float]) -> list[float]:
    start = sum(len(tokens_of(other)) for other in PROMPTS[: PROMPTS.index(prompt)])
    return divergence[start : start + len(tokens_of(prompt))]


def test_a_limit_judges_merged_checkpoints_alone(
    places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", str(places / "base"), str(LORA), "--prompts", str(places / "prompts"), "--generate", "0"]
    right, wrong = (["--merged", str(places / name)] for name in ("merged", "wrong"))
    assert main_here([*arguments, *right, "--fail-above", "1e-6"], monkeypatch) == 0
    assert "KL per token is within the limit of 1e-06" in capsys.readouterr().out
    assert main_here([*arguments, *right, *wrong, "--fail-above", "1e-6"], monkeypatch) == 1
    printed = capsys.readouterr()
    assert "KL per token is ABOVE the limit of 1e-06" in printed.out and not printed.err
    assert main_here([*arguments, *wrong], monkeypatch) == 0  # nobody asked for a judgement
    assert main_here([*arguments, "--fail-above", "1e-6"], monkeypatch) == 2


def test_our_own_merge(places: Path, tmp_path: Path) -> None:
    adapters = [LORA, FIXTURES / "rslora"]
    adaptertool.merge(places / "base", adapters, tmp_path / "out", weights=["0.5", "0.25"], compose="mixed")
    options: Any = {"weights": ["0.5", "0.25"], "compose": "mixed", "prompts": places / "prompts"}
    before = snapshot(places)
    report = adaptertool.evaluate(places / "base", adapters, merged=[tmp_path / "out"], **options)
    drift = scores_of(report, "merged").drift
    assert drift is not None and drift.mean_kl < 1e-9 and drift.text_equality == 1
    assert report.reference == f"{places / 'base'} + {LORA} × 0.5 + {FIXTURES / 'rslora'} × 0.25"
    assert snapshot(places) == before


def test_tied_weights_and_conv1d(places: Path, tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=512, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=1)
    model: Any = GPT2LMHeadModel(config)
    save(model, tmp_path / "base")
    AutoTokenizer.from_pretrained(FIXTURES / "base").save_pretrained(tmp_path / "base")
    tuned = get_peft_model(model, LoraConfig(target_modules=["c_attn", "wte"], init_lora_weights=False, use_dora=True))
    tuned.save_pretrained(tmp_path / "adapter")
    adaptertool.merge(tmp_path / "base", [tmp_path / "adapter"], tmp_path / "out")
    options: Any = {"merged": [tmp_path / "out"], "prompts": places / "prompts"}
    report = adaptertool.evaluate(tmp_path / "base", [tmp_path / "adapter"], **options)
    drift, base = scores_of(report, "merged").drift, scores_of(report, "base").drift
    assert drift is not None and base is not None and drift.mean_kl < 1e-9 < 1e-3 < base.mean_kl


def test_sampling_and_penalties_of_a_checkpoint_are_not_used(places: Path, tmp_path: Path) -> None:
    shutil.copytree(places / "merged", tmp_path / "merged")
    asked = {"do_sample": True, "repetition_penalty": 5.0, "max_length": 3, "min_new_tokens": 20, "eos_token_id": 1}
    (tmp_path / "merged" / "generation_config.json").write_text(json.dumps(asked))
    merged = [tmp_path / "merged"]
    report = adaptertool.evaluate(places / "base", [LORA], merged=merged, prompts=places / "prompts")
    drift = scores_of(report, "merged").drift
    assert drift is not None and drift.text_equality == 1


def test_large_references_go_to_a_file(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drift() -> Any:
        report = adaptertool.evaluate(
            places / "base", merged=[places / "wrong"], prompts=places / "prompts", generate=0
        )
        return scores_of(report, "merged").drift

    expected = drift()
    monkeypatch.setattr(logits, "_IN_MEMORY", 100)
    monkeypatch.setattr(logits, "_AT_ONCE", 600)  # one position at a time
    got = drift()
    assert got.mean_kl == pytest.approx(expected.mean_kl, rel=1e-12) and got.worst_line == expected.worst_line
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with pytest.raises(StorageError, match="has 0 free; give fewer prompts, or set TMPDIR"):
        drift()


def test_one_model_at_a_time(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[weakref.ref[Any]] = []
    real = run.load_model

    def watched(*arguments: Any) -> Any:
        assert all(model() is None for model in loaded)
        model, notes = real(*arguments)
        loaded.append(weakref.ref(model))
        return model, notes

    monkeypatch.setattr(run, "load_model", watched)
    gc.collect()
    merged = [places / "merged", places / "wrong"]
    adaptertool.evaluate(places / "base", [LORA], merged=merged, prompts=places / "facts", generate=1)
    assert len(loaded) == 3


# --- facts ---


def expected_scores(model: Any, base: Any, facts: Any) -> dict[str, float | None]:
    """By greedy decoding in earnest, and the losses as their definitions say."""
    success, rephrase, locality, last, sequence = [], [], [], [], []
    for fact in facts:
        prompt, target = tokens_of(fact["prompt"]), tokens_of(" " + fact["target_new"])
        success.append(greedy(model, prompt, len(target)) == target)
        at_end = log_p(model, prompt)[-1]
        last.append(-sum(at_end[token].item() for token in target) / len(target))
        steps = [log_p(model, prompt + target[:n])[-1][target[n]].item() for n in range(len(target))]
        sequence.append(-sum(steps) / len(target))
        other = fact.get("rephrase", fact.get("rephrase_prompt"))
        if other:
            rephrase.append(greedy(model, tokens_of(other), len(target)) == target)
        for near in fact.get("locality", {}).values():
            for query in near if isinstance(near, list) else [near]:
                truth = query.get("ground_truth", "")
                truth = truth[0][0] if isinstance(truth, list) else truth
                answer, start = tokens_of(" " + truth) if truth else [], tokens_of(query["prompt"])
                at = slice(len(start) - 1, len(start) - 1 + max(1, len(answer)))
                both = [log_p(one, start + answer).argmax(-1)[at] for one in (model, base)]
                locality.append((both[0] == both[1]).double().mean().item())

    def mean(values: list[Any]) -> float | None:
        return sum(values) / len(values) if values else None

    return {
        "success": mean(success),
        "rephrase": mean(rephrase),
        "locality": mean(locality),
        "loss_last_token": mean(last),
        "loss_sequence": mean(sequence),
    }


def test_scores_of_facts_are_those_of_plain_torch(places: Path) -> None:
    options: Any = {"merged": [places / "wrong", FIXTURES / "tuned"], "each": True, "generate": 0}
    report = adaptertool.evaluate(places / "base", [LORA], prompts=places / "facts", **options)
    base = fresh(places / "base")
    # `tuned` runs in bfloat16, so it is left out here
    models = [(scores_of(report, "base"), base), (scores_of(report, "unmerged"), with_adapter(places / "base"))]
    models.append((scores_of(report, "merged"), fresh(places / "wrong")))
    for scores, model in models:
        single, multi = scores.edits
        assert (single.targets, single.count, multi.targets, multi.count) == ("single-token", 1, "multi-token", 2)
        for group, facts in ((single, FACTS[:1]), (multi, FACTS[1:])):
            for name, value in expected_scores(model, base, facts).items():
                assert getattr(group, name) == pytest.approx(value, rel=1e-4), (scores.name, name)
    known = scores_of(report, "base").edits
    assert known[0].success == 1 and known[1].success == 0.5  # what the base was trained on, and what it was not
    assert len(report.models) == 4 and report.reference == str(places / "base")


def test_the_two_losses_agree_on_one_token_and_part_on_several() -> None:
    """What the literature reports. FT takes every token of the target from the prompt's last position, and so learns
    single tokens only; LoRA, trained on the sequence, learns both. Models are trained so in fixtures/make_edits.py."""
    edits = FIXTURES / "edits"
    facts: Any = {"prompts": edits / "facts.jsonl", "merged": [edits / "ft"], "each": True, "generate": 0}
    report = adaptertool.evaluate(FIXTURES / "base", [edits / "lora"], **facts)
    ft, lora, base = (scores_of(report, role).edits for role in ("merged", "unmerged", "base"))
    for single, _ in (ft, lora, base):
        assert single.loss_last_token == pytest.approx(single.loss_sequence, rel=1e-12)
    assert base[0].success == base[1].success == 0
    assert ft[0].success == lora[0].success == 1
    assert ft[0].loss_last_token == pytest.approx(lora[0].loss_last_token, abs=0.1)
    assert ft[1].success == 0 and lora[1].success == 1
    for trained, other in (("loss_last_token", (ft, lora)), ("loss_sequence", (lora, ft))):
        better, worse = (getattr(scores[1], trained) for scores in other)
        assert better < worse - 2  # each is good at what it was trained for, and at nothing else
    assert ft[1].locality == 1 and report.ok


def test_one_loss_alone_and_json(
    places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "evaluate",
        str(places / "base"),
        "--merged",
        str(places / "wrong"),
        "--prompts",
        str(places / "facts"),
    ]
    assert main_here([*arguments, "--loss", "sequence", "--json", "--generate", "0"], monkeypatch) == 0
    report = require_valid(capsys.readouterr().out, "evaluate/1")
    assert report["generated"] == 0 and report["ok"] is True
    base, wrong = report["models"]
    assert base["role"] == "base" and base["drift"] is None and wrong["drift"]["text_equality"] is None
    assert all(s["loss_last_token"] is None and s["loss_sequence"] > 0 for m in (base, wrong) for s in m["edits"])
    assert main_here([*arguments, "--loss", "last-token", "--generate", "0"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert "last-token loss" in text and "sequence loss" not in text and "top-1\n" in text
    assert text.index("single-token targets") < text.index("multi-token targets")
    assert main_here([*arguments, "--quiet"], monkeypatch) == 0
    assert capsys.readouterr() == ("", "")
