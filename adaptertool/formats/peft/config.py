"""`adapter_config.json` of PEFT, read strictly: a field that may change the arithmetic and is not handled
is refused by name. Field names and rules as in PEFT 0.21.2."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.formats.initialisers import changed_base
from adaptertool.formats.peft.fields import FORMAT, LORA, alpha_field_of, require_known, spelling_of
from adaptertool.formats.peft.packing import Packing, packing_of
from adaptertool.formats.peft.patterns import by_pattern, check
from adaptertool.formats.peft.refused import why_refused
from adaptertool.formats.peft.variants import Blocks, blocks_of, truncated
from adaptertool.kinds import SPELLED, Kind, full, lora
from adaptertool.kinds.spelling import Spelling
from adaptertool.records import dataclass

# PEFT wraps the parameters of one module in the order in which it holds them; this is transformers' own.
_PARAMETER_ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "up_proj_bias", "down_proj", "down_proj_bias")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The part of a LoRA adapter's config that the arithmetic depends on."""

    path: Path
    # The kind, where peft_type alone tells it; None: LoRA and what goes with it
    spelled: tuple[Kind, Spelling] | None
    base: str  # base_model_name_or_path
    task: str  # task_type
    rank: int
    alpha: float
    rank_stabilised: bool
    dora: bool
    truncated: bool  # kasa_config: the smallest singular values are taken out of the base
    bias: bool  # lora_bias: the second factor has a bias
    fan_in_fan_out: bool
    ties_ends: bool  # ensure_weight_tying
    tokens: Mapping[str, tuple[int, ...]]  # trainable_token_indices: module, or "" for the only one -> rows
    saved: tuple[str, ...]  # modules_to_save
    parameters: tuple[str, ...]  # target_parameters: parameters of modules that are no layers, fused experts above all
    version: tuple[int, ...] | None  # of PEFT
    packing: Packing  # of lora_B of fused experts
    blocks: Blocks | None  # of factors that are block-diagonal
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    others: str | tuple[str, ...]  # modules of another kind (Spelling.instead): a pattern, or ends of their paths
    scale: float | None  # of every layer, where ranks and alphas do not make it
    settings: Mapping[str, Any]  # fields that count beside those, of a kind that has such

    def rank_of(self, module: str) -> int:
        if not self.rank_pattern:
            return self.rank
        return by_pattern(f"{self.path}: rank_pattern", self.rank_pattern, module, self.rank)

    def saves(self, module: str) -> bool:
        """Whether modules_to_save names it, by PEFT's rule: a name is the end of the module's path."""
        return any(module == name or module.endswith(f".{name}") for name in self.saved)

    @property
    def only_tokens(self) -> bool:
        """Whether rows of embeddings are what the kind trains."""
        return self.spelled is not None and self.spelled[1].tag == full.TOKENS

    def plain(self, key: str) -> str:
        """The key of a tensor that takes the place of a module's own, as the module has it."""
        wraps = None if self.spelled is None else self.spelled[1].wraps
        return key if wraps is None else key.replace(f".{wraps}.", ".", 1)

    def tokens_of(self, module: str) -> tuple[int, ...] | None:
        """The rows that were trained, by PEFT's rule: a name is the end of the module's path."""
        for name, rows in self.tokens.items():
            if not name or module == name or module.endswith(f".{name}"):
                return rows
        return None

    def parameters_of(self, module: str) -> list[str]:
        """The parameters of `module` that may have been targeted, by PEFT's rule: an entry is the end of a parameter's
        path. In the order in which transformers' modules hold them."""
        split = [parameter.rpartition(".") for parameter in self.parameters]
        names = {name for path, _, name in split if not path or module == path or module.endswith(f".{path}")}
        return sorted(names, key=lambda name: (name not in _PARAMETER_ORDER, (*_PARAMETER_ORDER, name).index(name)))

    def require_known_order(self, module: str, parameters: Sequence[str]) -> None:
        """Refuse several parameters of one module where it is not known which of their factors are whose. Raises
        UnsupportedError."""
        if len(parameters) > 1 and not set(parameters) <= set(_PARAMETER_ORDER):
            raise UnsupportedError(
                f"{self.path}: target_parameters names {', '.join(map(shown, sorted(parameters)))} of {shown(module)}; "
                "which of their factors are whose is not known"
            )

    @property
    def names_bare_parameters(self) -> bool:
        """Whether target_parameters has a name without a path, as PEFT writes it for target_modules that it converts:
        it fits below every module."""
        return any("." not in parameter for parameter in self.parameters)

    def scale_of(self, module: str) -> float:
        if self.scale is not None:
            return self.scale
        alpha = self.alpha
        if self.alpha_pattern:
            alpha = by_pattern(f"{self.path}: alpha_pattern", self.alpha_pattern, module, alpha)
        if self.spelled is not None:
            return self.spelled[1].scaling(alpha, self.rank_of(module))
        return lora.scaling(alpha, self.rank_of(module), rank_stabilised=self.rank_stabilised)


def parse_config(path: Path, fields: Mapping[str, Any], expert_layout: str | None = None) -> LoraConfig:
    """Raises UnsupportedError for what is refused by name, InputError for values of a wrong type."""
    spelled = spelling_of(fields)
    if spelled is None and fields.get("peft_type") != LORA:
        known = [LORA, *sorted(tag for name, tag in SPELLED if name == FORMAT)]
        raise UnsupportedError(f"{path}: peft_type {why_refused(fields.get('peft_type'), known)}")
    require_known(path, fields, None if spelled is None else spelled[1])
    if spelled is not None and (why := spelled[1].check(fields)):
        raise UnsupportedError(f"{path}: {why}")
    if fields.get("swift_type") not in (None, "LORA"):
        raise UnsupportedError(f"{path}: swift_type {shown(fields['swift_type'])[:80]} is not supported; LORA is")
    if why := changed_base(fields.get("init_lora_weights")):
        raise UnsupportedError(f"{path}: init_lora_weights = {shown(fields['init_lora_weights'])[:80]} {why}")
    own = LORA if spelled is None or alpha_field_of(fields) == "lora_alpha" else spelled[1].tag  # whose config it has
    if fields.get("bias", "none") not in ("none", "all", f"{own.lower()}_only"):
        raise UnsupportedError(f"{path}: bias = {shown(fields['bias'])[:80]} is not known")
    base = fields.get("base_model_name_or_path")
    spelling = None if spelled is None else spelled[1]
    rank_field, alpha_field = "r" if spelling is None else spelling.rank, alpha_field_of(fields)
    rank_pattern: Mapping[str, Any] = {}
    alpha_pattern: Mapping[str, Any] = {}
    if spelling is None or spelling.scale is None:
        rank_pattern, alpha_pattern = (_patterns(path, fields, key) for key in ("rank_pattern", "alpha_pattern"))
    return LoraConfig(
        path=path,
        spelled=spelled,
        base=base if isinstance(base, str) else "",
        task=task if isinstance(task := fields.get("task_type"), str) else "",
        rank=1 if rank_field is None else _rank(path, rank_field, fields.get(rank_field)),
        alpha=1.0 if alpha_field is None else _alpha(path, alpha_field, fields.get(alpha_field)),
        rank_stabilised=_flag(path, fields, "use_rslora"),
        dora=_flag(path, fields, "use_dora"),
        truncated=spelled is None and truncated(path, fields),
        bias=_flag(path, fields, "lora_bias"),
        fan_in_fan_out=_flag(path, fields, "fan_in_fan_out"),
        ties_ends=_flag(path, fields, "ensure_weight_tying"),
        saved=_names(path, "modules_to_save", fields.get("modules_to_save")),
        parameters=_names(path, "target_parameters", fields.get("target_parameters")),
        version=_version(fields.get("peft_version")),
        packing=packing_of(path, fields, expert_layout),
        blocks=blocks_of(path, fields),
        tokens=_tokens(path, fields, "trainable_token_indices" if spelling is None else spelling.tokens),
        rank_pattern={key: _rank(path, f"rank_pattern[{key}]", rank) for key, rank in rank_pattern.items()},
        alpha_pattern={key: _alpha(path, f"alpha_pattern[{key}]", alpha) for key, alpha in alpha_pattern.items()},
        others=_others(path, fields, spelling),
        scale=None if spelling is None or spelling.scale is None else _scale(path, fields, spelling),
        settings={} if spelling is None else {name: fields.get(name) for name in sorted(spelling.settings)},
    )


def _patterns(path: Path, fields: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    patterns = fields.get(key) or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{path}: {key} must be an object, not {shown(patterns)[:80]}")
    for pattern in patterns:
        check(f"{path}: {key} holds '{shown(pattern)[:80]}'", pattern)
    return patterns


def _tokens(path: Path, fields: Mapping[str, Any], key: str) -> Mapping[str, tuple[int, ...]]:
    value = fields.get(key)
    by_module = value if isinstance(value, dict) else {"": value} if value else {}
    for rows in by_module.values():
        good = isinstance(rows, list) and all(type(row) is int and row >= 0 for row in rows)
        if not good or len(set(rows)) != len(rows):
            raise InputError(f"{path}: {key} must list row numbers, each once: {shown(value)[:80]}")
    return {name: tuple(rows) for name, rows in by_module.items()}


def _names(path: Path, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value or [], list) or not all(isinstance(name, str) for name in value or []):
        raise InputError(f"{path}: {key} must be a list of names, not {shown(value)[:80]}")
    return tuple(value or ())


def _others(path: Path, fields: Mapping[str, Any], spelling: Spelling | None) -> str | tuple[str, ...]:
    if spelling is None or spelling.instead is None:
        return ()
    key = spelling.instead[0]
    value = fields.get(key)
    if not isinstance(value, str):
        return _names(path, key, value)
    check(f"{path}: {key} holds '{shown(value)[:80]}'", value)
    return value


def _version(value: object) -> tuple[int, ...] | None:
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})(?:\.(\d{1,9}))?", value) if isinstance(value, str) else None
    return None if numbers is None else tuple(int(number or 0) for number in numbers.groups())


def _flag(path: Path, fields: Mapping[str, Any], key: str) -> bool:
    value = fields.get(key) or False
    if not isinstance(value, bool):
        raise InputError(f"{path}: {key} must be true or false, not {shown(value)}")
    return value


def _rank(path: Path, key: str, value: object) -> int:
    if type(value) is not int or value < 1:
        raise InputError(
            f"{path}: {shown(key)} must be a whole number from 1 on, not {shown(value)[:80]}{_as_text(value)}"
        )
    return value


def _alpha(path: Path, key: str, value: object) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:  # type: ignore[arg-type]
        raise InputError(f"{path}: {shown(key)} must be a finite number, not {shown(value)[:80]}{_as_text(value)}")
    return value  # type: ignore[return-value]  # an int stays an int: alpha / r is then PEFT's own expression


def _scale(path: Path, fields: Mapping[str, Any], spelling: Spelling) -> float:
    assert spelling.scale is not None
    try:
        return _alpha(path, "the scale", spelling.scale(fields))
    except (ArithmeticError, KeyError, TypeError) as error:
        raise InputError(f"{path}: the scale of {spelling.tag} cannot be computed of its fields: {error!r}") from None


def _as_text(value: object) -> str:
    """What to say of a number that stands there as text."""
    number = isinstance(value, str) and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", value)
    return ", which is text there: take away the quotation marks around the number" if number else ""
