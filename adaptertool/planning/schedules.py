"""Weights that differ between tensors, from what is typed to a number for each; and which tensors are to be edited.

-w 0.7 -w 0.3                 one for each source, by order; 1 where none is given
-w 0:0.5:1                    in the place of one of these: a gradient over the layers, with 1 for what is in none
-w 'layers.0-15.mlp=0.5'      of tensors whose names fit the pattern before the sign, for all sources
-w 'layers.0-15.mlp=0.5,0:1'  the same, for each source its own; of one that is left empty nothing changes
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from adaptertool.arguments import Number, decimal, decimals
from adaptertool.errors import UnsupportedError, UsageError, argument, shown
from adaptertool.planning.unfit import NONE_TIED, Tied, refuse
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.schedule import ANY, Rule, Schedule, compiled, fits, places_of

Weight = float | Schedule
Given = Number | Schedule  # a weight as callers have it


def parse_weights(given: Sequence[Given] | None, count: int) -> list[Schedule]:
    """The weights of `count` sources. Raises UsageError for what is none, and where they are not as many."""
    if given is None or isinstance(given, str):
        return [Schedule(number) for number in decimals(given, "weight", count)]
    plain, texts = apart(given)
    own = [parse_one(one) for one in plain]
    if own or not texts:
        decimals([one.default for one in own], "weight", count)
    return with_texts(own or [Schedule(Decimal(1))] * count, texts)


def apart(given: Sequence[Given]) -> tuple[list[Given], list[str]]:
    """What is given by order, and what is of tensors that fit a pattern."""
    texts = [one for one in given if isinstance(one, str) and "=" in one]
    return [one for one in given if not isinstance(one, str) or "=" not in one], texts


def with_texts(schedules: Sequence[Schedule], texts: Sequence[str], what: str = "weight") -> list[Schedule]:
    """The schedules of sources, with what `PATTERN=NUMBERS` says of all or each. Raises UsageError."""
    found = list(schedules)
    for text in texts:
        found = [
            one if rule is None else one._replace(rules=(*one.rules, rule))
            for one, rule in zip(found, _rules(text, len(found), what), strict=True)
        ]
    return found


def parse_one(given: Given, what: str = "weight", default: Decimal = Decimal(1)) -> Schedule:
    """A number, or a gradient over layers with `default` for what is in none. Raises UsageError."""
    if isinstance(given, Schedule):
        return given
    if isinstance(given, str) and ":" in given:
        return Schedule(default, (Rule(ANY, _gradient(given, given, what)),))
    return Schedule(decimal(given, argument(what)))


def _rules(text: str, count: int, what: str) -> list[Rule | None]:
    """What `PATTERN=NUMBERS` says of each source."""
    pattern, _, numbers = text.rpartition("=")
    check_pattern(pattern := pattern.strip(), argument(what))
    parts = [part.strip() for part in numbers.split(",")]
    if len(parts) not in (1, count) or not any(parts):
        many = f"{len(parts):,} numbers" if any(parts) else "no number"
        which = "" if count == 1 else f" for all {count:,} sources, or one for each"
        raise UsageError(
            f"{argument(what)} {text!r} has {many} behind its last =: give one{which}, such as {pattern}="
            f"{','.join(['0.5'] * count)}"
        )
    rules = [Rule(pattern, _gradient(part, text, what)) if part else None for part in parts]
    return rules * count if len(rules) == 1 else rules


def _gradient(part: str, text: str, what: str) -> tuple[Decimal, ...]:
    said = argument(what) if part == text else f"{argument(what)} {text!r}:"
    return tuple(decimal(one, said) for one in part.split(":"))


def check_pattern(pattern: str, what: str) -> None:
    """Raises UsageError for what is no pattern."""
    try:
        compiled(pattern)
    except ValueError as error:
        raise UsageError(f"{what}: {pattern!r} is no pattern for names: {error}") from error


def rule_texts(schedules: Sequence[Weight]) -> list[str]:
    """The rules as they may be typed: those of each source in their order, and together what has one pattern."""
    left = [list(one.rules) if isinstance(one, Schedule) else [] for one in schedules]
    texts = []
    while first := [rules[0].pattern for rules in left if rules]:
        later = [{rule.pattern for rule in rules[1:]} for rules in left]
        pattern = next((one for one in first if not any(one in some for some in later)), first[0])
        said = [_said(rules.pop(0)) if rules and rules[0].pattern == pattern else "" for rules in left]
        texts.append(f"{pattern}={said[0] if len({*said}) == 1 else ','.join(said)}")
    return texts


def _said(rule: Rule) -> str:
    return ":".join(map(str, rule.numbers))


def as_typed(given: Sequence[Given] | None) -> tuple[str, ...] | None:
    """Weights as they may be typed, which mean the same. None where none are given."""
    if given is None:
        return None
    if not any(isinstance(one, Schedule) for one in given):
        return tuple(map(str, given))
    schedules = parse_weights(given, len(apart(given)[0]))
    return (*(str(one.default) for one in schedules), *rule_texts(schedules))


def with_rules(choices: Mapping[str, object], schedules: Sequence[Weight]) -> dict[str, object]:
    """The choices of a plan with the rules of its weights, if there are any."""
    texts = rule_texts(schedules)
    return {**choices, "weight_rules": texts} if texts else dict(choices)


def usual(weight: Weight) -> float:
    """The weight where no rule fits."""
    return float(weight.default) if isinstance(weight, Schedule) else weight


class Weigher:
    """The weight of each source in each tensor, as float64, rounded once; or another number, called `what`."""

    def __init__(
        self, weights: Sequence[Weight], names: Collection[str], what: str = "weight", tied: Tied = NONE_TIED
    ) -> None:
        """names: of all tensors of the model; they tell how many layers there are. tied: ends that are none of these,
        and changed as the tensor that they are tied to is. Raises UsageError for a rule that fits no name."""
        self._what = what
        self._exact = [Fraction(one.default if isinstance(one, Schedule) else one) for one in weights]
        self._usual = [usual(one) for one in weights]
        self.rules = [one.rules if isinstance(one, Schedule) else () for one in weights]
        self._by_rule = [one if isinstance(one, Schedule) and one.rules else None for one in weights]
        graded = any(len(rule.numbers) > 1 for rules in self.rules for rule in rules)
        self.places: Mapping[str, Fraction] = places_of(names) if graded else {}
        for rule in dict.fromkeys(rule for rules in self.rules for rule in rules):
            if not any(rule.fits(name, self.places.get(name)) for name in names):
                refuse(rule.pattern, argument(what), names, graded=len(rule.numbers) > 1, tied=tied)

    def __call__(self, number: int, name: str) -> float:
        return self._usual[number] if self._by_rule[number] is None else float(self.exact(number, name))

    def fixed(self, number: int) -> float | None:
        """The weight of a source that has one in all tensors; None where rules say it."""
        return self._usual[number] if self._by_rule[number] is None else None

    def exact(self, number: int, name: str) -> Fraction:
        """The same, as it is."""
        own = self._by_rule[number]
        return self._exact[number] if own is None else own.at(name, self.places.get(name))

    def is_said(self, name: str) -> bool:
        """Whether a rule of each source fits the tensor."""
        place = self.places.get(name)
        return all(any(rule.fits(name, place) for rule in rules) for rules in self.rules)

    def notes(self, changed: Sequence[Collection[str]]) -> Iterator[str]:
        """Where a rule fits only what its source does not change. changed: the names, of each source"""
        for rule in dict.fromkeys(rule for rules in self.rules for rule in rules):
            names = {name for own, rules in zip(changed, self.rules, strict=True) if rule in rules for name in own}
            if not any(rule.fits(name, self.places.get(name)) for name in names):
                said = f"{self._what} {shown(rule.pattern)}={_said(rule)}"
                yield f"{said} fits no tensor that is edited: it changes nothing"


class Choice(NamedTuple):
    """Which tensors are to be edited; the others stay those of the base."""

    only: Sequence[str] = ()  # patterns, of which one must fit; none: all tensors
    exclude: Sequence[str] = ()  # patterns, of which none may fit

    def takes(self, name: str) -> bool:
        if self.only and not any(fits(pattern, name) for pattern in self.only):
            return False
        return not any(fits(pattern, name) for pattern in self.exclude)

    def check(self, names: Collection[str]) -> None:
        """Raises UsageError for patterns that are none, or that fit no tensor."""
        for option, patterns in (("only", self.only), ("exclude", self.exclude)):
            if isinstance(patterns, str) or not all(isinstance(one, str) for one in patterns):
                raise UsageError(f"{argument(option)} is a list of patterns")
            for pattern in patterns:
                check_pattern(pattern, argument(option))
                if not any(fits(pattern, name) for name in names):
                    refuse(pattern, argument(option), names)

    @property
    def said(self) -> dict[str, list[str]]:
        """For the manifest, what is given."""
        return {name: list(patterns) for name, patterns in self._asdict().items() if patterns}

    def notes(self, source: Path, left: int, count: int) -> list[str]:
        """How many of the tensors that a source changes stay those of the base, where a choice is made."""
        said = " ".join(f"--{name} {shown(one)}" for name, patterns in self.said.items() for one in patterns)
        kept = f"{left:,} of the {count:,} tensors that it changes stay those of the base"
        return [f"{source}: {kept} ({said})"] if said else []


ALL = Choice()


def require_whole(adapter: Adapter, choice: Choice, names: Iterable[str], what: str) -> None:
    """Raises UnsupportedError where a tensor that cannot stay the base's is not to be edited."""
    if left := [name for name in names if not choice.takes(name)]:
        raise UnsupportedError(
            f"{adapter.path} {what}, so {shown(left[0])} cannot stay that of the base, as {argument('only')} and "
            f"{argument('exclude')} would have it"
        )
