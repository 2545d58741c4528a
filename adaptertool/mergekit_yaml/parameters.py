"""What the parameters of a configuration are for one tensor.

Of several places the first that says something counts: the source, the slice, the module, the configuration; and there
the first case whose filter is a part of the tensor's name. A list is a gradient over the layers of a slice
(spec.schedule.at_place); of true and false it is the one at ⌊t·(k − 1)⌋. What lies in no layer is at t = 0.

Source: mergekit 0.1.5 (`evaluate_setting`, `resolve_parameters`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from adaptertool.arguments import settings_for
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.yamlfile import At
from adaptertool.mergekit_yaml import fields as f
from adaptertool.mergekit_yaml.forms import (
    FORMS,
    PARAMETERS,
    PLAIN,
    REQUIRED,
    SHARED,
    TRUTH,
    WEIGHT,
    WHOLE,
    Form,
    Parameter,
)
from adaptertool.mergekit_yaml.records import Case, Config, Parameters, Slice, Source
from adaptertool.methods import METHOD_BY_NAME, settings_of
from adaptertool.resolution.nearest import nearest
from adaptertool.spec.plan import Blend
from adaptertool.spec.schedule import at_place

_FLATTEN, _ROW_WISE, _DENSITY, _TOPK, _SCALE = (
    "nuslerp_flatten", "nuslerp_row_wise", "density", "select_topk", "scale",
)  # fmt: skip
Value = float | bool | int


class Tensor(NamedTuple):
    """Where a tensor of the output comes from. names: of the tensor in each source; place: t, from 0 to 1"""

    name: str
    names: Sequence[str]
    place: Fraction


class Found(NamedTuple):
    """What becomes of one tensor: how the inputs are combined, and which of them add nothing (a density of 0)."""

    blend: Blend
    without: frozenset[int]


def form_of(config: Config) -> Form:
    """The method. Raises InputError where mergekit 0.1.5 has none of that name, UnsupportedError for one that is not
    built."""
    if config.method in FORMS:
        return FORMS[config.method]
    if config.method in ("ram", "ramplus_tl"):
        raise UnsupportedError(f"{config.method_at}: the method {config.method} is not built; there are {_listed()}")
    near = nearest(config.method, FORMS)
    hint = f"; nearest: {', '.join(near)}" if near else ""
    raise InputError(f"{config.method_at}: mergekit has no method {shown(config.method)!r}{hint}; it has {_listed()}")


def _listed() -> str:
    return ", ".join(sorted(FORMS))


def check_parameters(config: Config) -> list[str]:
    """Notes on parameters that the method does not have, or has not there, which mergekit passes over.

    Raises InputError for one that no method has, and for values that are of another type.
    """
    form, notes = form_of(config), dict[str, None]()
    places: list[tuple[Parameters, bool]] = [(config.parameters, False), (config.inner, False)]
    for one in config.slices:
        places += [(one.parameters, False), *((source.parameters, True) for source in one.sources)]
    for parameters, of_source in places:
        for name, cases in parameters.items():
            if name not in PARAMETERS:
                near = nearest(name, sorted(PARAMETERS))
                hint = f"; nearest: {', '.join(near)}" if near else f"; there are {', '.join(sorted(PARAMETERS))}"
                raise InputError(f"{cases[0].at}: no method of mergekit has the parameter {shown(name)!r}{hint}")
            own = form.parameters.get(name)
            if own is None:
                notes[f"{config.method} has no {name}, which changes nothing: as in mergekit, it is passed over"] = None
            elif of_source and own.scope == SHARED:
                notes[
                    f"{name} is one for all sources: what single sources say of it is passed over, as in mergekit"
                ] = None
            else:
                for case in cases:
                    _at(case, own, name, Fraction(0))
    return list(notes)


def _at(case: Case, parameter: Parameter, name: str, place: Fraction) -> Value:
    """The value of a case. Raises InputError for another type."""
    if parameter.kind == TRUTH:
        truths = [f.truth(value, name) for value in case.values]
        return truths[int(place * (len(truths) - 1))]
    exact = at_place(_numbers(case, name), place)
    if parameter.kind == WHOLE:
        if exact.denominator != 1:
            raise InputError(f"{case.at}: {name} is a whole number")
        return int(exact)
    return float(exact)


def _numbers(case: Case, name: str) -> list[Decimal]:
    return [f.number(value, name) for value in case.values]


class Reader(NamedTuple):
    """The parameters of one slice."""

    config: Config
    slice: Slice
    form: Form
    inputs: Sequence[Source]  # in their order, the base where it is one
    base: int | None  # the number of the base among these, where it is no input like the others

    def blend(self, tensor: Tensor) -> Found:
        """How the inputs are combined; weights and settings are those of the inputs but the base. Raises InputError,
        with the line, for a value out of range, and for one that is missing."""
        assert self.form.ours is not None
        method = METHOD_BY_NAME[self.form.ours]
        others = [number for number in range(len(self.inputs)) if number != self.base]
        settings: dict[str, Value | tuple[Value, ...]] = dict(_usual(method.name))
        weights = [1.0] * len(others)
        without = set[int]()
        for name, parameter in self.form.parameters.items():
            if parameter.scope == SHARED:
                found = [self._value(name, parameter, tensor, None)] * len(others)
            else:
                found = [self._value(name, parameter, tensor, number) for number in others]
            if all(value is None for value, _ in found):
                continue
            given = [_usual(method.name)[name] if value is None else value for value, _ in found]
            if name in self.form.only:
                self._require_only(name, given[0], found[0][1])
            if parameter.becomes == WEIGHT:
                weights = [float(value) for value in given]
            elif parameter.becomes is not None:
                if name in (_DENSITY, _TOPK):
                    without |= {number for number, value in zip(others, given, strict=True) if value <= 0}
                    given = [min(value, 1.0) if value > 0 else 1.0 for value in given]
                settings[parameter.becomes] = _checked(parameter.becomes, given, [at for _, at in found])
        if self.form.ours == "nuslerp":
            settings |= self._vectors(tensor)
        if "around_zero" in method.settings:
            settings["around_zero"] = self.base is None
        if method.refuses is not None and (why := method.refuses(weights, settings)):
            raise InputError(f"{self.slice.at}: {shown(tensor.name)}: {why}")
        return Found(Blend(method.name, tuple(weights), settings), frozenset(without))

    def scale(self, tensor: Tensor) -> float | None:
        """What a tensor that is passed through is multiplied by. Raises as `blend` does."""
        found, _ = self._value(_SCALE, self.form.parameters[_SCALE], tensor, 0)
        return None if found is None else float(found)

    def _vectors(self, tensor: Tensor) -> Mapping[str, int]:
        flat, _ = self._value(_FLATTEN, self.form.parameters[_FLATTEN], tensor, None)
        wise, _ = self._value(_ROW_WISE, self.form.parameters[_ROW_WISE], tensor, None)
        return {"vectors": 0 if flat is not False else 2 if wise else 1}

    def _require_only(self, name: str, value: Value, at: At | None) -> None:
        if value != self.form.only[name]:
            raise UnsupportedError(f"{at}: {name} is {self.form.only[name]:g} here, and not {value:g}: leave it out")

    def _value(
        self, name: str, parameter: Parameter, tensor: Tensor, number: int | None
    ) -> tuple[Value | None, At | None]:
        """The value, and where it stands; None where nothing says it. number: of the input, where each has its own"""
        for scope in self.scopes(number):
            own = tensor.name if number is None else tensor.names[number]
            for case in scope.get(name, ()):
                if case.filter is None or case.filter in own:
                    return _at(case, parameter, name, tensor.place), case.at
        if parameter.needed:
            at = self.slice.at if number is None else self.inputs[number].at
            whose = "" if number is None else f" of {shown(self.inputs[number].model)}"
            raise InputError(
                f"{at}: {self.config.method} needs {name}{whose}, and nothing says it for {shown(tensor.name)}"
            )
        return None, None

    def scopes(self, number: int | None) -> Iterator[Parameters]:
        """The places that may say a parameter, the first first. number: of the input, where each has its own"""
        if number is not None:
            yield self.inputs[number].parameters
        yield from (self.slice.parameters, self.config.inner, self.config.parameters)


def unfit_filters(asked: Sequence[tuple[Reader, Tensor]]) -> list[str]:
    """Notes on filters that fit no tensor, which mergekit passes over. asked: all tensors, with what reads for them"""
    names: dict[int, set[str]] = {}  # that the filters of a place are held against, by the identity of the place
    places: dict[int, Parameters] = {}
    for reader, tensor in asked:
        for number, own in [(None, tensor.name), *enumerate(tensor.names)]:
            for place in reader.scopes(number):
                if place:
                    places[id(place)] = place
                    names.setdefault(id(place), set()).add(own)
    known = asked[0][0].form.parameters if asked else {}
    unfit = [
        (case.at, f"the filter {shown(case.filter)!r} of {name} fits no tensor: it changes nothing, as in mergekit")
        for key, place in places.items()
        for name, cases in place.items()
        for case in cases
        if name in known and case.filter is not None and not any(case.filter in own for own in names[key])
    ]
    return [f"{at}: {told}" for at, told in sorted(unfit)]


@functools.lru_cache(maxsize=32)
def _usual(method: str) -> Mapping[str, float | int]:
    return settings_for(METHOD_BY_NAME[method], {})


def _checked(name: str, values: Sequence[Value], places: Sequence[At | None]) -> Value | tuple[Value, ...]:
    """The setting, one for each source where they differ. Raises InputError where one is not in its range."""
    setting = settings_of()[name]
    for value, at in zip(values, places, strict=True):
        if not setting.allows(value):
            raise InputError(f"{at}: {name} is {setting.allowed}, not {value:g}")
    return values[0] if len(set(values)) == 1 else tuple(values)


def check_inputs(config: Config, one: Slice, form: Form) -> None:
    """Raises InputError where a slice has not as many sources as the method takes, or not its base among them."""
    base = one.base or config.base
    count = len(one.sources)
    has_base = base in [source.model for source in one.sources]
    if form.base == REQUIRED and base is None:
        raise InputError(f"{config.method_at}: {config.method} needs a base_model")
    if form.base != PLAIN and base is not None and not has_base:
        raise InputError(f"{one.at}: the base_model, {shown(base)}, is not among the sources of this slice")
    others = count - (has_base and form.base != PLAIN)
    for what, number, (least, most) in (
        ("models", count, form.inputs),
        ("models beside its base", others, form.others),
    ):
        if number < least or (most is not None and number > most):
            wanted = f"{least}" if least == most else f"at least {least}" if number < least else f"at most {most}"
            raise InputError(f"{one.at}: {config.method} takes {wanted} {what}, and here are {number}")
