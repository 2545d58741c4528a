"""What a sum of adapters holds beside factors: tensors that are saved whole, and the fields of its config."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adaptertool.errors import MismatchError, UnsupportedError, shown
from adaptertool.files.reader import is_folder, same_bytes
from adaptertool.formats import BY_NAME
from adaptertool.formats.beside import assets_of
from adaptertool.kinds import kind_of
from adaptertool.kinds.full import TUNED
from adaptertool.spec.adapter import Module
from adaptertool.spec.layers import Layered
from adaptertool.spec.tensors import Ref

_MUST_AGREE = ("ensure_weight_tying",)  # what would be summed depends on it


def saved_of(adapters: Sequence[Layered], weigh: Callable[[int, str], float]) -> list[Ref]:
    """The tensors that take the place of the base's: T of W + w·(T − W). One after the other, as `merge` applies them,
    adapters that hold the same T make W + (1 − Π(1 − wᵢ))·(T − W): it is T, and kept, where one of the weights is 1.

    Raises UnsupportedError for others: what they make depends on the base.
    """
    holders: dict[str, list[tuple[int, Module]]] = {}
    for number, adapter in enumerate(adapters):
        for module in adapter.saved:
            holders.setdefault(module.target, []).append((number, module))
    kept = []
    for some in holders.values():
        first, module = adapters[some[0][0]].adapter.path, some[0][1]
        if TUNED not in module.factors:
            raise UnsupportedError(
                f"{first}: {shown(module.target)} has a whole difference added to it; these are not summed yet: merge "
                "the adapters into the base one after the other"
            )
        ref, own = module.factors[TUNED], [weigh(number, module.target) for number, _ in some]
        said = " and ".join(f"{weight:g}" for weight in own)
        what = f"{first}: the saved tensor {shown(ref.spec.name)}"
        for number, other in some[1:]:
            twin = other.factors[TUNED]
            if (other.rows, twin.spec) != (module.rows, ref.spec) or not same_bytes(ref, twin):
                raise UnsupportedError(
                    f"{what} is another in {adapters[number].adapter.path}; what they make together depends on the base"
                )
        if 1 not in own:
            raise UnsupportedError(
                f"{what} takes the place of the base's and has weight {said}, not 1; what that "
                "makes depends on the base: give it weight 1, or merge into the base and extract"
            )
        _require_alone(adapters, [number for number, _ in some], module, what)
        kept.append(ref)
    return kept


def _require_alone(adapters: Sequence[Layered], holders: Sequence[int], module: Module, what: str) -> None:
    """Raises UnsupportedError where another adapter changes the same tensor, or a part of a saved module; and where
    factors come before the saved tensor, which in a merge replaces what they did."""
    parts = module.name.split(".")
    own = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    entries = adapters[holders[0]].fields.get("modules_to_save") or ()
    for adapter in adapters:
        for path in adapter.layers:
            below = any(f".{entry}." in f".{path}." for entry in entries)
            if (path in own or below) and any(path not in adapters[number].layers for number in holders):
                raise UnsupportedError(
                    f"{what} and the factors of {shown(path)} in {adapter.adapter.path} change the same module; no "
                    "adapter holds both"
                )
    for number, adapter in enumerate(adapters):
        on_it = [kind_of(one) for one in adapter.adapter.modules if one.target == module.target]
        kinds = [kind for kind in on_it if not kind.replaces]
        if kinds and number < holders[-1]:
            last = adapters[holders[-1]].adapter.path
            hint = "" if number in holders else f"; give {last} first"
            raise UnsupportedError(
                f"{what} replaces what the factors in {adapter.adapter.path} change, where {last} is merged after it; "
                f"no sum of both does so{hint}"
            )
        if whole := [kind for kind in kinds if kind.norms or not (kind.pair or kind.follows)]:
            by = "DoRA" if whole[0].norms else f"kind {whole[0].name}"
            raise UnsupportedError(f"{what} is a weight that {by} changes in {adapter.adapter.path}; these have no sum")


def fields_of(adapters: Sequence[Layered]) -> dict[str, Any]:
    """The config of a sum but for ranks and targets: what all agree on, and what follows from each. Raises
    MismatchError for what must agree, and does not."""
    configs = [adapter.fields for adapter in adapters]
    for name in _MUST_AGREE:
        if len({bool(config.get(name)) for config in configs}) > 1:
            raise MismatchError(f"{name} is set in some of the adapters only: {', '.join(_paths(adapters))}")
    first = configs[0]
    same = {name: value for name, value in first.items() if all(config.get(name) == value for config in configs[1:])}
    biases = {config["bias"] for config in configs if config.get("bias", "none") != "none"}
    return same | {
        "base_model_name_or_path": same.get("base_model_name_or_path"),
        "task_type": same.get("task_type"),
        "peft_version": _version(adapters),
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
        "lora_bias": any(config.get("lora_bias") for config in configs),
        "bias": biases.pop() if len(biases) == 1 else "all" if biases else "none",
        "fan_in_fan_out": any(config.get("fan_in_fan_out") for config in configs),
        "modules_to_save": sorted({name for config in configs for name in config.get("modules_to_save") or ()}) or None,
        "trainable_token_indices": _tokens(adapters),
    }


def _paths(adapters: Sequence[Layered]) -> Iterator[str]:
    return (str(adapter.adapter.path) for adapter in adapters)


def _tokens(adapters: Sequence[Layered]) -> Any:
    """The trainable_token_indices of the adapters that hold token rows; of several, one name after the other."""
    own = [adapter.fields["trainable_token_indices"] for adapter in adapters if any(m.rows for m in adapter.saved)]
    if not own or all(value == own[0] for value in own):
        return own[0] if own else None
    together: dict[str, Any] = {}
    for value in own:
        if not isinstance(value, Mapping) or any(together.get(name, rows) != rows for name, rows in value.items()):
            raise UnsupportedError(f"trainable_token_indices differ: {', '.join(_paths(adapters))}")
        together |= value
    return together


def _version(adapters: Sequence[Layered]) -> str | None:
    """PEFT's version says to which dimension the factors of square experts belong; otherwise the newest counts."""
    squares = [adapter for adapter in adapters if _has_square_experts(adapter)]
    sides = {(adapter.adapter.experts_on_first, adapter.adapter.marked_on_first) for adapter in squares}
    if len(sides) > 1:
        raise MismatchError(
            "the versions of PEFT that wrote these adapters differ in which dimension of square experts lora_A belongs "
            f"to: {', '.join(_paths(squares))}"
        )
    versions = [adapter.fields.get("peft_version") for adapter in squares or adapters]
    known = [version for version in versions if isinstance(version, str)]
    return max(known, key=_numbers) if known else None


def _has_square_experts(adapter: Layered) -> bool:
    return any(
        layer.is_parameter and pair.inputs == pair.outputs for layer in adapter.layers.values() for pair in layer.pairs
    )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def notes_of(adapters: Sequence[Layered]) -> list[str]:
    """What the user should know: the notes on each adapter, and what becomes of nothing in the sum."""
    notes = [note for adapter in adapters for note in adapter.adapter.notes]
    bases = dict.fromkeys(adapter.adapter.trained_on for adapter in adapters)
    if len(bases) > 1:
        names = ", ".join(shown(base) or "none" for base in bases)
        notes.append(f"the adapters name different bases, so the sum names none: {names}")
    others = {
        asset.name
        for adapter in adapters
        if is_folder(adapter.adapter.path)
        for asset in assets_of(adapter.adapter.path, BY_NAME[adapter.adapter.format].files)[0]
    }
    if others:
        notes.append(f"left out, since they belong to one adapter: {', '.join(map(shown, sorted(others)))}")
    return notes
