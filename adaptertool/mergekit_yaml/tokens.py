"""Which tokens the output has: `tokenizer_source` and `tokenizer` of mergekit."""

from __future__ import annotations

from collections.abc import Mapping

from adaptertool.errors import InputError
from adaptertool.files.yamlfile import Entry, Node, Scalar, Table
from adaptertool.mergekit_yaml import fields as f
from adaptertool.mergekit_yaml.records import BASE, UNION, Model, Token, Tokenizer
from adaptertool.mergekit_yaml.references import read_model


def read_tokenizer(given: Mapping[str, Entry]) -> Tokenizer | None:
    """What is said of tokens; None where nothing is. Raises InputError for anything that mergekit would not take."""
    if "tokenizer" not in given:
        if "tokenizer_source" not in given:
            return None
        node = given["tokenizer_source"].value
        return Tokenizer(_tokens_of(node), {}, None, node.at)
    if "tokenizer_source" in given:
        raise InputError(f"{given['tokenizer'].key.at}: either tokenizer or tokenizer_source")
    node = given["tokenizer"].value
    own = f.known(node, "tokenizer", ("source", "tokens", "pad_to_multiple_of"))
    listed = f.table(own["tokens"].value, "tokens").entries if "tokens" in own else {}
    multiple = f.whole(own["pad_to_multiple_of"].value, "pad_to_multiple_of") if "pad_to_multiple_of" in own else None
    source = _tokens_of(own["source"].value) if "source" in own else UNION
    return Tokenizer(source, {name: _token(one.value) for name, one in listed.items()}, multiple or None, node.at)


def _tokens_of(node: Node) -> Model | str:
    plain = isinstance(node, Scalar) and node.text in (BASE, UNION)
    return f.text(node, "the source of tokens") if plain else read_model(node)


def _token(node: Node) -> Token:
    own = f.known(node, "a token", ("source", "force"))
    force = f.truth(own["force"].value, "force") if "force" in own else False
    if "source" not in own:
        raise InputError(f"{node.at}: a token has a source: a model, or kind: zero, or kind: model_token")
    source = own["source"].value
    if not isinstance(source, Table) or "kind" not in source.entries:
        return Token(read_model(source), None, force)
    more = f.known(source, "the source of a token", ("kind", "model", "token_id", "token"))
    kind = f.text(more["kind"].value, "kind")
    if kind == "zero" and set(more) == {"kind"}:
        return Token(None, None, force)
    if kind != "model_token" or "model" not in more or ("token" in more) == ("token_id" in more):
        raise InputError(f"{source.at}: kind is zero, or model_token with a model, and token or token_id")
    name = f.text(more["token"].value, "token") if "token" in more else f.whole(more["token_id"].value, "token_id")
    return Token(read_model(more["model"].value), name, force)
