"""Scores that are there already: in a folder where an earlier run published them, or those of other points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from adaptertool.errors import InputError, OutputError, shown
from adaptertool.files.checkpoint import MANIFEST, load_manifest
from adaptertool.files.hashing import BLAKE3, digests_of
from adaptertool.files.jsonfile import load_json
from adaptertool.reports.scores import SCORES, Scores
from adaptertool.scoring.scorer import ScoringError, checked_scores

REMEDY = "choose another OUT, or replace it with --force"
Key = TypeVar("Key")


def published_scores(out: Path, key: str) -> Mapping[str, Any] | None:
    """The report that stands in `out`; None where there is none. Raises OutputError for one of another key, or that is
    not as we wrote it."""
    if not (out / SCORES).is_file() or not (out / MANIFEST).is_file():
        return None
    content, files = load_json(out / SCORES), load_manifest(out).get("files")
    facts = files.get(SCORES) if isinstance(files, dict) else None
    if not isinstance(facts, dict) or facts.get(BLAKE3) != digests_of(out / SCORES)[BLAKE3]:
        raise OutputError(f"{out / SCORES} is not as adaptertool wrote it; {REMEDY}")
    if content.get("key") != key:
        raise OutputError(
            f"{out} holds the scores of another command, or of other inputs, or one of their files was changed "
            f"since; {REMEDY}"
        )
    found: Mapping[str, Any] = content
    return found


def measured_points(
    content: Mapping[str, Any], path: Path, key: Callable[[Mapping[str, Any]], Key]
) -> Iterator[tuple[Key, dict[str, float]]]:
    """The points that were measured, by what `key` makes of them, of a file that adaptertool wrote. Raises InputError
    for any other."""
    try:
        for point in content["points"]:
            if point["scores"]:
                yield key(point), checked_scores(point["scores"])
    except (KeyError, TypeError, ValueError, AttributeError, ScoringError) as error:
        raise InputError(f"{path} is not as adaptertool wrote it; --force measures anew") from error


def like_others(scores: Scores, others: Iterable[Scores]) -> Scores:
    """The scores in the order of those of other points. Raises ScoringError where these have others."""
    other = next(iter(others), scores)
    if scores.keys() != other.keys():
        ours, theirs = (", ".join(map(shown, some)) for some in (scores, other))
        raise ScoringError(f"its scores are {ours}, but those of other points {theirs}")
    return {name: scores[name] for name in other}
