"""`adapter_config.json` of PEFT, written so that PEFT gives every layer the rank and the scale that it is to have.

Rules as in PEFT 0.21.2: `r`, `lora_alpha` and their patterns (utils.other.get_pattern_key), `target_modules`
(tuners_utils.check_target_module_exists), `target_parameters` (BaseTuner._inject_parameters).
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, TypeVar

from adaptertool.errors import UsageError
from adaptertool.formats.format import Written
from adaptertool.formats.peft.fields import OF_LORA, alpha_field_of
from adaptertool.formats.peft.packing import as_peft_packs, layout_of
from adaptertool.formats.peft.patterns import MAX_PATTERN
from adaptertool.formats.peft.variants import BLOCKS, STEERING, TRUNCATED
from adaptertool.kinds import KINDS
from adaptertool.kinds.lora import scaling
from adaptertool.spec.adapter import Adapter

# Settings of initialisers and of training: of no meaning for an adapter that was not trained as it stands. What would
# be initialised is overwritten when it is loaded, but some initialisers refuse odd ranks, or look for data.
_DROPPED = frozenset(
    {"init_lora_weights", "loftq_config", "eva_config", "corda_config", "lora_ga_config", BLOCKS, TRUNCATED, *STEERING}
)
_OF_OTHERS = frozenset(
    field for kind in KINDS for spelling in kind.spellings.values() for field in spelling.fields - OF_LORA
)  # fields of kinds that are not LoRA

# Linear layers whose factors PEFT does not load, or loads and then does nothing with: kernels read their weights, and
# call no layer. By the last part of the path, with the types of the models: those of PEFT's own check
# (tuners_utils._check_lora_target_modules_mamba), and for dt_proj those of which transformers 5.23 reads the weight.
_MAMBAS = frozenset({"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"})
_NO_TARGETS = {"out_proj": _MAMBAS, "conv1d": _MAMBAS, "dt_proj": frozenset({"mamba", "falcon_mamba", "jamba"})}

_Number = TypeVar("_Number", int, float)


def may_have_factors(model_type: object, module: str) -> bool:
    """Whether PEFT loads, and uses, factors for the linear layer of that path; model_type: of the model's config."""
    return model_type not in _NO_TARGETS.get(_end(module), ())


def alpha_for(scale: float, rank: int, *, rank_stabilised: bool = False) -> float:
    """The lora_alpha for which PEFT computes this scale; where there is none, the nearest scale, 2^-52 away at most."""
    start = scale * (math.sqrt(rank) if rank_stabilised else rank)
    nearby = [start + steps * math.ulp(start) for steps in range(-4, 5)]
    nearby.append(float(round(start)))

    def distance(alpha: float) -> tuple[float, bool]:
        return abs(scaling(alpha, rank, rank_stabilised=rank_stabilised) - scale), not alpha.is_integer()

    best = min(nearby, key=distance)
    return int(best) if best.is_integer() and abs(best) < 2**53 else best


def nearest_scale(scale: float, rank: int) -> float:
    """The scale nearest to `scale` that a lora_alpha gives a layer of this rank, in plain LoRA."""
    return scaling(alpha_for(scale, rank), rank, rank_stabilised=False)


def times(adapter: Adapter, alpha: Decimal) -> bytes:
    """The adapter's config with lora_alpha, or what it is called there, and those of alpha_pattern, times alpha.

    Raises UsageError for one beyond what a number holds.
    """
    exact = Fraction(alpha) if alpha.adjusted() > -1000 else Fraction(0)  # beyond, all products round to 0
    name = alpha_field_of(adapter.fields)
    assert name is not None

    def product_with(number: float) -> float:
        product = exact * Fraction(number)
        if abs(product) > Fraction(sys.float_info.max):
            raise UsageError(f"alpha {alpha:g} times {name} {number:g} is beyond what a number holds")
        return int(product) if product.denominator == 1 else float(product)

    # Where one of these is set there were tensors of it, which are not written
    own = {key: value for key, value in adapter.fields.items() if key not in STEERING or not value}
    fields = {**own, **layout_of(adapter, adapter.fields)}
    fields[name] = product_with(fields[name])
    if patterns := fields.get("alpha_pattern"):
        fields["alpha_pattern"] = {key: product_with(number) for key, number in patterns.items()}
    return (json.dumps(fields, indent=2) + "\n").encode()


def new_fields(
    trained_on: str, *, biases: bool, transposed: bool, saved_modules: Sequence[str], causal: bool
) -> dict[str, Any]:
    """The fields of an adapter that is made of a fine-tuned checkpoint, but for ranks and targets."""
    return {
        "base_model_name_or_path": trained_on,
        "bias": "all" if biases else "none",
        "fan_in_fan_out": transposed,
        "inference_mode": True,
        "lora_dropout": 0.0,
        "modules_to_save": list(saved_modules) or None,
        "task_type": "CAUSAL_LM" if causal else None,
    }


def config_text(
    fields: Mapping[str, Any], layers: Sequence[Written], *, targets_of: Mapping[str, Any] | None = None
) -> bytes:
    """The config with `fields`, but rank, alpha and targets as `layers` have them, whose lora_B is packed as by PEFT.

    targets_of: a config that targets just these layers, to be followed in how it names them.
    """
    stabilised = bool(fields.get("use_rslora"))
    ranks = {layer.path: layer.rank for layer in layers}
    alphas = {layer.path: alpha_for(layer.scale, layer.rank, rank_stabilised=stabilised) for layer in layers}
    rank, alpha = (Counter(numbers.values()).most_common(1)[0][0] if layers else 1 for numbers in (ranks, alphas))
    whole: dict[str, Any] = {
        **{name: value for name, value in as_peft_packs(fields).items() if name not in _DROPPED | _OF_OTHERS},
        "peft_type": "LORA",
        "init_lora_weights": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
    }
    names = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")
    if targets_of is not None:
        whole |= {name: targets_of[name] for name in names if name in targets_of}
    else:
        whole |= dict.fromkeys(names)
        whole["target_modules"] = _targets([layer.path for layer in layers if not layer.is_parameter])
        whole["target_parameters"] = [layer.path for layer in layers if layer.is_parameter] or None
    return (json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _patterns(numbers: Mapping[str, _Number], usual: _Number) -> dict[str, _Number]:
    """Patterns for those that differ from the usual number. One that ends the paths of some, and of no others, stands
    for them all; other paths are named whole, many in one pattern: Python keeps only 512 compiled ones."""
    by_end: dict[str, set[_Number]] = {}
    for path, number in numbers.items():
        by_end.setdefault(_end(path), set()).add(number)
    found: dict[str, _Number] = {}
    whole: dict[_Number, list[str]] = {}
    for path, number in numbers.items():
        if number == usual:
            continue
        if len(by_end[_end(path)]) == 1:
            found[_escaped(_end(path))] = number
        else:
            whole.setdefault(number, []).append(_escaped(path))
    for number, paths in whole.items():
        found |= {f"^({'|'.join(some)})" if len(some) > 1 else f"^{some[0]}": number for some in _portions(paths)}
    return found


def _escaped(path: str) -> str:
    """A path as a pattern. What means something in one stands there by its number: no sign in it is to be taken for a
    repeat or a choice by those who bound how long a pattern may take (formats.peft.patterns)."""
    return re.sub(
        r"[^\w.-]", lambda found: re.escape(found[0]) if ord(found[0]) > 127 else f"\\x{ord(found[0]):02x}", path
    ).replace(".", r"\.")


def _end(path: str) -> str:
    return path.rpartition(".")[2]


def _portions(texts: Iterable[str]) -> list[list[str]]:
    """The texts in portions, in order, with at most MAX_PATTERN characters each, and some to spare."""
    portions: list[list[str]] = []
    room = 0
    for text in texts:
        if room < len(text) + 1:
            portions.append([])
            room = MAX_PATTERN - 100
        portions[-1].append(text)
        room -= len(text) + 1
    return portions


def _targets(paths: Sequence[str]) -> list[str] | str:
    """The names, whole. PEFT takes each for the end of a path too: where that could be another layer's, a regex."""
    known = set(paths)
    for path in paths:
        ends = (path[at + 1 :] for at, letter in enumerate(path) if letter == ".")
        if "." not in path or any(end in known for end in ends):
            return "|".join(map(_escaped, paths))
    return list(paths)
