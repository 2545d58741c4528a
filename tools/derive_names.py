"""Write adaptertool/architectures/names.json: how each architecture of transformers has in memory what is on the disk.

    HF_HUB_OFFLINE=1 python tools/derive_names.py

Every model class is built on the meta device from its default config, and asked for its conversions. Renamings are
kept as rules, and so are conversions that join tensors (experts, one by one on the disk) or cut them (fused
projections) without changing a number; what changes the numbers (permuted, interleaved, ...) is kept as a mark: such
a tensor must not be edited by its name. An architecture that the table cannot hold is marked as a whole (-1).

Also asked: how fused experts lie in memory, and which tensors are tied where the config says so. Takes some minutes.
"""

import copy
import inspect
import json
import logging
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
from transformers.core_model_loading import GroupWeightRename, Inkling2IndexOffsetWeightRename, WeightConverter
from transformers.models.auto import modeling_auto

OUTPUT = Path(__file__).parent.parent / "adaptertool" / "architectures" / "names.json"
SECONDS_PER_CLASS = 30
STATEFUL = (GroupWeightRename, Inkling2IndexOffsetWeightRename)  # depend on other names, or count: not in the table
EXPERTS_WITHOUT_MARK = {"Llama4TextExperts": [False, True, True]}  # read off the class; the others say it themselves
MOST_TIES = 8
# Fields that some configs need before a model can be built from them. None of them changes a name, but for the number
# of layers.
HINTS: dict[str, dict[str, Any]] = {
    "EsmConfig": {"vocab_size": 33, "pad_token_id": 1},
    "Dots1Config": {"n_routed_experts": 4, "n_shared_experts": 1},
    "HunYuanMoEV1Config": {"head_dim": 32},
    "HunYuanVLConfig": {"text_config": {"head_dim": 32}},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"] * 16},
    "BeitConfig": {"out_indices": [3, 5, 7, 11]},
    "Emu3Config": {"vocabulary_map": {}},
    "AyaVisionConfig": {
        "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16}
    },
}
_BACKBONE = {"use_timm_backbone": False, "backbone": None, "backbone_config": {"model_type": "resnet"}}
HINTS |= {f"{family}Config": _BACKBONE for family in ("Detr", "ConditionalDetr", "DeformableDetr")}


def class_names() -> set[str]:
    names: set[str] = set()
    for key, mapping in vars(modeling_auto).items():
        if key.endswith("_MAPPING_NAMES"):
            for value in mapping.values():
                names.update([value] if isinstance(value, str) else value)
    return names


def build(name: str) -> Any:
    """The model on the meta device, from a default config that ties whatever can be tied."""
    model_class = getattr(transformers, name)
    config = model_class.config_class(**copy.deepcopy(HINTS.get(model_class.config_class.__name__, {})))
    parts = [config]
    for part in parts:  # grows while it is walked
        parts += [value for value in vars(part).values() if isinstance(value, transformers.PreTrainedConfig)]
        if hasattr(part, "tie_word_embeddings"):
            part.tie_word_embeddings = True
    with torch.device("meta"):
        return model_class(config)


def rules_of(model: Any) -> list[dict[str, Any]] | None:
    """The rules of one class in order; None where it has some that the table cannot hold."""
    transforms = get_model_conversion_mapping(model, add_legacy=False)
    if any(isinstance(transform, STATEFUL) for transform in transforms):
        return None
    rules = []
    for transform in transforms:
        rule = {"regex": transform.compiled_sources.pattern, "target": transform.target_patterns[0]}
        if isinstance(transform, WeightConverter):
            rule |= conversion(transform)
        if transform.scope_prefix is not None:
            rule |= {"scope": transform.scope_prefix, "base": transform.base_model_prefix}
        rules.append(rule)
    return rules


def conversion(transform: WeightConverter) -> dict[str, Any]:
    """What a rule that cuts or joins has beyond a renaming; no target where it changes numbers (the mark)."""
    steps = [
        (type(operation).__name__, *(value for value in vars(operation).values() if value is not None))
        for operation in transform.operations
    ]
    sources, targets = transform.source_patterns, transform.target_patterns
    if len(targets) == 1 and all(source.count("*") == 1 for source in sources):
        if steps in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
            return {"join": "experts"}
    elif len(targets) == 1 and steps == [("Concatenate", 0)]:
        return {"join": "rows"}
    elif len(sources) == 1 and len(targets) > 1 and steps == [("Chunk", 0)]:
        return {"cut": targets}
    elif len(targets) == 1 and steps == [("Transpose", 1, 2, True)]:
        return {"turned": True}  # transposed where the shapes say so
    return {"target": None}


def experts_of(model: Any) -> list[bool] | None:
    """Whether fused experts are marked is_transposed, whether gate and up are one after the other, and whether they are
    transposed: (in, out). All with a mark have it for what it says."""
    found = []
    for module in model.modules():
        if any(parameter.ndim == 3 for parameter in module.parameters(recurse=False)):
            if hasattr(module, "is_concatenated"):
                found.append([module.is_transposed, module.is_concatenated, module.is_transposed])
            elif type(module).__name__ in EXPERTS_WITHOUT_MARK:
                found.append(EXPERTS_WITHOUT_MARK[type(module).__name__])
    return found[0] if found and all(other == found[0] for other in found) else None


def ties_of(model: Any) -> dict[str, str] | None:
    """Tied name -> the name that it is tied to; None where untying would change more than that."""
    if "config.tie_word_embeddings" in inspect.getsource(sys.modules[type(model).__module__]):
        return None
    ties: dict[str, str] = model.get_expanded_tied_weights_keys(all_submodels=True)
    return ties if len(ties) <= MOST_TIES else None


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
    experts: dict[str, list[bool]] = {}
    ties: dict[str, dict[str, str]] = {}
    for name in sorted(class_names()):
        rules: list[dict[str, Any]] | None
        try:
            signal.alarm(SECONDS_PER_CLASS)
            model = build(name)
            rules, layout, tied = rules_of(model), experts_of(model), ties_of(model)
            del model
            if layout:
                experts[name] = layout
            if tied is not None:
                ties[name] = tied
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
        f'"experts": {json.dumps(experts)},\n"ties": {json.dumps(ties)},\n"lists": [\n{rows}\n]}}\n'
    )
    print(
        f"{len(architectures)} architectures, {len(lists)} lists of rules, {len(experts)} with experts, "
        f"{len(ties)} whose ties are known"
    )


if __name__ == "__main__":
    main()
