"""Settings of methods that differ between tensors or sources, from what is typed; in the forms that weights have.

--density 0.5                             for all tensors of all sources
--density 0.5 --density 0.3               one for each source, by order, where the setting is one of each source
--density 0.3:0.8                         a gradient over the layers, with what is usual for what is in none
--density 0.5 --density 'mlp=0.3'         of tensors whose names fit the pattern before the sign
--density 0.5 --density 'mlp=0.3,0:1'     the same, for each source its own
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from types import MappingProxyType
from typing import NamedTuple

from adaptertool.arguments import Number, one_setting, require_own, settings_for
from adaptertool.errors import UsageError, argument, shown
from adaptertool.methods import Method, Settings, Value, settings_of
from adaptertool.planning.schedules import Given, Weigher, apart, as_typed, parse_one, rule_texts, with_texts
from adaptertool.planning.unfit import NONE_TIED, Tied
from adaptertool.spec.schedule import Schedule

GivenSetting = Given | Sequence[Given]  # a setting as callers have it

_SIGNS = {"=", ":"}  # of a rule, and of a gradient
_STAND_IN = 1.0  # of a setting without a number where no rule fits: refused before it plays a part


class ByTensor(NamedTuple):
    """The settings that differ between tensors, by name.

    schedules: one for all sources, or one for each
    needed:    the names of those that no rule-less number stands behind: a rule must fit each tensor that is edited
    """

    schedules: Mapping[str, Sequence[Schedule]]
    needed: Collection[str]

    def said(self, settings: Settings) -> dict[str, object]:
        """Settings as manifests have them: the usual numbers, and the rules as they may be typed."""
        usual: dict[str, object] = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in settings.items()
            if name not in self.needed
        }
        rules = {name: rule_texts(some) for name, some in self.schedules.items()}
        return {**usual, "setting_rules": rules} if rules else usual


ALIKE = ByTensor(MappingProxyType({}), ())


def parse_settings(method: Method, given: Mapping[str, GivenSetting], count: int) -> tuple[Settings, ByTensor]:
    """The settings of a method of `count` sources, as they are where no rule fits, and those that differ between
    tensors. Raises UsageError for what the method has no use for, or needs, and for what is no such number."""
    given = {name: value for name, value in given.items() if not (isinstance(value, Sequence) and not value)}
    require_own(method, given)
    alike, usual = dict[str, Number](), dict[str, Value | tuple[Value, ...]]()
    schedules, needed = dict[str, Sequence[Schedule]](), list[str]()
    for name, value in given.items():
        several = _several(value)
        first = several[0] if len(several) == 1 else None
        if first is not None and not isinstance(first, Schedule) and not (isinstance(first, str) and _SIGNS & {*first}):
            alike[name] = first
            continue
        found, numbers = _parsed(method, name, several, count)
        if numbers is None:
            needed.append(name)
        usual[name] = _STAND_IN if numbers is None else numbers
        if any(one.rules for one in found):
            schedules[name] = found
    settings = {**settings_for(method, alike | dict.fromkeys(usual, _STAND_IN)), **usual}
    # In one order, whatever the order of what is given: the same manifest
    return settings, ByTensor({name: schedules[name] for name in settings if name in schedules}, needed)


def _several(value: GivenSetting) -> Sequence[Given]:
    if isinstance(value, str | Schedule) or not isinstance(value, Sequence):
        return [value]
    return value  # type: ignore[return-value]  # a Schedule is a tuple, too, which mypy does not take away


def setting_as_typed(value: GivenSetting) -> object:
    """A setting as it may be typed, which means the same."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return value
    return list(as_typed(_several(value)) or ())


def _parsed(
    method: Method, name: str, several: Sequence[Given], count: int
) -> tuple[Sequence[Schedule], Value | tuple[Value, ...] | None]:
    """The schedules of a setting, and its numbers where no rule fits; None where it has none."""
    setting = settings_of()[name]
    if setting.number is not float:
        raise UsageError(f"{argument(name)} is one for all tensors and sources: {setting.allowed}")
    plain, texts = apart(several)
    if len(plain) not in ((0, 1, count) if setting.each else (0, 1)):
        which = f"give one for all, or one for each of the {count:,}" if setting.each else "it is one for all of them"
        raise UsageError(
            f"{argument(name)} is given {len(plain):,} times for {count:,} sources: {which}; of tensors that fit: "
            f"{argument(name)} 'layers.0-15.mlp=0.5'"
        )
    default = method.defaults.get(name, setting.default)
    usual = None if default is None else Decimal(str(default))
    own = [parse_one(one, name, usual or Decimal(0)) for one in plain]
    lacking = usual is None and (not own or any(isinstance(one, str) and ":" in one for one in plain))
    own = own or [Schedule(usual or Decimal(0))]
    if setting.each and len(own) < count:
        own *= count
    found = with_texts(own, texts, name)
    if lacking:
        return found, None
    numbers = tuple(one_setting(name, one.default) for one in found)
    return found, numbers[0] if len({*numbers}) == 1 else numbers


class Setter:
    """The settings of each tensor that are not those of the method as a whole."""

    def __init__(self, method: Method, by_tensor: ByTensor, names: Collection[str], tied: Tied = NONE_TIED) -> None:
        """names, tied: as of `Weigher`. Raises UsageError for a rule that fits none of them."""
        self._method, self._needed = method, by_tensor.needed
        self._weighers = {name: Weigher(some, names, name, tied) for name, some in by_tensor.schedules.items()}

    def of(self, tensor: str) -> tuple[tuple[str, Value | tuple[Value, ...]], ...]:
        """The settings of a tensor. Raises UsageError for one that is out of its range, or that nothing says."""
        return tuple((name, self._value(name, weigher, tensor)) for name, weigher in self._weighers.items())

    def _value(self, name: str, weigher: Weigher, tensor: str) -> Value | tuple[Value, ...]:
        known = self._method.settings[name]
        if name in self._needed and not weigher.is_said(tensor):
            raise UsageError(
                f"{self._method.name} needs {argument(name)}, and none is given for {shown(tensor)}: add a number for "
                f"what no rule fits ({argument(name)} 0.5), with a gradient over the layers as a rule "
                f"({argument(name)} '*=0.3:0.8')"
            )
        values = tuple(weigher(number, tensor) for number in range(len(weigher.rules)))
        for value in values:
            if not known.allows(value):
                raise UsageError(f"{argument(name)} is {known.allowed}, not {value:g}, as for {shown(tensor)}")
        return values[0] if len({*values}) == 1 else values

    def notes(self, changed: Sequence[Collection[str]]) -> Iterator[str]:
        """Where a rule fits no tensor that is edited. changed: the names, of each source"""
        every = [{name for own in changed for name in own}]
        for weigher in self._weighers.values():
            yield from weigher.notes(changed if len(weigher.rules) == len(changed) else every)
