"""The fixtures as models of transformers, and what they say to prompts, computed plainly."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from conftest import FIXTURES
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from adaptertool.reports.evaluate import EvaluationReport, ModelScores

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


def fresh(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def with_adapter(base: Path, adapter: Path = LORA) -> Any:
    return PeftModel.from_pretrained(fresh(base), adapter)


@functools.cache
def _tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FIXTURES / "base")


def tokens_of(text: str) -> list[int]:
    ids: list[int] = _tokenizer()(text).input_ids
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
