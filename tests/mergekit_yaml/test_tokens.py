"""Other tokens: embeddings and heads by the tokens of the output, against plain numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_llamas import VOCABULARY, llama

import adaptertool
from adaptertool.errors import InputError

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
OURS = ["a", "b", "c", "d", "e", "f"]  # of 8 rows: two are padding
THEIRS = ["b", "a", "x", "c", "y", "d", "e", "f"]


def tokenizer(folder: Path, tokens: list[str], added: int = 1) -> None:
    """The last tokens are added ones."""
    vocabulary = {name: number for number, name in enumerate(tokens[:-added])}
    some = [{"id": n, "content": name, "special": True} for n, name in enumerate(tokens) if n >= len(vocabulary)]
    content = {"model": {"type": "WordLevel", "vocab": vocabulary}, "added_tokens": some}
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.fixture
def pair(tmp_path: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    ours = llama(tmp_path / "ours", 1, 1)
    theirs = llama(tmp_path / "theirs", 2, 1, like=ours)
    tokenizer(tmp_path / "ours", OURS)
    tokenizer(tmp_path / "theirs", THEIRS)
    return ours, theirs


def merged(folder: Path, tokens: str) -> tuple[dict[str, np.ndarray], dict[str, int], dict[str, object]]:
    models = "models: [{model: ours, parameters: {weight: 1}}, {model: theirs, parameters: {weight: 3}}]"
    (folder / "config.yml").write_text(f"{models}\nmerge_method: linear\nbase_model: ours\n{tokens}\n")
    adaptertool.mergekit(folder / "config.yml", folder / "out", threads=1)
    content = json.loads((folder / "out" / "tokenizer.json").read_text())
    numbers = content["model"]["vocab"] | {one["content"]: one["id"] for one in content["added_tokens"]}
    return load_file(folder / "out/model.safetensors"), numbers, json.loads((folder / "out/config.json").read_text())


def mean(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one.astype(np.float64) + 3 * other) / 4


@pytest.mark.parametrize("source", ["base", "union"])
def test_rows_follow_their_tokens(
    source: str, tmp_path: Path, pair: tuple[dict[str, np.ndarray], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, theirs = pair
    found, numbers, config = merged(tmp_path, f"tokenizer_source: {source}")
    wanted = OURS if source == "base" else [*OURS, "x", "y"]
    assert list(numbers) == wanted
    assert list(numbers.values()) == list(range(len(wanted)))
    assert config["vocab_size"] == len(wanted)
    for name in (EMBED, HEAD):
        assert found[name].shape[0] == len(wanted)
        for token, number in numbers.items():
            there = theirs[name][THEIRS.index(token)]
            here = ours[name][OURS.index(token)] if token in OURS else there  # the row of the one that has it
            np.testing.assert_allclose(found[name][number], mean(here, there), rtol=1e-6)


def test_tokens_that_are_asked_for(
    tmp_path: Path, pair: tuple[dict[str, np.ndarray], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ours, theirs = pair
    block = (
        "tokenizer: {source: base, pad_to_multiple_of: 4, tokens: {a: {source: {kind: zero}, force: true}, "
        "new: {source: {kind: model_token, model: theirs, token: y}}, b: {source: theirs, force: true}}}"
    )
    found, numbers, config = merged(tmp_path, block)
    assert (config["vocab_size"], numbers["new"]) == (8, 6)
    rows = found[EMBED]
    assert not rows[0].any()
    np.testing.assert_allclose(rows[1], theirs[EMBED][0], rtol=1e-6)
    np.testing.assert_allclose(rows[6], theirs[EMBED][THEIRS.index("y")], rtol=1e-6)
    np.testing.assert_allclose(rows[2], mean(ours[EMBED][2], theirs[EMBED][3]), rtol=1e-6)
    np.testing.assert_allclose(rows[7], rows[:7].astype(np.float64).mean(axis=0), rtol=1e-5)


def test_what_cannot_be_said_of_tokens(
    tmp_path: Path, pair: tuple[dict[str, np.ndarray], ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pair[0][EMBED].shape[0] == VOCABULARY
    for block, said in (
        ("tokenizer: {tokens: {a: {source: {kind: model_token, model: theirs, token: nobody}}}}", "no such token"),
        ("tokenizer_source: elsewhere", "takes no part"),
        ("chat_template: chatml", "templates by name"),
        ("tokenizer_source: base\ntokenizer: {source: base}", "either tokenizer or tokenizer_source"),
    ):
        with pytest.raises(InputError, match=said):
            merged(tmp_path, block)
    (tmp_path / "theirs" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        merged(tmp_path, "tokenizer_source: union")
