"""Models that PEFT has wrapped: which of their modules are PEFT's, and whether these act on the output."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn

from adaptertool.errors import UnsupportedError, shown

INNER = frozenset({"base_layer", "original_module"})  # below a wrapper: what it wraps


def base_of(model: nn.Module) -> nn.Module:
    """The model below the wrappers around a whole model."""
    peft = sys.modules.get("peft")
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif peft is not None and isinstance(model, peft.PeftModel | peft.PeftMixedModel):
            model = model.get_base_model()
        elif (inner := model._modules.get("_orig_mod")) is not None:  # torch.compile
            model = inner
        else:
            return model


def is_layer(module: nn.Module) -> bool:
    """Whether PEFT put a module in the place of a layer of the model."""
    return "peft" in sys.modules and isinstance(module, _layers())


def is_saved(module: nn.Module) -> bool:
    """Whether a module holds modules_to_save, or trained token rows, beside the module of the model."""
    return "peft" in sys.modules and isinstance(module, _saved())


def wrappers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if is_layer(module) or is_saved(module):
            yield name, module


def active_in(wrapper: Any) -> list[str]:
    """The adapters of a wrapper that act on its output, unless it is disabled."""
    return [name for name in wrapper.active_adapters if name in wrapper._get_available_adapters()]


def refuse_prompts(model: nn.Module) -> None:
    """Raises UnsupportedError for prompt learning, which adds to the input of the model."""
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(model, peft.PeftModel) and model.active_peft_config.is_prompt_learning:
        raise UnsupportedError(
            f"the model has an adapter for its prompts ({model.active_peft_config.peft_type.value}), not its weights; "
            "model.get_base_model() is the model without it"
        )


def refuse_active(model: nn.Module) -> None:
    """Raises UnsupportedError where PEFT's own adapters act: what is merged would come on top of them, or twice."""
    refuse_prompts(model)
    for name, wrapper in wrappers(model):
        if wrapper.merged_adapters:
            raise UnsupportedError(
                f"{shown(name)} has the adapter {shown(wrapper.merged_adapters[0])} merged by PEFT; "
                "call unmerge_adapter() first"
            )
        if not wrapper.disable_adapters and (active := active_in(wrapper)):
            raise UnsupportedError(
                f"{shown(name)} has PEFT's adapter {shown(active[0])} active, and it would act on top of what is "
                "applied, twice if it is the same: enter `with model.disable_adapter():` first; or scale the active "
                "adapter itself by adaptertool.scaled(model, alpha)"
            )


def _layers() -> type:
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415  # no dependency; here it has been imported

    return BaseTunerLayer


def _saved() -> type:
    from peft.utils.other import AuxiliaryTrainingWrapper  # noqa: PLC0415  # as above

    return AuxiliaryTrainingWrapper
