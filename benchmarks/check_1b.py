"""Load merged checkpoints with transformers and compare their logits with PEFT's unmerged model.

    python benchmarks/check_1b.py BASE ADAPTER MERGED...

All in float32 arithmetic, so what differs is the rounding of the merged weights to bf16 and nothing else.
Prints, for each MERGED: the relative error of the logits, and the share of positions with the same top token.
"""

import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def load(path: str) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


@torch.no_grad()
def main(base: str, adapter: str, *merged: str) -> None:
    tokens = torch.randint(0, 32000, (4, 64), generator=torch.Generator().manual_seed(0))
    unmerged = PeftModel.from_pretrained(load(base), adapter)(tokens).logits
    plain = load(base)(tokens).logits
    print(f"base without adapter: relative logits difference {(plain - unmerged).norm() / unmerged.norm():.1e}")
    for path in merged:
        logits = load(path)(tokens).logits
        error = (logits - unmerged).norm() / unmerged.norm()
        top = (logits.argmax(-1) == unmerged.argmax(-1)).float().mean()
        print(f"{path}: relative logits difference {error:.1e}, same top token {top:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
