"""New heads: an adapter that was trained for labels, and saved the head for them, onto a base without it, or with
another number of labels.

The head takes the place of the old one, and config.json follows, so that loaders make such a model of the output. What
a model with that head is made of is data, from transformers itself (heads.json, made by tools/derive_heads.py).
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from adaptertool.architectures.conversion import architecture_of, into_memory, rules_for
from adaptertool.codecs import COMPUTED
from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.kinds import kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.records import dataclass
from adaptertool.resolution.names import Names
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")


@dataclass(frozen=True, slots=True)
class Head:
    architecture: str
    labels: int
    tensors: Mapping[str, Ref]  # of the adapter, by their names in the output
    dropped: tuple[str, ...]  # tensors of the base that such a model does not have: those of the old head

    def configured(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """config.json of the output, with the base's."""
        names = [f"LABEL_{number}" for number in range(self.labels)]
        return {
            **config,
            "architectures": [self.architecture],
            "num_labels": self.labels,
            "id2label": {str(number): name for number, name in enumerate(names)},
            "label2id": {name: number for number, name in enumerate(names)},
        }

    def notes(self, base: Checkpoint, ends: Collection[str], changed: Collection[str]) -> list[str]:
        """What to say of it. Raises UnsupportedError where the adapters change what such a model does not have."""
        if lost := [name for name in (*self.dropped, *ends) if name in changed]:
            raise UnsupportedError(
                f"{shown(lost[0])} is changed, but a new head makes {base.path} a {self.architecture}, which has none"
            )
        found = [
            f"the output is a {self.architecture} with {self.labels} labels, as its config.json says (architectures, "
            f"num_labels, id2label, label2id); its head, {', '.join(map(shown, self.tensors))}, is the adapter's"
        ]
        if self.dropped:
            found.append(f"left out, since such a model has none: {', '.join(map(shown, self.dropped))}")
        if (base.config or {}).get("pad_token_id") is None:
            found.append("config.json has no pad_token_id: loaders then take one sequence at a time")
        return found


def require_only(adapter: Adapter, weights: Collection[float], before: Head | None) -> None:
    """Raises UnsupportedError for a new head with a weight, or after another one."""
    if any(weight != 1 for weight in weights):
        raise UnsupportedError(
            f"{adapter.path} brings a new head; between none and it there is nothing: give it weight 1"
        )
    if before is not None:
        raise UnsupportedError(f"{adapter.path} brings a new head, as an adapter before it does; a model has one")


def take_head(base: Checkpoint, names: Names, adapter: Adapter) -> tuple[Head | None, Adapter]:
    """The head that `adapter` brings, and the adapter without it; None where the base has one of its shapes.

    Raises UnsupportedError where it is not certain which model it makes of the base, or not all of that is there.
    """
    saved = {one.target: one for one in adapter.modules if kind_of(one).replaces and one.rows is None}
    models = _table().get(str((base.config or {}).get("model_type")), {})
    own = {name for model in models.values() for name in (*model["labelled"], *model["others"])}
    new = [name for name in saved if name in own and _differs(base, names, saved[name])]
    if not new and (model := models.get(adapter.task)) and _is_another(base, models, model):
        new = [name for name in saved if name in model["labelled"]]
    if not new:
        return None, adapter
    where = f"{adapter.path} brings a new head, {', '.join(map(shown, new))}"
    model = models.get(adapter.task) or next(
        (m for m in models.values() if m["class"] == architecture_of(base.config)), None
    )
    if base.is_file or model is None or (base.config or {}).get("auto_map"):
        raise UnsupportedError(
            f"{where}, and the task_type {shown(adapter.task) or 'none'} in its config does not tell which model that "
            f"makes of {base.path}; {' and '.join(models)} do, where it is a directory without code of its own"
        )
    wanted = [*model["labelled"], *model["others"]]
    tensors = {name: saved[name].factors[TUNED] for name in wanted if name in saved}
    if lost := [name for name in wanted if name not in tensors and name not in base.tensors]:
        raise UnsupportedError(
            f"{where}, but not {shown(lost[0])}, which {model['class']} has too, and which {base.path} does not hold: "
            "modules_to_save must name all of the head in training"
        )
    outside = _outside(base, model)
    bare = len(outside) == len(base.tensors)  # saved without the prefix of the head
    body = [name.removeprefix(model["prefix"]) if bare else name for name in model["body"]]
    if lost := [name for name in body if not names.find(name) and name not in saved]:
        raise UnsupportedError(
            f"{where}, but {base.path} has no {shown(lost[0])}, which {model['class']} needs; that would be new, and "
            "not what the adapter was trained on"
        )
    labels = _labels(base, model, tensors, where)
    dropped = [name for name in outside if not bare and name not in wanted]
    rest = tuple(one for one in adapter.modules if saved.get(one.target) is not one or one.target not in tensors)
    return Head(model["class"], labels, tensors, tuple(dropped)), dataclasses.replace(adapter, modules=rest)


def _is_another(base: Checkpoint, models: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether the base is a model with another sort of labels, whose head may have the same shape."""
    own = architecture_of(base.config)
    return own != model["class"] and own in {one["class"] for one in models.values()}


def _differs(base: Checkpoint, names: Names, module: Module) -> bool:
    ref = base.tensors.get(module.target)
    return names.find(module.target) is None if ref is None else ref.shape != module.factors[TUNED].shape


def _outside(base: Checkpoint, model: Mapping[str, Any]) -> list[str]:
    """The tensors that do not lie below the model's prefix, as it has them in memory."""
    rules = rules_for(model["class"])
    return [
        disk
        for disk in base.tensors
        if not any(name.startswith(model["prefix"]) for name, _ in into_memory(rules, disk))
    ]


def _labels(base: Checkpoint, model: Mapping[str, Any], tensors: Mapping[str, Ref], where: str) -> int:
    """The number of labels: the rows of these tensors. Raises unless all agree, and the head reads what the base
    gives."""
    for name, ref in tensors.items():
        if len(ref.shape) != (2 if name.endswith("weight") else 1) or not ref.spec.numel:
            raise MismatchError(f"{where}, but {shown(name)} is {ref.spec}, which is no part of a head")
    counts = {(tensors.get(name) or base.tensors[name]).shape[:1] for name in model["labelled"]}
    if len(counts) != 1 or () in counts:
        rows = sorted(rows for count in counts for rows in count)
        raise MismatchError(f"{where}, whose tensors have {rows} rows: there must be one for each label")
    widths = {width for key in _WIDTHS if type(width := (base.config or {}).get(key)) is int}
    for name, ref in tensors.items():
        if len(ref.shape) == 2 and widths and ref.shape[1] not in widths:
            raise MismatchError(
                f"{where}, but {shown(name)} is {ref.spec}, and {base.path} has {sorted(widths)} features; is this "
                "adapter for another model?"
            )
    return counts.pop()[0]


def dtype_in(base: Checkpoint, ref: Ref) -> str:
    """The dtype in which a tensor of the head is stored: that of the largest of the base, if it is no code."""
    largest = stored_as(base, max(base.tensors.values(), key=lambda one: one.spec.numel))
    return largest if largest in COMPUTED else ref.spec.dtype


def stored_as(base: Checkpoint, ref: Ref) -> str:
    """The dtype in which a tensor of the base is stored in an output."""
    return ref.spec.dtype if base.stored_as is None else base.stored_as.get(ref.spec.name, ref.spec.dtype)


@functools.cache
def _table() -> Mapping[str, Any]:
    told = Path(__file__).parent.parent / "architectures" / "heads.json"
    models: dict[str, Any] = json.loads(told.read_text())["models"]
    return models
