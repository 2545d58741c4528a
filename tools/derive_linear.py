"""Write adaptertool/architectures/linear.json: which weights of each architecture bitsandbytes quantises to 4 bits.

    HF_HUB_OFFLINE=1 python tools/derive_linear.py

Every model class for language is built on the meta device, as in derive_names.py, and asked as transformers does on
loading with BitsAndBytesConfig(load_in_4bit=True): all layers that are nn.Linear, without those that it leaves out by
default (the output head, what is tied, the last module, what is kept in float32). Their names in memory are kept, with
# in the place of numbers; and those of all other parameters of two or more dimensions, since what is on neither list is
of a model with other settings than the default ones. An architecture with layers of class Conv1D, which are transposed
before, is marked (-1). Takes some minutes.
"""

import json
import logging
import re
import signal
import warnings
from pathlib import Path

import torch
import transformers
from derive_names import SECONDS_PER_CLASS, build, class_names, timed_out
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

OUTPUT = Path(__file__).parent.parent / "adaptertool" / "architectures" / "linear.json"
# The classes that such runs train
_TRAINED = re.compile(r".*(?:For(?:CausalLM|ConditionalGeneration|(?:Sequence|Token)Classification)|LMHeadModel)$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def linear_of(name: str) -> dict[str, list[str]] | None:
    """The names of the weights that are quantised, and of others; None where some are transposed before."""
    model = build(name)
    kept = HfQuantizer.get_modules_to_not_convert(model, None, model._keep_in_fp32_modules)
    chosen = [(own, module) for own, module in model.named_modules() if should_convert_module(own, kept)]
    if any(isinstance(module, Conv1D) for _, module in chosen):
        return None
    linear = {_NUMBER.sub("#", f"{own}.weight") for own, module in chosen if type(module) is torch.nn.Linear}
    own_names = {f"{own}.weight" for own, module in chosen if type(module) is torch.nn.Linear}
    named = dict(model.named_parameters(remove_duplicate=False))
    others = {_NUMBER.sub("#", own) for own, one in named.items() if one.ndim > 1 and own not in own_names}
    if linear & others:
        raise ValueError(f"{sorted(linear & others)[0]} is a layer of one class in some places, and another in others")
    return {"linear": sorted(linear), "others": sorted(others)}


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, timed_out)
    lists: list[dict[str, list[str]]] = []
    architectures: dict[str, int] = {}
    for name in sorted(filter(_TRAINED.match, class_names())):
        try:
            signal.alarm(SECONDS_PER_CLASS)
            linear = linear_of(name)
        except Exception as error:  # no torch class, an optional package, a config without defaults, ...
            print(f"left out: {name}: {type(error).__name__}: {str(error)[:80]}")
            continue
        finally:
            signal.alarm(0)
        if linear is None:
            architectures[name] = -1
        elif linear["linear"]:
            if linear not in lists:
                lists.append(linear)
            architectures[name] = lists.index(linear)
    rows = ",\n".join(map(json.dumps, lists))
    OUTPUT.write_text(
        f'{{"transformers": "{transformers.__version__}",\n"architectures": {json.dumps(architectures)},\n'
        f'"lists": [\n{rows}\n]}}\n'
    )
    print(f"{len(architectures)} architectures, {len(lists)} lists")


if __name__ == "__main__":
    main()
