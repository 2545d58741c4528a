"""Arguments as callers give them, text or numbers, made exact."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation, Overflow, localcontext
from pathlib import Path
from typing import Any

from adaptertool.errors import UsageError, argument
from adaptertool.files import LOCAL, store_of
from adaptertool.files.address import address
from adaptertool.files.hub import find
from adaptertool.methods import Method, Setting, Value, settings_of
from adaptertool.patterns import regex
from adaptertool.spec.choices import AS_TRAINED, DTYPES, PRECISIONS, QUANTISES, RankChoice

PathLike = str | os.PathLike[str]
Number = Decimal | float | str

_SIZE = regex(r"\s*(\d+(?:\.\d*)?)\s*([KMGT]I?)?B?\s*", re.IGNORECASE)
_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_FASTEST = 10**18  # bytes a second

_FORMS = "; it is one (0.3), a list (0,0.3,1), or a sweep START:STOP:STEP (0:1:0.1)"  # of alphas
_DIGITS = 1000  # of sums: numbers that a float has differ by so many at most, so that none is rounded
MAX_ALPHAS = 1000  # points of a sweep that is written as START:STOP:STEP


def decimal(value: Number, what: str, forms: str = "") -> Decimal:
    """The exact decimal of a number as typed; a float counts as the decimal that Python prints for it. Raises
    UsageError where it is no finite number, with `forms`, the ways in which it may be said."""
    try:
        number = value if isinstance(value, Decimal) else Decimal(str(value).strip())
    except InvalidOperation as error:
        hint = "; a share is written as 0.5, not 50%" if str(value).strip().endswith("%") else forms
        raise UsageError(f"{what} {value!r} is not a number{hint}") from error
    if not number.is_finite() or not math.isfinite(float(number)):
        raise UsageError(f"{what} {value!r} is not a finite number")
    return number if number else Decimal(0)  # −0 is 0


def decimals(values: Sequence[Number] | None, what: str, count: int) -> list[Decimal]:
    """The exact decimals of `values`, one for each of `count` adapters; 1 where None. Raises UsageError where they are
    not as many."""
    if values is None:
        return [Decimal(1)] * count
    if isinstance(values, str) or len(values) != count:
        given, those = (f"{n:,} {name}{'' if n == 1 else 's'}" for n, name in ((len(values), what), (count, "adapter")))
        raise UsageError(f"{given} for {those}: give {argument(f'{what}s')} for each of them, in order, or for none")
    return [decimal(value, argument(what)) for value in values]


def cut_of(
    *,
    rank: int | None = None,
    energy: Number | None = None,
    max_error: Number | None = None,
    ratio: Number | None = None,
    names: Sequence[str] = ("rank", "energy", "max_error"),
) -> RankChoice:
    """Raises UsageError unless just one of them is given, or a ratio with a rank as its limit, and makes sense. names:
    those that the caller has"""
    limit = rank if ratio is None else None
    if sum(given is not None for given in (limit, energy, max_error, ratio)) != 1:
        *others, last = map(argument, names)
        raise UsageError(f"give one of {', '.join(others)} and {last}")
    if rank is not None and (type(rank) is not int or rank < 1):
        raise UsageError(f"{argument('rank')} must be a whole number from 1 on, not {rank!r}")
    share = None if energy is None else decimal(energy, argument("energy"))
    if share is not None and not 0 < share <= 1:
        raise UsageError(
            f"{argument('energy')} is a share of the squared spectrum, above 0 and at most 1, not {energy}"
        )
    most = None if max_error is None else decimal(max_error, argument("max_error"))
    if most is not None and not 0 <= most < 1:
        raise UsageError(f"{argument('max_error')} is relative: from 0 to below 1, not {max_error}")
    largest = None if ratio is None else decimal(ratio, argument("ratio"))
    if largest is not None and largest < 1:
        raise UsageError(
            f"{argument('ratio')} is of the largest singular value to the least that stays: from 1 on, not {ratio}"
        )
    return RankChoice(rank, share, most, largest)


def given_settings(call: str, known: Mapping[str, Setting], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of methods among the keywords of a public function. Raises TypeError for others, as Python does."""
    for name in keywords:
        if name not in known:
            raise TypeError(f"{call}() got an unexpected keyword argument {name!r}")
    return {name: value for name, value in keywords.items() if value is not None}


def settings_for(method: Method, given: Mapping[str, Number]) -> dict[str, Value]:
    """The settings of a method, and what manifests say of those that it does not have, in one order for all methods.

    Raises UsageError for what the method has no use for, or needs, and for numbers out of range.
    """
    known = settings_of()
    require_own(method, given)
    defaults = {name: method.defaults.get(name, one.default) for name, one in method.settings.items()}
    for name, setting in known.items():
        if name not in given and name in method.settings and defaults[name] is None:
            raise UsageError(f"{method.name} needs {argument(name)}: {setting.allowed}")
    values = {name: defaults[name] if name in method.settings else one.elsewhere for name, one in known.items()}
    values |= {name: one_setting(name, value) for name, value in given.items()}
    return {name: value for name, value in values.items() if value is not None}


def require_own(method: Method, names: Iterable[str]) -> None:
    """Raises UsageError for a setting that the method has no use for."""
    for name in names:
        if name not in method.settings:
            raise UsageError(settings_of()[name].foreign.format(method=method.name, setting=name))


_WORDS = {"true": True, "false": False}


def one_setting(name: str, given: Number) -> Value:
    """The number of a setting. Raises UsageError for one that is out of its range."""
    setting = settings_of()[name]
    number: Value | None
    if setting.number is float:
        number = float(decimal(given, argument(name)))
    elif setting.number is bool:
        number = given if type(given) is bool else _WORDS.get(str(given).lower())
    else:
        number = given if type(given) is int else None
    if number is None or not setting.allows(number):
        raise UsageError(f"{argument(name)} is {setting.allowed}, not {given}")
    return number


def as_path(value: PathLike, what: str) -> Path:
    """The path as given, or the address in a store. An empty one, such as an unset variable leaves behind, would
    silently mean "here". Raises UsageError."""
    if not os.fspath(value):
        raise UsageError(f"{what} is an empty path")
    return address(os.fspath(value), what) or Path(value)


def as_local(value: PathLike, what: str) -> Path:
    """The path of what is of this machine alone. Raises UsageError."""
    path = as_path(value, what)
    if store_of(path) is not LOCAL:
        raise UsageError(f"{what} is {path}, in a store; give a path of this machine")
    return path


def as_input(value: PathLike, what: str) -> Path:
    """The path of an input; of a name on the hub, where nothing is called so here, the path in its local cache. Raises
    UsageError, and InputError for a revision that the cache lacks."""
    path = as_path(value, what)
    return find(os.fspath(value)) or path


def check_quantise(quantise: str | None, dtype: str | None) -> str | None:
    """What becomes of codes, as typed. Raises UsageError for what is not in QUANTISES, and beside a dtype."""
    if quantise is not None and quantise not in QUANTISES:
        raise UsageError(f"{argument('quantise')} is {', '.join(QUANTISES)}, not {quantise!r}")
    if quantise is not None and dtype is not None:
        raise UsageError(f"{argument('quantise')} keeps codes, {argument('dtype')} decodes them: give one of both")
    return quantise


def parse_size(size: int | str | None) -> int | None:
    """The bytes of `5GB` (10⁹ each), `4GiB` (2³⁰), or a number of bytes. Raises UsageError for anything else."""
    if size is None or (type(size) is int and size > 0):
        return size
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    unit = (found[2] or "").upper() if found else ""
    each = (1024 if unit.endswith("I") else 1000) ** _POWERS[unit.removesuffix("I")]
    if found is None or int(Decimal(found[1]) * each) < 1:
        raise UsageError(f"{argument('max_shard_size')} is a size such as 5GB, 500MB or 4GiB, not {size!r}")
    return int(Decimal(found[1]) * each)


def parse_rate(rate: int | str | None) -> int | None:
    """The bytes a second of `2GB/s`, with or without its end, or of a number. Raises UsageError for anything else."""
    text = rate.strip().removesuffix("/s") if isinstance(rate, str) else rate
    with contextlib.suppress(UsageError):
        if (found := parse_size(text)) is None or found <= _FASTEST:
            return found
    said = f"{argument('rate')} is bytes a second, such as 2GB/s or 500MB/s, not {repr(rate)[:80]}"
    raise UsageError(said)


def check_dtype(dtype: str | None) -> str | None:
    """Raises UsageError for what is none of those that weights are stored as."""
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype is {', '.join(DTYPES)}, not {dtype!r}")
    return dtype


def check_as_trained(choice: str | None) -> str | None:
    """Raises UsageError for what is none of AS_TRAINED."""
    if choice is not None and choice not in AS_TRAINED:
        raise UsageError(f"{argument('as_trained')} is {', '.join(AS_TRAINED)}, not {choice!r}")
    return choice


def check_precision(precision: str) -> str:
    """The precision as given. Raises UsageError for any other than PRECISIONS."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision is {' or '.join(PRECISIONS)}, not {precision!r}")
    return precision


def parse_alphas(alphas: Number | Sequence[Number]) -> list[Decimal]:
    """The alphas, each once, as `parse_numbers` takes them. Raises UsageError."""
    return parse_numbers(alphas, argument("alpha"), "alpha")


def parse_numbers(numbers: Number | Sequence[Number], what: str, called: str) -> list[Decimal]:
    """The values of a sweep, each once. Text is `0.3`, `0,0.3,1`, or `START:STOP:STEP` with both ends: 0:0.3:0.1 ends
    at 0.3. what, called: the number, as it is typed and in a sentence

    Raises UsageError where there is none, one stands there twice, or one is no finite number.
    """
    if isinstance(numbers, str):
        listed = [] if ":" in numbers else numbers.split(",")
        exact = [decimal(part, what, _FORMS) for part in listed] or _sweep(numbers, what)
    elif isinstance(numbers, Sequence):
        exact = [decimal(number, what) for number in numbers]
    else:
        exact = [decimal(numbers, what)]
    if not exact:
        raise UsageError(f"no {called} given")
    if len(set(exact)) != len(exact):
        article = "an" if called[0] in "aeiou" else "a"
        raise UsageError(f"{article} {called} is given twice: {', '.join(map(str, exact))}")
    return exact


def _sweep(text: str, what: str) -> list[Decimal]:
    with localcontext() as context:
        context.traps[Overflow] = False  # the quotient is then infinite, and too many points
        context.prec = _DIGITS
        return _steps(text, what)


def _steps(text: str, what: str) -> list[Decimal]:
    parts = text.split(":")
    if len(parts) != 3:
        raise UsageError(f"a sweep is START:STOP:STEP, for instance 0:1:0.1, not {text!r}")
    start, stop, step = (decimal(part, what) for part in parts)
    if step and abs((stop - start) / step) >= MAX_ALPHAS:
        raise UsageError(f"the sweep {text!r} has more than {MAX_ALPHAS:,} points")
    if step == 0:
        raise UsageError(f"the sweep {text!r} never reaches its end: STEP must not be 0")
    if (stop - start) / step < 0:
        sign = "negative" if stop < start else "positive"
        raise UsageError(f"the sweep {text!r} never reaches its end: from {start} to {stop} STEP must be {sign}")
    count = int((stop - start) / step) + 1
    return [start + step * number for number in range(count)]
