"""Write adaptertool/architectures/heads.json: the models with a head for labels that transformers has for each type of
model.

    HF_HUB_OFFLINE=1 python tools/derive_heads.py

Each is built on the meta device with one layer. Kept are its name, the prefix of the model below the head, the tensors
of the head (those with a row for each label apart), and what it has below the prefix outside of the layers, in memory:
by these is told whether a checkpoint, with what an adapter saved, is such a model. Takes half a minute.
"""

import json
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

OUTPUT = Path(__file__).parent.parent / "adaptertool" / "architectures" / "heads.json"
LABELS = 137  # no other dimension is that
TASKS = {
    "SEQ_CLS": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "TOKEN_CLS": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
}


def with_one_layer(model_type: str) -> Any:
    config = transformers.CONFIG_MAPPING[model_type](num_labels=LABELS)
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 1)
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:1]
    return config


def head_of(model_type: str, name: str) -> dict[str, Any]:
    with torch.device("meta"):
        model = getattr(transformers, name)(with_one_layer(model_type))
    prefix = f"{model.base_model_prefix}."
    own = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    head = {key: shape for key, shape in own.items() if not key.startswith(prefix)}
    return {
        "class": name,
        "prefix": prefix,
        "labelled": sorted(key for key, shape in head.items() if shape[:1] == (LABELS,)),
        "others": sorted(key for key, shape in head.items() if shape[:1] != (LABELS,)),
        "body": [key for key in own if key not in head and not re.search(r"\.\d+\.", key)],
    }


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    models: dict[str, dict[str, Any]] = {}
    for task, names in TASKS.items():
        for model_type, name in names.items():
            try:
                found = head_of(model_type, name)
            except Exception as error:
                print(f"{name} is left out: {error}")
                continue
            if found["labelled"]:
                models.setdefault(model_type, {})[task] = found
    table = {"transformers": transformers.__version__, "models": dict(sorted(models.items()))}
    OUTPUT.write_text(json.dumps(table, indent=0, sort_keys=True) + "\n")
    print(f"{len(models)} types of models")


if __name__ == "__main__":
    main()
