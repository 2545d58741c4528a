"""What one linear layer costs with an adapter of each kind, beside a LoRA of rank 16: CPU time of a merge, in turn.

python benchmarks/kinds_layer.py [ROUNDS] [KIND ...]

The layer is 2048 x 2048 in bf16. Adapters are what PEFT and LyCORIS save of random factors (extra `dev`), as in
tests/every_kind.py, at the sizes that their documentation takes. Times are of the process, all threads together, less
what a merge takes that changes nothing; the least of all rounds.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lycoris import LycorisNetwork, create_lycoris, logger
from peft import get_peft_model
from safetensors.torch import save_file
from torch import nn

import adaptertool

SIZE, LORA, NOTHING = 2048, "lora", "nothing"

# Class of the config, and its fields
PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    LORA: ("LoraConfig", {"r": 16}),
    "dora": ("LoraConfig", {"r": 16, "use_dora": True}),
    "lora, rank 256": ("LoraConfig", {"r": 256}),
    "boft": ("BOFTConfig", {"boft_block_size": 4}),
    "bone bat": ("MissConfig", {"r": 64, "init_weights": "bat"}),
    "c3a": ("C3AConfig", {"block_size": 64}),
    "deft": ("DeftConfig", {"r": 16}),
    "delora": ("DeloraConfig", {"r": 16}),
    "fourierft": ("FourierFTConfig", {"n_frequency": 1000, "scaling": 150.0}),
    "glora": ("GloraConfig", {"r": 16}),
    "gralora": ("GraloraConfig", {"r": 32, "gralora_k": 2}),
    "hira": ("HiraConfig", {"r": 16}),
    "hra": ("HRAConfig", {"r": 8}),
    "ia3": ("IA3Config", {"feedforward_modules": []}),
    "loha": ("LoHaConfig", {"r": 8}),
    "lokr": ("LoKrConfig", {"r": 16}),
    "miss": ("MissConfig", {"r": 64}),
    "oft": ("OFTConfig", {"r": 0, "oft_block_size": 32}),
    "randlora": ("RandLoraConfig", {"r": 32}),
    "road": ("RoadConfig", {"group_size": 64}),
    "shira": ("ShiraConfig", {"r": 16}),
    "tinylora": ("TinyLoraConfig", {"u": 64, "r": 2}),
    "vera": ("VeraConfig", {"r": 256}),
    "waveft": ("WaveFTConfig", {"n_frequency": 2592, "scaling": 25.0}),
}
LYCORIS: dict[str, dict[str, Any]] = {
    "locon, dora": {"algo": "lora", "linear_dim": 16, "dora_wd": True},
    "loha, dora": {"algo": "loha", "linear_dim": 8, "dora_wd": True},
    "lokr, dora": {"algo": "lokr", "linear_dim": 10000, "factor": 8, "dora_wd": True},
    "lokr, stored": {"algo": "lokr", "linear_dim": 10000, "factor": 8},
    "diag-oft": {"algo": "diag-oft", "linear_dim": 32},
    "boft of LyCORIS": {"algo": "boft", "linear_dim": 8},
}


def randomise(parameters: Any) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape) / 64)


def made(folder: Path, kind: str) -> Path:
    """An adapter of the layer `l`."""
    import peft  # noqa: PLC0415

    torch.manual_seed(0)
    model = nn.Module()
    model.l = nn.Linear(SIZE, SIZE, bias=False)
    if kind in PEFT:
        name, fields = PEFT[kind]
        tuned = get_peft_model(model, getattr(peft, name)(target_modules=["l"], **fields))
        randomise(parameter for parameter in tuned.parameters() if parameter.requires_grad)
        tuned.save_pretrained(folder / kind)
        return folder / kind
    logger.setLevel("WARNING")
    LycorisNetwork.apply_preset({"target_module": [], "target_name": ["l"]})
    network = create_lycoris(model, 1.0, linear_alpha=8, **LYCORIS[kind])
    for layer in network.loras:
        randomise(parameter for name, parameter in layer.named_parameters() if not name.startswith("org_module"))
    network.apply_to()
    save_file(
        {name: tensor.detach().clone().contiguous() for name, tensor in network.state_dict().items()},
        folder / f"{kind}.safetensors",
    )
    return folder / f"{kind}.safetensors"


def cpu_of(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main(rounds: int, kinds: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "base").mkdir()
        torch.manual_seed(1)
        save_file({"l.weight": (torch.randn(SIZE, SIZE) / 32).bfloat16()}, folder / "base" / "model.safetensors")
        (folder / "base" / "config.json").write_text('{"tie_word_embeddings": false}')
        adapters = {kind: made(folder, kind) for kind in dict.fromkeys([LORA, *(kinds or [*PEFT, *LYCORIS])])}
        calls: dict[str, Callable[[], object]] = {
            kind: lambda path=path: adaptertool.merge(folder / "base", [path], folder / "out")
            for kind, path in adapters.items()
        }
        calls[NOTHING] = lambda: adaptertool.wise(folder / "base", adapters[LORA], folder / "out", "0")
        least = dict.fromkeys(calls, float("inf"))
        for number in range(rounds + 1):
            for kind, call in calls.items():
                taken = cpu_of(call)
                shutil.rmtree(folder / "out")
                if number:  # the first fills caches
                    least[kind] = min(least[kind], taken)
        plain = least.pop(NOTHING)
        unit = least[LORA] - plain
        print(f"a merge that changes nothing: {plain * 1e3:.0f} ms; least of {rounds} rounds\n")
        for kind, taken in sorted(least.items(), key=lambda item: item[1]):
            print(f"{kind:18} {(taken - plain) * 1e3:8.1f} ms {(taken - plain) / unit:6.1f} x LoRA")


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    main(numbers[0] if numbers else 5, [argument for argument in sys.argv[1:] if not argument.isdigit()])
