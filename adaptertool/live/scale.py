"""The active adapters of a live PEFT model, acting α times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.formats.initialisers import HARMLESS_INITS
from adaptertool.live.wrapped import active_in, refuse_prompts, wrappers

_LORA = "peft.tuners.lora."


@contextlib.contextmanager
def scaling(model: nn.Module, alpha: float) -> Iterator[None]:
    """See `adaptertool.scaled`. All layers are looked at before any is scaled. Raises UsageError where no adapter is
    active."""
    refuse_prompts(model)
    layers = [(name, layer) for name, layer in wrappers(model) if active_in(layer)]
    if not layers:
        raise UsageError("the model has no active adapter of PEFT's; adaptertool.applied takes one from its files")
    plain: list[tuple[dict[str, float], str]] = []
    dora: list[Any] = []
    for name, layer in layers:
        _refuse(model, name, layer)
        if any(_variant(layer, adapter) for adapter in active_in(layer)):
            dora.append(layer)
        else:
            plain += [(layer.scaling, adapter) for adapter in active_in(layer)]
    with contextlib.ExitStack() as stack:
        for scales, adapter in plain:
            stack.callback(scales.__setitem__, adapter, scales[adapter])
            scales[adapter] *= alpha
        for layer in dora:
            stack.enter_context(_between(layer, alpha))
        yield


def _variant(layer: Any, adapter: str) -> str:
    """What its LoRA is more than LoRA; "" where it is nothing more."""
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    return "" if variant is None else type(variant).__name__


def _refuse(model: Any, name: str, layer: Any) -> None:
    where = f"{shown(name)}: {type(layer).__name__} with the adapter {shown(active_in(layer)[0])}"
    if layer.merged_adapters:
        raise UnsupportedError(f"{where} is merged, and has nothing to scale: call unmerge_adapter() first")
    if not type(layer).__module__.startswith(_LORA):
        raise UnsupportedError(
            f"{where} cannot be scaled, only LoRA and DoRA can: adaptertool.applied interpolates saved modules and "
            "token rows from the adapter's files"
        )
    for adapter in active_in(layer):
        if (variant := _variant(layer, adapter)) and not variant.startswith(("Dora", "_Dora")):
            raise UnsupportedError(f"{where} is a {variant}; only LoRA and DoRA can be scaled")
        config = getattr(model, "peft_config", {}).get(adapter)
        if (bias := getattr(config, "bias", "none")) != "none":
            raise UnsupportedError(f"{where} has trained biases (bias={bias!r}), which are not scaled with it")
        init = getattr(config, "init_lora_weights", True)
        if init not in HARMLESS_INITS:
            raise UnsupportedError(
                f"{where} was initialised by {shown(init)}, which changes the base: α = 0 would not be the original"
            )


@contextlib.contextmanager
def _between(layer: Any, alpha: float) -> Iterator[None]:
    """The layer gives base + α·(full − base), where base is what it wraps."""
    outputs: list[torch.Tensor] = []

    def begin(_layer: nn.Module, _inputs: Any) -> None:
        outputs.clear()  # of a call that failed

    def note(_base: nn.Module, _inputs: Any, base: torch.Tensor) -> None:
        outputs.append(base)

    def mix(_layer: nn.Module, _inputs: Any, named: dict[str, Any], full: torch.Tensor) -> torch.Tensor:
        if named.get("adapter_names") is not None:  # PEFT then writes into what the base gave
            raise UnsupportedError("adapter_names (several adapters in a batch) cannot be scaled where DoRA is active")
        (base,) = outputs
        outputs.clear()
        if alpha == 1:
            return full
        wide = torch.promote_types(base.dtype, torch.float32)
        return (base.to(wide) + (full.to(wide) - base.to(wide)) * alpha).to(full.dtype)

    with contextlib.ExitStack() as stack:
        for handle in (
            layer.register_forward_pre_hook(begin),
            layer.base_layer.register_forward_hook(note),
            layer.register_forward_hook(mix, prepend=True, with_kwargs=True),
        ):
            stack.callback(handle.remove)
        yield
