"""Which of our methods each of mergekit's is, what it takes, and which parameters it has.

Source: mergekit 0.1.5, the `spec` of each method in `merge_methods`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Whose values a parameter has: one for all, or one for each input, or for each but the base
SHARED, INPUT, OTHERS = "shared", "input", "others"
# What the base is to a method: it must be among the inputs; it may be, and is no input like others; it is one of them
REQUIRED, OPTIONAL, PLAIN = "required", "optional", "plain"
NUMBER, WHOLE, TRUTH = "number", "whole", "truth"
WEIGHT = "weight"  # what becomes the weights of a blend


class Parameter(NamedTuple):
    """A parameter as mergekit has it."""

    kind: str
    scope: str = SHARED
    becomes: str | None = None  # the name of our setting, or WEIGHT; None: see `Form.only` and parameters.py
    needed: bool = False


class Form(NamedTuple):
    """A method as mergekit has it."""

    ours: str | None  # None: what is in the input, as it is
    base: str
    parameters: Mapping[str, Parameter]
    inputs: tuple[int, int | None] = (1, None)  # how many, the base among them: at least, at most
    others: tuple[int, int | None] = (0, None)  # and without the base
    only: Mapping[str, float] = {}  # parameters of which just one value is built


_WEIGHT = Parameter(NUMBER, OTHERS, WEIGHT, needed=True)
_T = Parameter(NUMBER, SHARED, WEIGHT, needed=True)
_TRUTH = Parameter(TRUTH)
_MASK = {"int8_mask": _TRUTH}  # of memory, not of results
_MIXED = _MASK | {
    "normalize": Parameter(TRUTH, becomes="normalize"),
    "lambda": Parameter(NUMBER, becomes="lambda"),
    "weight": _WEIGHT,
}
_ARITHMETIC = _MIXED | {"rescale": _TRUTH, "density": Parameter(NUMBER, OTHERS)}  # which drops nothing
_SPARSE = _MIXED | {
    "rescale": Parameter(TRUTH, becomes="rescale"),
    "density": Parameter(NUMBER, OTHERS, "density"),
}
_OUTLIERS = _SPARSE | {"gamma": Parameter(NUMBER, OTHERS, "gamma")}
_RANKED = _SPARSE | {"epsilon": Parameter(NUMBER, OTHERS, "epsilon")}
_TWO = (2, 2)

FORMS: Mapping[str, Form] = {
    "linear": Form(
        "mergekit_linear",
        PLAIN,
        {"weight": Parameter(NUMBER, INPUT, WEIGHT, needed=True), "normalize": Parameter(TRUTH, becomes="normalize")},
    ),
    "task_arithmetic": Form("task_arithmetic", REQUIRED, _ARITHMETIC),
    "ties": Form("mergekit_ties", REQUIRED, _SPARSE),
    "dare_linear": Form("mergekit_dare_linear", REQUIRED, _SPARSE),
    "dare_ties": Form("mergekit_dare_ties", REQUIRED, _SPARSE),
    "breadcrumbs": Form("breadcrumbs", REQUIRED, _OUTLIERS),
    "breadcrumbs_ties": Form("breadcrumbs_ties", REQUIRED, _OUTLIERS),
    "della": Form("della", REQUIRED, _RANKED),
    "della_linear": Form("della_linear", REQUIRED, _RANKED),
    "slerp": Form("slerp", REQUIRED, {"t": _T}, inputs=_TWO),
    "nuslerp": Form(
        "nuslerp", OPTIONAL, {"weight": _WEIGHT, "nuslerp_row_wise": _TRUTH, "nuslerp_flatten": _TRUTH}, others=_TWO
    ),
    "multislerp": Form(
        "multislerp",
        OPTIONAL,
        {"weight": _WEIGHT, "normalize_weights": Parameter(TRUTH, becomes="normalize"), "eps": Parameter(NUMBER)},
        others=(1, None),
        only={"eps": 1e-8},
    ),
    "karcher": Form(
        "karcher",
        PLAIN,
        {"max_iter": Parameter(WHOLE, becomes="max_iter"), "tol": Parameter(NUMBER, becomes="tol")},
    ),
    "model_stock": Form(
        "model_stock", REQUIRED, {"filter_wise": Parameter(TRUTH, becomes="filter_wise")}, inputs=(3, None)
    ),
    "nearswap": Form("nearswap", REQUIRED, {"t": _T}, inputs=_TWO),
    "arcee_fusion": Form("arcee_fusion", REQUIRED, {}, inputs=_TWO),
    "sce": Form("sce", REQUIRED, _MASK | {"select_topk": Parameter(NUMBER, becomes="select_topk")}),
    "passthrough": Form(None, PLAIN, {"scale": Parameter(NUMBER, INPUT)}, inputs=(1, 1)),
}
PARAMETERS = frozenset(name for form in FORMS.values() for name in form.parameters)
