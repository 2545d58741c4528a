"""Lines as tokens: the prompt, and after it the answer."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from adaptertool.errors import InputError, MismatchError
from adaptertool.evaluation.prompts import Line
from adaptertool.records import dataclass


@dataclass(frozen=True, slots=True)
class Query:
    """A prompt and the answer to it, as tokens. Without an answer it is the next token that counts."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """A line of the file as tokens; rewrite is None where it is a prompt only."""

    line: int
    prompt: tuple[int, ...]
    rewrite: Query | None = None
    rephrase: Query | None = None
    locality: tuple[Query, ...] = ()

    @property
    def queries(self) -> Iterator[Query]:
        yield from (query for query in (self.rewrite, self.rephrase) if query is not None)
        yield from self.locality


class Encoder:
    def __init__(self, tokenizer: Any, where: str) -> None:
        self._tokenizer, self._where = tokenizer, where
        self.cut_within: list[int] = []  # lines where a token reaches from the prompt into the answer

    def case(self, line: Line) -> Case:
        fact = line.fact
        if fact is None:
            return Case(line.number, self._tokens(line.prompt, line.number))
        rewrite = self._query(line.prompt, fact.target, line.number)
        rephrase = None if fact.rephrase is None else self._query(fact.rephrase, fact.target, line.number)
        locality = tuple(self._query(prompt, answer, line.number) for prompt, answer in fact.locality)
        return Case(line.number, rewrite.prompt, rewrite, rephrase, locality)

    def _query(self, prompt: str, answer: str | None, line: int) -> Query:
        """The tokens of a prompt and its answer, with a space between both, as EasyEdit has it; the answer's tokens are
        those that follow the prompt's."""
        tokens = self._tokens(prompt, line)
        if answer is None:
            return Query(tokens, ())
        gap = "" if prompt[-1].isspace() else " "
        whole = self._tokens(prompt + gap + answer, line)
        if whole[: len(tokens)] == tokens and len(whole) > len(tokens):
            return Query(tokens, whole[len(tokens) :])
        self.cut_within.append(line)
        return Query(tokens, self._plain(gap + answer))

    def _tokens(self, text: str, line: int) -> tuple[int, ...]:
        """The tokens of a text, with the special tokens that begin one, without those that end one."""
        plain, whole = self._plain(text), tuple(self._tokenizer(text).input_ids)
        size = len(plain)
        if not plain:
            raise InputError(f"{self._where}: line {line}: the tokenizer makes no token of a text")
        starts = range(len(whole) - size + 1)
        first = next((start for start in starts if whole[start : start + size] == plain), 0)
        return whole[:first] + plain

    def _plain(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=False).input_ids)


def check_fit(cases: Sequence[Case], model: str, context: int | None, vocabulary: int, more: int) -> None:
    """Raises MismatchError for a line that the model cannot take, with `more` tokens generated after it."""
    for case in cases:
        texts = [query.prompt + query.answer for query in case.queries]
        longest = max([len(case.prompt) + more, *map(len, texts)])
        if context is not None and longest > context:
            raise MismatchError(
                f"{model} takes {context:,} tokens, and line {case.line} of the prompts has {longest:,}, those to be "
                "generated among them; give shorter prompts, or --generate 0"
            )
        if (largest := max(itertools.chain(case.prompt, *texts))) >= vocabulary:
            raise MismatchError(
                f"{model} knows {vocabulary:,} tokens, and line {case.line} of the prompts has token {largest:,} of "
                "the tokenizer of BASE: they do not belong together"
            )
