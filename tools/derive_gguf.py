"""Write adaptertool/architectures/gguf.json: what llama.cpp's converter makes of the tensors of transformers' models.

    HF_HUB_OFFLINE=1 python tools/derive_gguf.py LLAMA_CPP

LLAMA_CPP is a checkout of https://github.com/ggml-org/llama.cpp. A small model of each class is built with numbers that
tell where they were, and the converter is asked what becomes of each tensor: its name (layer numbers become *), and
whether its rows are put in another order within each head (and by which number of heads), or 1 is added. What becomes
something else (stacked experts, cut or transposed) is left out of the table, and named here.
"""

import json
import logging
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/gguf-py"]
import conversion  # noqa: E402
import gguf  # noqa: E402

OUTPUT = Path(__file__).parent.parent / "adaptertool" / "architectures" / "gguf.json"
CLASSES = (
    "LlamaForCausalLM", "MistralForCausalLM", "MixtralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
    "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
    "Phi3ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM", "CohereForCausalLM", "Cohere2ForCausalLM",
    "StableLmForCausalLM", "Starcoder2ForCausalLM", "SmolLM3ForCausalLM", "Glm4ForCausalLM",
)  # fmt: skip
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 64, "vocab_size": 50, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 8,
    "shared_expert_intermediate_size": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip
HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2}
EXPERT = re.compile(r"\.experts\.")


def reordered(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows of each head, those of its halves in turn."""
    parts = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return parts.swapaxes(1, 2).reshape(tensor.shape)


def change_of(before: torch.Tensor, after: torch.Tensor) -> str | None:
    """What was done to a tensor: "" for nothing; None where the table does not know it."""
    if before.shape != after.shape:
        return None
    if torch.equal(before, after):
        return ""
    if torch.equal(before + 1, after):
        return "+1"
    divide = {name: heads for name, heads in HEADS.items() if before.shape[0] % (2 * heads) == 0}
    fits = [name for name, heads in divide.items() if torch.equal(reordered(before, heads), after)]
    return fits[0] if len(fits) == 1 else None


def starred(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name, count=1)


def converter(name: str, config: Any, folder: Path) -> Any:
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "architectures": [name]}))
    own = conversion.get_model_class(name)
    words = {"model": {"vocab": [""] * SMALL["vocab_size"]}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(words))
    return own(folder, gguf.LlamaFileType.ALL_F32, folder / "out.gguf", eager=True)


def derive(name: str) -> tuple[dict[str, Any], list[str]]:
    """The row of the table, and the tensors that are left out."""
    model_class = getattr(transformers, name)
    config = model_class.config_class(**SMALL)
    with torch.device("meta"):
        tensors = model_class(config).state_dict()
    with tempfile.TemporaryDirectory() as folder:
        model = converter(name, config, Path(folder))
        table: dict[str, tuple[str, str]] = {}
        left = []
        for key, tensor in tensors.items():
            numbers = torch.arange(1, tensor.numel() + 1, dtype=torch.float64).reshape(tensor.shape)
            layer = re.search(r"\.(\d+)\.", key)
            item = model.filter_tensors((key, numbers.clone))
            try:
                skipped = item is None or EXPERT.search(key)
                made = [] if skipped else list(model.modify_tensors(numbers, item[0], layer and int(layer[1])))
            except (ValueError, KeyError, AssertionError):
                made = []
            change = change_of(numbers, made[0][1]) if len(made) == 1 else None
            if change is None:
                left.append(starred(key))
                continue
            module, parameter = key.rsplit(".", 1)
            new, ending = made[0][0].rsplit(".", 1)
            row = (starred(new), change)
            assert ending == parameter, key
            assert table.setdefault(starred(module), row) == row, key
    own = {"names": {key: new for key, (new, _) in table.items()}}
    changes = {new: change for new, change in table.values() if change}
    return {"arch": gguf.MODEL_ARCH_NAMES[model.model_arch], **own, "changes": changes}, sorted(set(left))


def main() -> None:
    logging.disable(logging.CRITICAL)
    rows = {}
    for name in CLASSES:
        row, left = derive(name)
        rows[name] = row
        print(f"{name}: {row['arch']}, {len(row['names'])} names, {row['changes']}; left out: {', '.join(left)}")
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    versions = json.dumps({"transformers": transformers.__version__, "llama.cpp": version(Path(sys.argv[1]))})
    OUTPUT.write_text(f'{{"versions": {versions},\n"architectures": {{\n{lines}\n}}}}\n')


def version(folder: Path) -> str:
    text = (folder / "gguf-py" / "pyproject.toml").read_text()
    found = re.search(r'^version = "(.*)"', text, re.MULTILINE)
    return f"gguf {found[1]}" if found else "?"


if __name__ == "__main__":
    main()
