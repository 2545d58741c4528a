"""The ways of combining the changes of several sources, one file each. To add one: the file, and a line here."""

from collections.abc import Iterable

from adaptertool.methods.dare import DARE_LINEAR, DARE_TIES
from adaptertool.methods.linear import LINEAR
from adaptertool.methods.magnitude import MAGNITUDE_PRUNE
from adaptertool.methods.method import Method, Place, Sums
from adaptertool.methods.setting import Setting, Settings
from adaptertool.methods.slerp import SLERP
from adaptertool.methods.ties import TIES

METHODS: tuple[Method, ...] = (LINEAR, TIES, DARE_LINEAR, DARE_TIES, MAGNITUDE_PRUNE, SLERP)
METHOD_BY_NAME = {method.name: method for method in METHODS}
ON_FACTORS = tuple(method.name for method in METHODS if not method.spans)  # in sums of adapters


def settings_of(names: Iterable[str] = METHOD_BY_NAME) -> dict[str, Setting]:
    """The settings that any of these methods has, each once, in the order of the methods."""
    return {name: setting for method in names for name, setting in METHOD_BY_NAME[method].settings.items()}


__all__ = [
    "LINEAR",
    "METHODS",
    "METHOD_BY_NAME",
    "ON_FACTORS",
    "Method",
    "Place",
    "Setting",
    "Settings",
    "Sums",
    "settings_of",
]
