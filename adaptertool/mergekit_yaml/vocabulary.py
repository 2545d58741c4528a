"""The tokens of the output: those of one model, or of all (`union`), and where each model has the row of each.

Of a union the base's tokens keep their numbers; those that only others have follow, model by model in the order in
which the configuration names them and by their numbers there, as added tokens. (mergekit 0.1.5 adds them in an order
that is another at every run.) The vocabularies are read from tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files import store_of
from adaptertool.files.jsonfile import load_json
from adaptertool.files.store import FILE
from adaptertool.files.tokenizer import Files, read_tokenizer
from adaptertool.mergekit_yaml.opened import Models, Opened
from adaptertool.mergekit_yaml.records import BASE, UNION, Config, Model, Token
from adaptertool.planning.layout import dump
from adaptertool.spec.plan import Asset

_JSON, _SETTINGS, _ADDED = "tokenizer.json", "tokenizer_config.json", "added_tokens_decoder"
_PLAIN = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


class Vocabulary(NamedTuple):
    """Tokens and their numbers, which are 0, 1, 2, ... without a gap. added: those apart from the vocabulary"""

    tokens: Mapping[str, int]
    added: Mapping[str, Mapping[str, Any]]
    path: Path


class Tokens(NamedTuple):
    """The tokens of the output.

    rows:  of each model, by number of the token: the number there, or -1
    asked: of tokens that the configuration names, by their number
    known: how many there are
    size:  of embeddings, which may be more than there are tokens
    files: of the tokenizer; None: those of the first model stay as they are
    """

    rows: Mapping[Model, Sequence[int]]
    own: Mapping[Model, Vocabulary]
    asked: Mapping[int, Token]
    known: int
    size: int
    files: Files | None
    notes: Sequence[str]


def tokens_of(config: Config, models: Models) -> Tokens | None:
    """The tokens, where the configuration says something of them. Raises InputError for models whose tokenizer.json is
    not there or has gaps, and for tokens that nobody has."""
    if (said := config.tokenizer) is None:
        return None
    own = {model: _vocabulary(opened) for model, opened in models.opened.items()}
    first = next(iter(own))
    base = first if config.base is None else config.base
    chosen, added, notes = own[base], dict[str, Mapping[str, Any]](), list[str]()
    if said.source == UNION:
        added = _others(chosen, own.values())
    elif said.source != BASE:
        assert isinstance(said.source, Model)
        if said.source not in own:
            raise InputError(f"{said.at}: the tokenizer is to be that of {shown(said.source)}, which takes no part")
        chosen = own[said.source]
    for name in said.tokens:
        if name not in chosen.tokens and name not in added:
            added[name] = {"content": name, **_PLAIN}
    numbers = dict(chosen.tokens)
    for name in added:
        numbers[name] = len(numbers)
    rows = {model: [vocabulary.tokens.get(name, -1) for name in numbers] for model, vocabulary in own.items()}
    size = len(numbers) + (-len(numbers) % said.multiple if said.multiple else 0)
    files = _files(chosen, added, numbers)
    if added:
        notes.append(f"{len(added):,} tokens follow those of {chosen.path}, as added tokens of its tokenizer")
    asked = {numbers[name]: token for name, token in said.tokens.items()}
    return Tokens(rows, own, asked, len(numbers), size, files, notes)


def _vocabulary(opened: Opened) -> Vocabulary:
    """Those of its tokens that its embeddings have rows for."""
    path = opened.checkpoint.path
    if store_of(path).look(path / _JSON) != FILE:
        raise UnsupportedError(f"{path} has no {_JSON}, which vocabularies are read from: write it (save_pretrained)")
    content = load_json(path / _JSON)
    listed, some = (content.get("model") or {}).get("vocab"), content.get("added_tokens") or []
    tokens = dict(listed) if isinstance(listed, dict) else None
    if tokens is None and isinstance(listed, list):  # of Unigram: pairs of a token and how likely it is
        tokens = {pair[0]: number for number, pair in enumerate(listed)}
    if tokens is None:
        raise UnsupportedError(f"{path / _JSON} has no vocabulary of a kind that is known")
    added = {one["content"]: one for one in some}
    tokens |= {name: one["id"] for name, one in added.items()}
    size = opened.config.get("vocab_size")
    if type(size) is int:
        tokens = {name: number for name, number in tokens.items() if number < size}
    ordered = dict(sorted(tokens.items(), key=lambda pair: pair[1]))
    if list(ordered.values()) != list(range(len(ordered))):
        raise UnsupportedError(f"{path / _JSON}: the numbers of its tokens have gaps, or stand there twice")
    return Vocabulary(ordered, added, path)


def _others(chosen: Vocabulary, every: Sequence[Vocabulary] | Any) -> dict[str, Mapping[str, Any]]:
    """The tokens that only others have, as added tokens."""
    found: dict[str, Mapping[str, Any]] = {}
    for other in every:
        for name in other.tokens:
            if name not in chosen.tokens and name not in found:
                found[name] = {
                    key: value
                    for key, value in other.added.get(name, {"content": name, **_PLAIN}).items()
                    if key != "id"
                }
    return found


def _files(chosen: Vocabulary, added: Mapping[str, Mapping[str, Any]], numbers: Mapping[str, int]) -> Files:
    files = read_tokenizer(chosen.path)
    if not added:
        return files
    content = load_json(chosen.path / _JSON)
    entries = [{"id": numbers[name], **one} for name, one in added.items()]
    content["added_tokens"] = [*(content.get("added_tokens") or []), *entries]
    found = {name: asset for name, asset in files.items() if name.endswith(".json") or "chat_template" in name}
    for stale in ("vocab.json", "added_tokens.json"):  # the same in other forms, which does not have them
        found.pop(stale, None)
    found[_JSON] = _with(found[_JSON], content)
    if _SETTINGS in found:
        settings = load_json(chosen.path / _SETTINGS)
        if _ADDED in settings:
            more = {str(numbers[name]): dict(one) for name, one in added.items()}
            found[_SETTINGS] = _with(found[_SETTINGS], {**settings, _ADDED: {**settings[_ADDED], **more}})
    return found


def _with(asset: Asset, content: Mapping[str, Any]) -> Asset:
    data = dump(content)
    return Asset(asset.source, asset.stamp, asset.name, len(data), data)
