"""Make the inputs of the benchmark: a random 1.1 B-parameter Llama in bf16 (3 shards) and an adapter by PEFT.

python benchmarks/make_1b.py DIRECTORY
"""

import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


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


if __name__ == "__main__":
    main(Path(sys.argv[1]))
