"""The ways of combining the changes of several sources, one file each. To add one: the file, and a line here."""

from collections.abc import Iterable

from adaptertool.methods.arcee_fusion import ARCEE_FUSION
from adaptertool.methods.average import MERGEKIT_LINEAR
from adaptertool.methods.dare import DARE_LINEAR, DARE_TIES
from adaptertool.methods.karcher import KARCHER
from adaptertool.methods.linear import LINEAR
from adaptertool.methods.magnitude import MAGNITUDE_PRUNE
from adaptertool.methods.method import Block, Method, Place, Survey
from adaptertool.methods.model_stock import MODEL_STOCK
from adaptertool.methods.multislerp import MULTISLERP
from adaptertool.methods.nearswap import NEARSWAP
from adaptertool.methods.nuslerp import NUSLERP
from adaptertool.methods.sce import SCE
from adaptertool.methods.setting import Setting, Settings, Value
from adaptertool.methods.slerp import SLERP
from adaptertool.methods.task_vectors import (
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    DELLA,
    DELLA_LINEAR,
    MERGEKIT_DARE_LINEAR,
    MERGEKIT_DARE_TIES,
    MERGEKIT_TIES,
    TASK_ARITHMETIC,
)
from adaptertool.methods.ties import TIES

METHODS: tuple[Method, ...] = (
    LINEAR,
    TIES,
    DARE_LINEAR,
    DARE_TIES,
    MAGNITUDE_PRUNE,
    SLERP,
    TASK_ARITHMETIC,
    MERGEKIT_LINEAR,
    MERGEKIT_TIES,
    MERGEKIT_DARE_LINEAR,
    MERGEKIT_DARE_TIES,
    BREADCRUMBS,
    BREADCRUMBS_TIES,
    DELLA,
    DELLA_LINEAR,
    NUSLERP,
    MULTISLERP,
    KARCHER,
    MODEL_STOCK,
    SCE,
    NEARSWAP,
    ARCEE_FUSION,
)
METHOD_BY_NAME = {method.name: method for method in METHODS}
ON_FACTORS = tuple(method.name for method in METHODS if method.sums)  # in sums of adapters


def settings_of(names: Iterable[str] = METHOD_BY_NAME) -> dict[str, Setting]:
    """The settings that any of these methods has, each once, in the order of the methods."""
    return {name: setting for method in names for name, setting in METHOD_BY_NAME[method].settings.items()}


__all__ = [
    "LINEAR",
    "METHODS",
    "METHOD_BY_NAME",
    "ON_FACTORS",
    "Block",
    "Method",
    "Place",
    "Setting",
    "Settings",
    "Survey",
    "Value",
    "settings_of",
]
