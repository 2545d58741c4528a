"""Records are as the dataclasses of the standard library."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import pickle
from typing import Any, ClassVar, Generic, TypeVar

import pytest
from conftest import ROOT

import adaptertool.records as ours

T = TypeVar("T")
LIBRARY, RECORDS = dataclasses.dataclass, ours.dataclass


class Plain:
    """Nothing but annotations and methods, of which both make theirs."""

    same: ClassVar[int] = 3
    name: str
    count: int = 0
    parts: dict[str, int] = ours.field(default_factory=dict)
    none: float | None = None

    @property
    def doubled(self) -> int:
        return self.count * 2


class Single(Generic[T]):
    """One field."""

    value: T


class Empty:
    """No fields."""


OPTIONS = [{"frozen": frozen, "kw_only": named} for frozen in (False, True) for named in (False, True)]


def twins(kind: type, **options: bool) -> tuple[Any, Any]:
    """The same class as a dataclass, and as a record."""
    bodies = [
        {name: copy.copy(one) if isinstance(one, dataclasses.Field) else one for name, one in vars(kind).items()}
        for _ in range(2)
    ]
    kinds = [type(kind.__name__, kind.__bases__, body) for body in bodies]
    library, record = (make(slots=True, **options)(one) for make, one in zip((LIBRARY, RECORDS), kinds, strict=True))
    return library, record


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", [Plain, Empty])
def test_what_is_told_of_the_class_is_the_same(kind: type, options: dict[str, bool]) -> None:
    library, record = twins(kind, **options)
    assert str(inspect.signature(library)) == str(inspect.signature(record))
    assert inspect.get_annotations(library.__init__) == inspect.get_annotations(record.__init__)
    for name in ("__slots__", "__match_args__", "__doc__", "__module__", "__qualname__"):
        assert getattr(library, name) == getattr(record, name), name
    assert [one.name for one in dataclasses.fields(library)] == [one.name for one in dataclasses.fields(record)]
    assert (library.__hash__ is None) == (record.__hash__ is None)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_instances_are_the_same(options: dict[str, bool]) -> None:
    for one in twins(Plain, **options):
        full = one(name="a", count=2, parts={"b": 1}, none=0.5)
        assert repr(full).endswith("Plain(name='a', count=2, parts={'b': 1}, none=0.5)")
        assert dataclasses.asdict(full) == {"name": "a", "count": 2, "parts": {"b": 1}, "none": 0.5}
        assert (full.doubled, full.same) == (4, 3)
        short, other = one(name="a"), one(name="a")
        assert short == other and short is not other and short.parts == {} and short.parts is not other.parts
        assert short != full and short != "a" and short != ("a", 0, {}, None)
        assert dataclasses.replace(short, count=2, parts={"b": 1}, none=0.5) == full
        assert copy.copy(full) == full == copy.deepcopy(full)
        for wrong in ({}, {"name": "a", "more": 1}):
            with pytest.raises(TypeError, match=r"__init__\(\)"):
                one(**wrong)
        if not options["kw_only"]:
            assert one("a", 2, {"b": 1}, 0.5) == full
        else:
            with pytest.raises(TypeError, match="argument"):
                one("a", name="b")


def test_frozen_ones_stay_and_others_change() -> None:
    for one in twins(Plain, frozen=True):
        made = one("a")
        for change in (lambda made=made: setattr(made, "count", 1), lambda made=made: delattr(made, "count")):
            with pytest.raises(dataclasses.FrozenInstanceError, match="'count'"):
                change()
        assert made.count == 0
    for one in twins(Plain):
        made = one("a")
        made.count = 5
        assert made.count == 5
        with pytest.raises(TypeError, match="unhashable"):
            hash(made)
        with pytest.raises(AttributeError):
            made.other = 1


def test_hashes_are_those_of_the_fields() -> None:
    for kind, values in ((Single, (1.5,)), (Empty, ())):
        library, record = twins(kind, frozen=True)
        assert hash(library(*values)) == hash(record(*values)) == hash(values)
        assert {record(*values): 1}[record(*values)] == 1


def test_fields_are_compared_as_tuples_are() -> None:
    """A NaN is equal to itself where it is the same object."""
    for one in twins(Single, frozen=True):
        assert one(value := float("nan")) == one(value) and one(float("nan")) != one(float("nan"))


@RECORDS(frozen=True, slots=True)
class Pickled:
    name: str
    inner: Single[int] | None = None


@RECORDS(frozen=True, slots=True)
class Below(Pickled):
    """Fields of its own after those that it inherits."""

    more: int = 1


def test_records_are_pickled_and_inherit() -> None:
    for made in (Pickled("a"), Below("a", None, 7), Below("b", more=2)):
        for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(made, protocol))
            assert again == made and type(again) is type(made)
    assert Below("a") != Pickled("a") and repr(Below("a")) == "Below(name='a', inner=None, more=1)"


def test_a_record_within_itself_has_an_end() -> None:
    one = twins(Plain)[1]("a")
    one.parts["b"] = one
    assert "..." in repr(one)


@pytest.mark.parametrize(
    "field",
    [{"init": False}, {"repr": False}, {"compare": False}, {"hash": False}],
    ids=lambda field: next(iter(field)),
)
def test_fields_that_no_record_has_are_refused(field: dict[str, bool]) -> None:
    odd = type("Odd", (), {"__annotations__": {"x": int}, "x": dataclasses.field(default=1, **field)})
    with pytest.raises(TypeError, match=r"Odd\.x is a field that no record has"):
        RECORDS(slots=True)(odd)


@pytest.mark.parametrize("name", ["__init__", "__repr__", "__eq__", "__hash__", "__setattr__"])
def test_methods_of_its_own_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=r"use dataclasses\.dataclass"):
        RECORDS(slots=True)(type("Odd", (), {name: lambda *_: None}))


def test_all_records_are_made_here() -> None:
    """One that the library makes costs three times as much at each start."""
    for path in (ROOT / "adaptertool").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "dataclasses" and path.name != "records.py":
                assert "dataclass" not in {one.name for one in node.names}, path
