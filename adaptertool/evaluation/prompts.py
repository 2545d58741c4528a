"""Prompts, and facts that a model was edited to know, from JSONL: an object a line, read strictly.

    {"prompt": "The capital of France is"}
    {"prompt": ..., "target_new": "Lyon", "ground_truth": "Paris", "rephrase_prompt": ..., "locality": ...}

The names are those of EasyEdit (github.com/zjunlp/EasyEdit), whose files have `locality` in one of these forms:

    {"any name": {"prompt": P, "ground_truth": G}}      P and G texts, or lists of as many texts
    {"any name": [{"prompt": P, "ground_truth": G}, ...]}           a P without G is scored at its next token

A ground truth may be a list, or a list of lists, of other words for the same: the first is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, shown
from adaptertool.files.jsonfile import parse_json
from adaptertool.files.reader import open_input, read_exact
from adaptertool.records import dataclass

LOSSES = ("last-token", "sequence")  # of the answers to facts (evaluation/answers.py)

MAX_BYTES, MAX_LINES, MAX_LINE = 100_000_000, 100_000, 1_000_000  # of a file: bytes, and lines; of a line: bytes
# What EasyEdit's files also hold, and is not needed to score.
_BESIDE = frozenset({"subject", "ground_truth", "case_id", "id", "cond"})
_REPHRASE = ("rephrase_prompt", "rephrase")


@dataclass(frozen=True, slots=True)
class Fact:
    """What an edit is about: the new answer, another wording, and (prompt, answer) pairs that must not change."""

    target: str
    rephrase: str | None
    locality: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class Line:
    number: int  # in the file, from 1
    prompt: str
    fact: Fact | None


def read_prompts(path: Path) -> tuple[list[Line], list[str]]:
    """The lines, and notes of what in them is not used. Raises InputError, which names the line."""
    with open_input(path) as file:
        if file.size > MAX_BYTES:
            raise InputError(f"{path} has {file.size:,} bytes; over {MAX_BYTES:,} are refused")
        texts = read_exact(file, 0, file.size).split(b"\n")
    if texts[0].lstrip()[:1] == b"[":
        raise InputError(f"{path} is a JSON array; give its objects one a line (JSONL): jq -c '.[]' FILE > FILE.jsonl")
    if not texts[-1].strip():
        texts.pop()
    if not texts or len(texts) > MAX_LINES:
        raise InputError(f"{path} has {len(texts):,} lines; 1 to {MAX_LINES:,} are read")
    unused: dict[str, int] = {}
    lines = [_line(number, text, f"{path}: line {number}", unused) for number, text in enumerate(texts, 1)]
    return lines, [f"{path}: the field {shown(name)} is not used (first in line {at})" for name, at in unused.items()]


def _line(number: int, text: bytes, where: str, unused: dict[str, int]) -> Line:
    if len(text) > MAX_LINE:
        raise InputError(f"{where} has {len(text):,} bytes; over {MAX_LINE:,} are refused")
    if not text.strip():
        raise InputError(f"{where} is empty")
    fields = parse_json(text, where)
    used = {"prompt", "target_new", "locality", *_REPHRASE, *_BESIDE}
    prompt = _text(fields.get("prompt"), f"{where}: prompt")
    fact = None
    if "target_new" in fields:
        fact = Fact(
            _text(fields["target_new"], f"{where}: target_new").strip(),
            _rephrase(fields, where),
            tuple(_locality(fields.get("locality"), f"{where}: locality")),
        )
    else:
        used = {"prompt"}  # without a fact there is nothing that the others are about
    for name in fields.keys() - used:
        unused.setdefault(name, number)
    return Line(number, prompt, fact)


def _rephrase(fields: Mapping[str, Any], where: str) -> str | None:
    given = [name for name in _REPHRASE if fields.get(name) is not None]
    if len(given) > 1:
        raise InputError(f"{where} has both rephrase and rephrase_prompt; give one")
    return _text(fields[given[0]], f"{where}: {given[0]}") if given else None


def _locality(value: Any, where: str) -> Iterator[tuple[str, str | None]]:
    if value is None:
        return
    if not isinstance(value, dict):
        raise InputError(f'{where} must be an object such as {{"any name": {{"prompt": ..., "ground_truth": ...}}}}')
    for name, group in value.items():
        for one in group if isinstance(group, list) else [group]:
            yield from _pairs(one, f"{where}: {shown(name)}")


def _pairs(value: Any, where: str) -> Iterator[tuple[str, str | None]]:
    if not isinstance(value, dict) or "prompt" not in value:
        raise InputError(f'{where} must be an object with "prompt", and "ground_truth" where the answer is known')
    prompts, answers = value["prompt"], value.get("ground_truth")
    if not isinstance(prompts, list):
        yield _text(prompts, f"{where}: prompt"), _first(answers, f"{where}: ground_truth")
        return
    if not isinstance(answers, list | None) or (answers is not None and len(answers) != len(prompts)):
        raise InputError(f"{where} has {len(prompts)} prompts, and must have as many answers in ground_truth, or none")
    for prompt, answer in zip(prompts, answers or [None] * len(prompts), strict=True):
        yield _text(prompt, f"{where}: prompt"), _first(answer, f"{where}: ground_truth")


def _first(value: Any, where: str) -> str | None:
    """The first of several wordings."""
    if value is None:
        return None
    while isinstance(value, Sequence) and not isinstance(value, str) and value:
        value = value[0]
    return _text(value, where).strip()


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where} must be a text that is not empty")
    return value
