"""Write adaptertool/names.json: how each architecture of transformers renames tensors between disk and memory.

    HF_HUB_OFFLINE=1 python tools/derive_names.py

Every model class is built on the meta device from its default config, and asked for its conversions. Renamings are
kept as rules. Conversions that cut or join tensors (fused experts, ...) make other names and are left out; those that
change the numbers in place (transposed, permuted, ...) are kept as marks: such a tensor must not be edited by its name.
An architecture that the table cannot hold is marked as a whole (-1). Takes some minutes.
"""

import json
import logging
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import GroupWeightRename, Inkling2IndexOffsetWeightRename, WeightConverter
from transformers.models.auto import modeling_auto

OUTPUT = Path(__file__).parent.parent / "adaptertool" / "names.json"
SECONDS_PER_CLASS = 30
STATEFUL = (GroupWeightRename, Inkling2IndexOffsetWeightRename)  # depend on other names, or count: not in the table
CUT_OR_JOIN = {"MergeModulelist", "SplitModulelist", "Concatenate", "Chunk", "Split"}


def class_names() -> set[str]:
    names: set[str] = set()
    for key, mapping in vars(modeling_auto).items():
        if key.endswith("_MAPPING_NAMES"):
            for value in mapping.values():
                names.update([value] if isinstance(value, str) else value)
    return names


def rules_of(name: str) -> list[dict[str, Any]] | None:
    """The rules of one class in order; None where it has some that the table cannot hold."""
    model_class = getattr(transformers, name)
    with torch.device("meta"):
        model = model_class(model_class.config_class())
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    if any(isinstance(transform, STATEFUL) for transform in transforms):
        return None
    rules = []
    for transform in transforms:
        target = transform.target_patterns[0]
        if isinstance(transform, WeightConverter):
            if {type(operation).__name__ for operation in transform.operations} <= CUT_OR_JOIN:
                continue
            target = None  # the mark
        rule = {"regex": transform.compiled_sources.pattern, "target": target}
        if transform.scope_prefix is not None:
            rule |= {"scope": transform.scope_prefix, "base": transform.base_model_prefix}
        rules.append(rule)
    return rules


def may_have_rules(name: str) -> bool:
    """Whether a class that could not be built has conversions of its own, as far as its name and type tell."""
    model_class = getattr(transformers, name, None)
    if not isinstance(model_class, type) or not issubclass(model_class, torch.nn.Module):
        return False
    model_type = getattr(getattr(model_class, "config_class", None), "model_type", None)
    return any(get_checkpoint_conversion_mapping(key) for key in (name, model_type))


def timed_out(*_: object) -> None:
    raise TimeoutError


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGALRM, timed_out)
    lists: list[str] = []
    architectures: dict[str, int] = {}
    for name in sorted(class_names()):
        try:
            signal.alarm(SECONDS_PER_CLASS)
            rules = rules_of(name)
        except Exception as error:  # no torch class, an optional package, a config without defaults, ...
            rules = None if may_have_rules(name) else []
            if rules is None:
                print(f"refused: {name}: {type(error).__name__}: {str(error)[:80]}")
        finally:
            signal.alarm(0)
        if rules is None:
            architectures[name] = -1
        elif rules:
            text = json.dumps(rules)
            if text not in lists:
                lists.append(text)
            architectures[name] = lists.index(text)
    rows = ",\n".join(lists)
    OUTPUT.write_text(
        f'{{"transformers": "{transformers.__version__}",\n"architectures": {json.dumps(architectures)},\n'
        f'"lists": [\n{rows}\n]}}\n'
    )
    print(f"{len(architectures)} architectures, {len(lists)} lists of rules")


if __name__ == "__main__":
    main()
