"""Make the inputs of the benchmark: a random 1.1 B-parameter Llama in bf16 (3 shards) and adapters for it.

python benchmarks/make_1b.py DIRECTORY

adapter: all linear layers, rank 16, made by PEFT. From it: attention (a subset), second (other numbers), dora (with
magnitudes of the base's rows), rank128.
"""

import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

PREFIX = "base_model.model."
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def main(folder: Path) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "base", max_shard_size="800MB")
    torch.set_default_dtype(torch.float32)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    tuned = get_peft_model(model, lora)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:  # PEFT starts with B = 0; a trained B is about this large
                parameter.normal_(std=0.01)
    tuned.save_pretrained(folder / "adapter")
    weights = {name: parameter for name, parameter in model.named_parameters() if "base_layer.weight" in name}
    norms = {name.replace("base_layer.weight", ""): w.detach().float().norm(dim=1) for name, w in weights.items()}
    derive(folder, norms)


def derive(folder: Path, norms: dict[str, torch.Tensor]) -> None:
    factors = load_file(folder / "adapter" / "adapter_model.safetensors")
    fields = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    modules = {key.partition("lora_")[0] for key in factors}
    wide = {}
    for key, factor in factors.items():
        shape = (128, factor.shape[1]) if "lora_A" in key else (factor.shape[0], 128)
        wide[key] = torch.randn(shape) * factor.std()
    magnitudes = {f"{name}lora_magnitude_vector": norms[name.removeprefix(PREFIX)] for name in modules}
    kinds = {
        "attention": ({key: f for key, f in factors.items() if any(part in key for part in ATTENTION)}, {}),
        "second": ({key: torch.randn_like(f) * f.std() for key, f in factors.items()}, {}),
        "dora": (factors | magnitudes, {"use_dora": True}),
        "rank128": (wide, {"r": 128, "lora_alpha": 256}),
    }
    for name, (tensors, changed) in kinds.items():
        (folder / name).mkdir(exist_ok=True)
        save_file(tensors, folder / name / "adapter_model.safetensors")
        (folder / name / "adapter_config.json").write_text(json.dumps(fields | changed))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
