"""What a setting of a method is, and the settings that several methods have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from adaptertool.records import dataclass

Value = float | int
Settings = Mapping[str, Value | tuple[Value, ...]]  # by the name of the setting; several: one for each source


def setting_of(settings: Settings, name: str, source: int) -> Value:
    """The value of a setting for one source."""
    value = settings[name]
    return value[source] if isinstance(value, tuple) else value


def only(settings: Settings, name: str) -> Value:
    """The value of a setting that is the same for all sources."""
    value = settings[name]
    assert not isinstance(value, tuple)
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A number, beside the weights, that a method is given: its checks, option and record in manifests follow from it.

    number:    float, which is typed as an exact decimal, int, or bool
    each:      whether a recipe may give each source its own
    above:     the number must be above it
    least:     the number must be this or more
    most:      the number must be this or less
    allowed:   what all that comes to, for the refusal of other numbers
    default:   where it is not given; None: it must be given
    elsewhere: what manifests say where a method does not have it; None: nothing
    foreign:   the refusal where a method does not have it
    help:      of its option
    in_sum:    the help of `sum`, where it is another
    """

    number: type[float] | type[int] | type[bool]
    allowed: str
    help: str
    above: float | None = None
    least: int | None = None
    most: int | None = None
    default: float | int | None = None
    elsewhere: float | int | None = None
    foreign: str = "{method} has no {setting}"
    in_sum: str | None = None
    each: bool = False

    def allows(self, number: float | int) -> bool:
        return (
            (self.above is None or number > self.above)
            and (self.least is None or number >= self.least)
            and (self.most is None or number <= self.most)
        )


DENSITY = Setting(
    number=float,
    above=0,
    most=1,
    allowed="a share over 0, up to 1",
    elsewhere=1.0,
    each=True,
    help="The share of each change that stays.",
    in_sum="The share of elements that stays.",
)
SEED = Setting(
    number=int,
    least=0,
    allowed="a whole number from 0 on",
    default=0,
    elsewhere=0,
    foreign="nothing is left to chance in {method}; it has no {setting}",
    help="Of what is dropped by chance.",
)
NORMALIZE = Setting(
    number=bool,
    allowed="true or false",
    default=False,
    help="Divide by the sum of the weights.",
)
RESCALE = Setting(
    number=bool,
    allowed="true or false",
    default=False,
    help="Scale what stays of a change to the sum of magnitudes that it had.",
)
LAMBDA = Setting(
    number=float,
    allowed="a number",
    default=1.0,
    help="Times all that is added to the base.",
)


def no_sum(weights: Sequence[float], settings: Settings) -> str | None:
    """The refusal of weights that add up to nothing, and that are divided by their sum."""
    return (
        "the weights add up to 0, and are divided by their sum" if settings["normalize"] and not sum(weights) else None
    )


def scales(weights: Sequence[float], settings: Settings) -> bool:
    """Whether a sum of whole models is another than they are where all are the same."""
    return not settings["normalize"] and bool(settings.get("around_zero", True)) and sum(weights) != 1
