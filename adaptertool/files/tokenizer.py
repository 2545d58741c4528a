"""The files of a tokenizer and its chat template: which they are, and how those of two folders differ."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, shown
from adaptertool.files import store_of
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import open_input, read_exact
from adaptertool.files.store import FILE, FOLDER
from adaptertool.patterns import regex
from adaptertool.spec.plan import Asset

# What says which tokens there are; any of these may be the whole vocabulary, in a form of its own
_VOCABULARY = frozenset(
    {
        "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt",
        "merges.txt", "tekken.json",
    }
)  # fmt: skip
_CONFIG = "tokenizer_config.json"
_SETTINGS = frozenset({_CONFIG, "special_tokens_map.json", "added_tokens.json"})
_JINJA, _JSON = "chat_template.jinja", "chat_template.json"
_TEMPLATE = "chat_template"  # the key of a JSON file
_MORE = "additional_chat_templates"  # a folder
_MORE_TEMPLATES = regex(_MORE + r"/[^/]+\.jinja")
_MAX_PARSED = 4 << 20  # bytes; parsed JSON takes ten times as much, and larger files are compared by their bytes
_CHUNK = 1 << 20  # bytes that are compared at once

Files = Mapping[str, Asset]


def is_tokenizer_file(name: str) -> bool:
    return name in _VOCABULARY or name in _SETTINGS or _is_template(name)


def read_tokenizer(folder: Path) -> dict[str, Asset]:
    """The files of the tokenizer in a folder, by name."""
    names = [*_VOCABULARY, *_SETTINGS, _JINJA, _JSON]
    store = store_of(folder)
    if store.look(folder / _MORE) == FOLDER:
        names += [f"{_MORE}/{entry.name}" for entry in store.entries(folder / _MORE) if entry.name.endswith(".jinja")]
    found = {}
    for name in sorted(names):
        if store.look(folder / name) == FILE:
            with open_input(folder / name) as file:
                found[name] = Asset(folder / name, file.stamp, name, file.size)
    return found


def differences(base: Files, other: Files) -> list[str]:
    """What `other` has otherwise than `base`, or that has not: files, and of a small JSON object its keys.

    The chat template counts wherever it stands: in a file of its own, or in tokenizer_config.json.
    """
    return list(_differences(base, other))


def stale(base: Files, other: Files) -> list[str]:
    """The files of `base` that are wrong beside those of `other`, which take the place of those of the same names.

    A vocabulary in a form that the other does not have may be kept where what both have is the same. Settings are those
    of the other where it has any, and so is the chat template.
    """
    both = [name for name in _VOCABULARY if name in base and name in other]
    same = bool(both) and all(_same(base[name], other[name]) for name in both)
    keeps_vocabulary = same or not _VOCABULARY & other.keys()
    left = []
    for name in sorted(base.keys() - other.keys()):
        if name in _VOCABULARY:
            wrong = not keeps_vocabulary
        elif name in _SETTINGS:
            wrong = _CONFIG in other
        else:
            wrong = _template(other) is not None
        if wrong:
            left.append(name)
    return left


def _differences(base: Files, other: Files) -> Iterator[str]:
    for name, asset in other.items():
        if name in (_JINJA, _JSON):
            continue
        if name not in base:
            yield f"{shown(name)} (only there)"
        elif not _same(base[name], asset):
            keys = [key for key in _keys(base[name], asset) if key != _TEMPLATE] if name == _CONFIG else []
            if keys or name != _CONFIG or _parsed(asset) is None:
                yield f"{shown(name)} ({', '.join(map(shown, keys))})" if keys else shown(name)
    own = _template(other)
    if own != _template(base) and (own is not None or _CONFIG in other):
        yield "the chat template" if own is not None else "the chat template (none there)"


def _is_template(name: str) -> bool:
    return name in (_JINJA, _JSON) or _MORE_TEMPLATES.fullmatch(name) is not None


def _template(files: Files) -> object:
    if _JINJA in files:
        return _bytes(files[_JINJA]).decode(errors="replace")
    for name in (_JSON, _CONFIG):
        if name in files and (found := (_parsed(files[name]) or {}).get(_TEMPLATE)):
            return found
    return None


def _keys(one: Asset, other: Asset) -> list[str]:
    """The keys in which two JSON objects differ."""
    here, there = _parsed(one) or {}, _parsed(other) or {}
    return [key for key in sorted({*here, *there}) if here.get(key) != there.get(key)]


def _same(one: Asset, other: Asset) -> bool:
    """Whether two files hold the same: the same bytes, or JSON that means the same."""
    if one.size == other.size:
        with open_input(one.source) as first, open_input(other.source) as second:
            parts = ((at, min(_CHUNK, one.size - at)) for at in range(0, one.size, _CHUNK))
            if all(read_exact(first, *part) == read_exact(second, *part) for part in parts):
                return True
    here = _parsed(one) if one.name.endswith(".json") else None
    return here is not None and here == _parsed(other)


def _parsed(asset: Asset) -> dict[str, Any] | None:
    """The JSON object in a small file; None where there is none."""
    if asset.size <= _MAX_PARSED:
        with contextlib.suppress(InputError):
            return load_json(asset.source)
    return None


def _bytes(asset: Asset) -> bytes:
    with open_input(asset.source) as file:
        return read_exact(file, 0, file.size)
