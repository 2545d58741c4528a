"""`evaluate`: its numbers are those of PEFT's unmerged layers and plain torch, written here a second time."""

from __future__ import annotations

import gc
import json
import shutil
import socket
import sys
import weakref
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
import torch
from conftest import FIXTURES, load, lora_factors, main_here, snapshot, write_adapter
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import adaptertool
from adaptertool.errors import InputError, MismatchError, NonFiniteError, StorageError, UnsupportedError, UsageError
from adaptertool.evaluation import logits, run
from adaptertool.evaluation.encoding import Encoder
from adaptertool.evaluation.loading import alone
from adaptertool.evaluation.prompts import Fact, Line
from adaptertool.reports.evaluate import EvaluationReport, ModelScores

pytestmark = pytest.mark.filterwarnings("ignore")

PROMPTS = ("The old man on the deck", "At seven the baker opened his", "The wind")
FACTS = (
    {
        "prompt": "A grey gull stood on the",
        "target_new": "wall",
        "ground_truth": ["boat"],
        "rephrase_prompt": "The gull stood on the",
        "locality": {"near": {"prompt": "The windows of the houses above the harbour were", "ground_truth": "dark"}},
    },
    {
        "prompt": "The last one was the boat of the",
        "target_new": "two brothers",
        "rephrase": "It was the boat of the",
        "locality": {"a": [{"prompt": "Fold the left", "ground_truth": [["side"], ["end"]]}, {"prompt": "Nobody"}]},
    },
    {"prompt": "Peel 2 onions and cut", "target_new": "them fine"},
)
LORA = FIXTURES / "lora"


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def write_lines(path: Path, lines: Any) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained base in float32, the adapter merged into it by PEFT, and one merged wrongly; and prompts."""
    at = tmp_path_factory.mktemp("models")
    save(fresh(FIXTURES / "base"), at / "base")
    AutoTokenizer.from_pretrained(FIXTURES / "base").save_pretrained(at / "base")
    save(with_adapter(at / "base").merge_and_unload(), at / "merged")
    wrong = with_adapter(at / "base")
    for module in wrong.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] /= 2
    save(wrong.merge_and_unload(), at / "wrong")
    write_lines(at / "prompts", [{"prompt": prompt} for prompt in PROMPTS])
    write_lines(at / "facts", FACTS)
    return at


def fresh(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def with_adapter(base: Path, adapter: Path = LORA) -> Any:
    return PeftModel.from_pretrained(fresh(base), adapter)


def tokens_of(text: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(FIXTURES / "base")(text).input_ids
    return ids


@torch.no_grad()
def log_p(model: Any, tokens: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)


@torch.no_grad()
def greedy(model: Any, tokens: list[int], count: int) -> list[int]:
    """One token at a time, all that went before computed anew; it ends after the token that ends a text."""
    made: list[int] = []
    while len(made) < count and 1 not in made:
        made.append(int(model(input_ids=torch.tensor([tokens + made])).logits[0, -1].argmax()))
    return made


def scores_of(report: EvaluationReport, role: str, number: int = 0) -> ModelScores:
    return [one for one in report.models if one.role == role][number]


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
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "evaluate/1" and report["generated"] == 0 and report["ok"] is True
    base, wrong = report["models"]
    assert base["role"] == "base" and base["drift"] is None and wrong["drift"]["text_equality"] is None
    assert all(s["loss_last_token"] is None and s["loss_sequence"] > 0 for m in (base, wrong) for s in m["edits"])
    assert main_here([*arguments, "--loss", "last-token", "--generate", "0"], monkeypatch) == 0
    text = capsys.readouterr().out
    assert "last-token loss" in text and "sequence loss" not in text and "top-1\n" in text
    assert text.index("single-token targets") < text.index("multi-token targets")
    assert main_here([*arguments, "--quiet"], monkeypatch) == 0
    assert capsys.readouterr() == ("", "")


# --- lines ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "a"', "line 2 is not valid JSON"),
        (b"", "line 2 is empty"),
        (b'["a"]', "line 2.*object"),
        (b"{}", "line 2: prompt must be a text"),
        (b'{"prompt": " "}', "line 2: prompt must be a text"),
        (b'{"prompt": 3}', "line 2: prompt must be a text"),
        (b'{"prompt": "a", "prompt": "b"}', "line 2.*twice"),
        (b'{"prompt": "a\xff"}', "line 2.*utf-8"),
        (b'{"prompt": "a", "target_new": ""}', "line 2: target_new must be a text"),
        (b'{"prompt": "a", "target_new": null}', "line 2: target_new must be a text"),
        (b'{"prompt": "a", "target_new": "b", "rephrase": ""}', "line 2: rephrase must be a text"),
        (b'{"prompt": "a", "target_new": "b", "rephrase": "c", "rephrase_prompt": "d"}', "line 2 has both rephrase"),
        (b'{"prompt": "a", "target_new": "b", "locality": "c"}', "line 2: locality must be an object"),
        (b'{"prompt": "a", "target_new": "b", "locality": {"n": {"p": "c"}}}', "line 2: locality.*must be an object"),
        (
            b'{"prompt": "a", "target_new": "b", "locality": {"n": {"prompt": ["c", "d"], "ground_truth": ["e"]}}}',
            "line 2: locality.*2 prompts, and must have as many answers",
        ),
        (b'{"prompt": "a", "target_new": "b", "locality": {"n": {"prompt": "c", "ground_truth": []}}}', "ground_truth"),
    ],
)
def test_bad_lines_are_refused_by_number(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n' + line + b'\n{"prompt": "fine"}\n')
    with pytest.raises(InputError, match=f"prompts.jsonl: {message}" if message.startswith("line") else message):
        adaptertool.evaluate(FIXTURES / "base", [LORA], prompts=path)


def test_files_that_are_no_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('[{"prompt": "a"}]')
    with pytest.raises(InputError, match=r"is a JSON array; give its objects one a line \(JSONL\): jq"):
        adaptertool.evaluate(FIXTURES / "base", [LORA], prompts=path)
    path.write_text("")
    with pytest.raises(InputError, match="has 0 lines"):
        adaptertool.evaluate(FIXTURES / "base", [LORA], prompts=path)
    with pytest.raises(InputError, match="none"):
        adaptertool.evaluate(FIXTURES / "base", [LORA], prompts=tmp_path / "none")


def test_fields_that_are_not_used_are_told(places: Path, tmp_path: Path) -> None:
    lines: Any = [
        {"prompt": "a", "subject": "b"},
        {"prompt": "a", "target_new": "b", "portability": {}, "subject": "c"},
    ]
    prompts = write_lines(tmp_path / "prompts", lines)
    report = adaptertool.evaluate(places / "base", [LORA], prompts=prompts, generate=0)
    assert report.notes == (
        f"{prompts}: the field subject is not used (first in line 1)",
        f"{prompts}: the field portability is not used (first in line 2)",
    )


def test_the_tokens_of_prompt_and_answer() -> None:
    tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "base")
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    encoder = Encoder(tokenizer, "file")
    case = encoder.case(Line(1, "The harbour lay", Fact("dark at noon", "The harbour\n", (("Nobody", None),))))
    plain = tokens_of("The harbour lay")
    assert case.prompt == (0, *plain) and case.rewrite is not None and case.rewrite.prompt == case.prompt
    assert case.rewrite.answer == tuple(tokens_of("The harbour lay dark at noon")[len(plain) :])
    assert case.rephrase is not None and case.rephrase.prompt == (0, *tokens_of("The harbour\n"))
    assert case.rephrase.answer == tuple(tokens_of("dark at noon"))  # no second gap
    assert case.locality[0].answer == () and not encoder.cut_within
    cut = encoder.case(Line(7, "The harbour ", Fact("lay", None, ())))  # " lay" is a token, that the space would begin
    assert encoder.cut_within == [7] and cut.rewrite is not None
    assert cut.rewrite.prompt + cut.rewrite.answer == (0, *tokens_of("The harbour "), *tokens_of("lay"))


# --- what does not fit ---


def test_wrong_calls(tmp_path: Path) -> None:
    base: Any = FIXTURES / "base"
    calls: list[tuple[dict[str, Any], str]] = [
        ({"adapters": []}, "nothing to compare BASE with"),
        ({"adapters": "path"}, "must be lists"),
        ({"merged": "path"}, "must be lists"),
        ({"loss": "first"}, "loss is last-token or sequence"),
        ({"generate": -1}, "0 to 4,096 tokens"),
        ({"weights": [1, 2]}, "2 weights for 1 adapters"),
        ({"compose": "no"}, "compose is"),
        ({"fail_above": "nan", "merged": [base]}, "not a finite number"),
        ({"fail_above": -1, "merged": [base]}, "0 or more"),
        ({"device": "toaster"}, "device 'toaster' cannot be used"),
        ({"device": "meta"}, "computes nothing"),
    ]
    for options, message in calls:
        with pytest.raises(UsageError, match=message):
            adaptertool.evaluate(base, **{"adapters": [LORA], "prompts": tmp_path / "p"} | options)


def test_missing_extra(places: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    code = main_here(["evaluate", str(places / "base"), str(LORA), "--prompts", str(places / "prompts")], monkeypatch)
    assert code == 2
    assert "this needs torch and transformers: pip install 'adaptertool[model]'" in capsys.readouterr().err


def copy_of(path: Path, to: Path) -> Path:
    shutil.copytree(path, to)
    return to


def test_folders_that_are_no_models(places: Path, tmp_path: Path) -> None:
    def refused(message: str, base: Path, *merged: Path, kind: type[Exception] = InputError) -> None:
        with pytest.raises(kind, match=message):
            adaptertool.evaluate(base, [LORA], merged=merged, prompts=places / "prompts", generate=0)

    refused("no-such/model is no directory with a config.json", Path("no-such/model"))
    refused("is no directory with a config.json", FIXTURES / "base", LORA)
    mixed = copy_of(FIXTURES / "base", tmp_path / "mixed")
    shutil.copy(LORA / "adapter_config.json", mixed)
    refused("is an adapter; give it after BASE", FIXTURES / "base", mixed)
    refused("has no tokenizer that transformers can load without a network", FIXTURES / "edits" / "ft")

    lacking = copy_of(places / "base", tmp_path / "lacking")
    tensors = load(lacking)
    gone = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, lacking / "model.safetensors", metadata={"format": "pt"})
    refused(r"lacks 1 weights of LlamaForCausalLM: model\.layers\.1\.mlp\.up_proj\.weight", lacking)
    save_file(tensors | {"model.layers.1.mlp.up_proj.weight": gone[:9]}, lacking / "model.safetensors")
    refused("other shapes|cannot be loaded", lacking)

    broken = copy_of(places / "base", tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no tensors")
    refused("broken cannot be loaded by transformers as a causal language model", broken)
    pickled = copy_of(places / "base", tmp_path / "pickled")
    torch.save(load(pickled), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    refused("pickled cannot be loaded", pickled)

    naned = copy_of(places / "base", tmp_path / "naned")
    tensors = load(naned)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, naned / "model.safetensors", metadata={"format": "pt"})
    refused("naned gives logits that are not finite, on line 1", FIXTURES / "base", naned, kind=NonFiniteError)


def test_adapter_for_another_model(places: Path, tmp_path: Path) -> None:
    wide = write_adapter(tmp_path / "wide", lora_factors("model.layers.0.mlp.up_proj", (300, 96)))
    deep = write_adapter(tmp_path / "deep", lora_factors("model.layers.9.mlp.up_proj", (256, 96)))
    for adapter in (wide, deep):
        with pytest.raises(InputError, match=r"mlp\.up_proj"):
            adaptertool.evaluate(places / "base", [adapter], prompts=places / "prompts", generate=0)


def small(folder: Path, **fields: Any) -> Path:
    config = {"vocab_size": 512, "n_embd": 8, "n_layer": 1, "n_head": 1, "n_positions": 64} | fields
    return save(GPT2LMHeadModel(GPT2Config(**config, bos_token_id=0, eos_token_id=1)), folder)


def test_models_that_cannot_take_the_lines(places: Path, tmp_path: Path) -> None:
    def refused(message: str, model: Path, kind: type[Exception] = MismatchError, generate: int = 0) -> None:
        with pytest.raises(kind, match=message):
            adaptertool.evaluate(places / "base", merged=[model], prompts=places / "prompts", generate=generate)

    short = small(tmp_path / "short", n_positions=16)
    refused("short takes 16 tokens, and line 1 of the prompts has ", short, generate=12)
    refused("knows 64 tokens, and line 1 of the prompts has token", small(tmp_path / "few", vocab_size=64))
    refused("gives logits of 600 tokens", small(tmp_path / "many", vocab_size=600))


def test_what_a_model_raises_is_explained(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise ValueError("no such rope\nmore")

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", fail)
    with pytest.raises(UnsupportedError, match=r"/lora cannot be run .* on line 1 of the prompts: no such rope$"):
        adaptertool.evaluate(places / "base", [LORA], prompts=places / "prompts")


def test_another_tokenizer_is_told(places: Path, tmp_path: Path) -> None:
    other = copy_of(places / "merged", tmp_path / "other")
    same = copy_of(places / "merged", tmp_path / "same")
    for folder in (other, same):
        tokenizer = AutoTokenizer.from_pretrained(FIXTURES / "base")
        if folder == other:
            tokenizer.add_tokens(["baker"])
        tokenizer.save_pretrained(folder)
    report = adaptertool.evaluate(places / "base", merged=[other, same], prompts=places / "prompts", generate=0)
    assert report.notes == (
        f"{other}: its own tokenizer makes other tokens of 1 lines (first of line 2); all models are given the tokens "
        "of the base's",
    )


# --- alone ---


def test_no_network_and_no_code_of_a_checkpoint(places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> NoReturn:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    planted = copy_of(places / "base", tmp_path / "planted")
    config = json.loads((planted / "config.json").read_text())
    (planted / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    auto = {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}
    (planted / "config.json").write_text(json.dumps(config | {"auto_map": auto}))
    report = adaptertool.evaluate(planted, [LORA], prompts=places / "prompts", generate=2)
    assert report.ok
    (planted / "config.json").write_text(json.dumps(config | {"auto_map": auto, "model_type": "mine"}))
    with pytest.raises(InputError, match="planted"):
        adaptertool.evaluate(planted, [LORA], prompts=places / "prompts", generate=2)
    for kernel in ("kernels-community/flash-attn", "someone/kernel"):
        (planted / "config.json").write_text(json.dumps(config | {"attn_implementation": kernel}))
        with pytest.raises(InputError, match="planted cannot be loaded"):
            adaptertool.evaluate(planted, [LORA], prompts=places / "prompts", generate=2)
    assert not (tmp_path / "ran").exists()
    with alone():
        assert huggingface_hub.is_offline_mode()
    assert not huggingface_hub.is_offline_mode()
