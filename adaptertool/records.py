"""Dataclasses as records are: those of the standard library, in a third of its time, with its `field` and `replace`.

A start makes some ninety of them. The library writes and compiles six methods for each, which takes a third of all
that a start takes; here a record has an `__init__` of its own, and shares the other methods with all. Fields, the order
of arguments, equality, hashes, pickles, `dataclasses.replace`, `fields` and `asdict` are as theirs.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError, fields
from dataclasses import field as field
from dataclasses import replace as replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

_MADE = "<factory>"  # stands for what a factory makes, where an argument is not given


class _Factory:
    def __repr__(self) -> str:
        return _MADE


_FACTORY = _Factory()
_BEYOND = {"init": True, "repr": True, "hash": None, "compare": True}  # what a field of a record is, always

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
else:

    def dataclass(*, slots: bool, frozen: bool = False, kw_only: bool = False) -> Callable[[type], type]:
        """As `dataclasses.dataclass`, for those of its options that records have. Raises TypeError for other fields,
        and for classes with methods of these names."""

        def made(kind: type) -> type:
            if own := {"__init__", "__repr__", "__eq__", "__hash__", "__setattr__"} & vars(kind).keys():
                raise TypeError(f"{kind.__name__} has {', '.join(sorted(own))} of its own: use dataclasses.dataclass")
            of_library = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots, kw_only=kw_only)(kind)
            return _complete(of_library, frozen=frozen)

        return made


def _complete(kind: Any, *, frozen: bool) -> Any:
    """A dataclass without methods gets those that it needs. Raises TypeError for fields that no record has."""
    own = fields(kind)
    for one in own:
        if any(getattr(one, name) is not wanted for name, wanted in _BEYOND.items()):
            raise TypeError(f"{kind.__name__}.{one.name} is a field that no record has: use dataclasses.dataclass")
    kind.__init__ = _init(kind, own, frozen=frozen)
    kind.__repr__ = _repr
    kind.__eq__, kind.__hash__ = _equality([one.name for one in own])
    if frozen:
        kind.__setattr__, kind.__delattr__ = _no_assignment, _no_deletion
        kind.__getstate__, kind.__setstate__ = _getstate, _setstate
    else:
        kind.__hash__ = None
    return kind


def _init(kind: type, own: Sequence[dataclasses.Field[Any]], *, frozen: bool) -> Callable[..., None]:
    """The only method that is written for each class, since Python then sorts the arguments."""
    known: dict[str, Any] = {"_set": object.__setattr__, "_factory": _FACTORY}
    arguments, lines = {False: ["self"], True: ["*"]}, ["pass"]
    for one in own:
        value = one.name
        if one.default_factory is not dataclasses.MISSING:
            known[f"_make_{one.name}"] = one.default_factory
            default, value = "=_factory", f"_make_{one.name}() if {one.name} is _factory else {one.name}"
        elif one.default is not dataclasses.MISSING:
            known[f"_default_{one.name}"] = one.default
            default = f"=_default_{one.name}"
        else:
            default = ""
        arguments[one.kw_only is True].append(one.name + default)
        lines.append(f"_set(self, {one.name!r}, {value})" if frozen else f"self.{one.name} = {value}")
    told = arguments[False] + (arguments[True] if len(arguments[True]) > 1 else [])
    exec(f"def __init__({', '.join(told)}):\n " + "\n ".join(lines), known)
    init: Any = known["__init__"]
    init.__qualname__, init.__module__ = f"{kind.__qualname__}.__init__", kind.__module__
    init.__annotations__ = {one.name: one.type for one in own} | {"return": None}
    return init  # type: ignore[no-any-return]


def _equality(names: Sequence[str]) -> tuple[Callable[[Any, object], bool], Callable[[Any], int]]:
    """Records are equal that are of one class and have equal fields, as tuples are."""
    values: Callable[[Any], Any] = attrgetter(*names) if len(names) > 1 else lambda self: tuple(_getstate(self))

    def __eq__(self: Any, other: object) -> bool:
        return bool(values(self) == values(other)) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self: Any) -> int:
        return hash(values(self))

    return __eq__, __hash__


@reprlib.recursive_repr()
def _repr(self: Any) -> str:
    told = (f"{one.name}={getattr(self, one.name)!r}" for one in fields(self))
    return f"{type(self).__qualname__}({', '.join(told)})"


def _no_assignment(_: Any, name: str, _value: object) -> None:
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_deletion(_: Any, name: str) -> None:
    raise FrozenInstanceError(f"cannot delete field {name!r}")


def _getstate(self: Any) -> list[Any]:
    return [getattr(self, one.name) for one in fields(self)]


def _setstate(self: Any, state: Sequence[Any]) -> None:
    for one, value in zip(fields(self), state, strict=True):
        object.__setattr__(self, one.name, value)
