"""Where hooks on layers do not act: compiled code, and modules that use the weight of a layer without calling it."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from adaptertool.live.wrapped import INNER
from adaptertool.patterns import regex

# Of the methods of a module those that are not looked at: they make weights, and do not run.
_AT_REST = regex(r"__|_?(init|tie|reset|get|set|resize|load|save|from|to)_|__init__$|reset_parameters$")
# What is asked of a weight, and is no use of its numbers.
_ASKED = r"(?!\s*\.\s*(?:dtype|device|shape|size|ndim|dim|is_|requires_grad|data_ptr|numel|element_size))"

# Classes that are in every model, or around it.
_NOT_READ = ("builtins", "torch.nn.modules.module", "transformers.modeling_utils", "peft.")


def forget_compiled() -> bool:
    """Drop what torch.compile has made so far in this process, so that it is made anew; whether there was something.

    Code that was compiled while a layer had no hooks does not look for them later: an adapter would do nothing in it.
    Checked with torch 2.13; where that is not known all is dropped.
    """
    dynamo: Any = sys.modules.get("torch._dynamo")
    if dynamo is None:
        return False
    codes = getattr(getattr(dynamo, "convert_frame", None), "input_codes", None)
    if codes is not None and not codes.seen:
        return False
    dynamo.reset()
    return True


def readers_in(model: nn.Module) -> Callable[[nn.Module], bool]:
    """Whether a module that holds a layer takes the layer's weight itself, as its source tells: F.linear(x,
    self.a.weight), the kernels of state-space models, nn.MultiheadAttention. Where there is no source: False."""
    modules = dict(model.named_modules(remove_duplicate=False))
    paths: dict[int, list[str]] = {}
    for path, module in modules.items():
        paths.setdefault(id(module), []).append(path)

    def is_read(layer: nn.Module) -> bool:
        return any(_is_read(path, modules) for path in paths.get(id(layer), ()))

    return is_read


def parents_in(model: nn.Module) -> Mapping[nn.Module, nn.Module]:
    """Each module -> the one that should call it; without those in a list of modules, which runs none itself."""
    lists = (nn.ModuleList, nn.ModuleDict)
    return {child: one for one in model.modules() if not isinstance(one, lists) for child in one.children()}


def _is_read(path: str, modules: Mapping[str, nn.Module]) -> bool:
    while path.rpartition(".")[2] in INNER:  # below what PEFT has put around the layer
        path = path.rpartition(".")[0]
    name = path.rpartition(".")[2]
    if not name or name.isdecimal():
        return False
    use = re.compile(rf"\b{re.escape(name)}\.(weight\b{_ASKED}(?!\s*=[^=])|forward\()")
    while path:
        path = path.rpartition(".")[0]
        kind: Any = type(modules[path])
        if use.search(_source(kind)):
            return True
    return False


@functools.cache
def _source(kind: Any) -> str:
    """The source text of all that a module does when it runs."""
    texts = []
    for base in kind.__mro__:
        if base.__module__.startswith(_NOT_READ):
            continue
        for name, thing in vars(base).items():
            if inspect.isfunction(thing) and not _AT_REST.match(name):
                try:
                    texts.append(inspect.getsource(thing))
                except (OSError, TypeError):  # made in a session, or by a program
                    continue
    return re.sub(r"isinstance\([^()]*\)", "", "\n".join(texts))
