"""Lines of prompts: read strictly, and their tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import FIXTURES
from models_on_prompts import LORA, tokens_of, write_lines
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

import adaptertool
from adaptertool.errors import InputError
from adaptertool.evaluation.encoding import Encoder
from adaptertool.evaluation.prompts import Fact, Line

pytestmark = pytest.mark.filterwarnings("ignore")

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
