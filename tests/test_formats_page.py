"""docs/formats.md: what each format holds of an adapter, found by converting one. `python tests/test_formats_page.py`
writes it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, Tensors, lora_factors, write_adapter, write_checkpoint
from safetensors.torch import save_file

import adaptertool
from adaptertool.errors import InputError
from adaptertool.formats import FORMATS, SAVINGS
from adaptertool.formats.format import Format

PAGE = ROOT / "docs" / "formats.md"
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"
EMBEDDING = "model.embed_tokens"
SHAPES = {f"{Q}.weight": (8, 8), f"{K}.weight": (8, 8), f"{EMBEDDING}.weight": (16, 8), f"{Q}.bias": (8,)}
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_attention_heads": 2, "num_key_value_heads": 2,
    "hidden_size": 8, "num_hidden_layers": 1, "tie_word_embeddings": False, "vocab_size": 16,
}  # fmt: skip
FLAT = f"lycoris_{Q.replace('.', '_')}"

# What it is -> (kohya's endings and shapes), or (PEFT's tensors, fields of its config)
OF_KOHYA: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "DoRA with norms of columns": {
        "lora_down.weight": (4, 8), "lora_up.weight": (8, 4), "dora_scale": (1, 8), "alpha": (),
    },
    "LoHa": {**{f"hada_w{n}_{x}": (8, 4) if x == "a" else (4, 8) for n in (1, 2) for x in "ab"}, "alpha": ()},
    "LoKr": {"lokr_w1": (2, 2), "lokr_w2_a": (4, 1), "lokr_w2_b": (1, 4), "alpha": ()},
    "GLoRA, diag-OFT, BOFT, (IA)³ of LyCORIS": {f"{x}.weight": (8, 8) for x in ("a1", "a2", "b1", "b2")},
    "whole differences (`.diff`)": {"diff": (8, 8)},
}  # fmt: skip
TWO: Tensors = {**lora_factors(Q, (8, 8)), **lora_factors(K, (8, 8))}
SMALLER: Tensors = {**lora_factors(Q, (8, 8)), **lora_factors(K, (8, 8), 2)}
OF_PEFT: Mapping[str, tuple[Tensors, dict[str, Any]]] = {
    "LoRA, one rank and scale": (TWO, {"r": 4, "lora_alpha": 8}),
    "LoRA, a scale that is no power of two": (TWO, {"r": 4, "lora_alpha": 6}),
    "LoRA, other ranks and scales": (SMALLER, {"r": 4, "rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 3}}),
    "rsLoRA": (TWO, {"r": 4, "lora_alpha": 3, "use_rslora": True}),
    "rsLoRA whose scale is not rational": (
        {**lora_factors(Q, (8, 8), 3), **lora_factors(K, (8, 8), 3)},
        {"r": 3, "lora_alpha": 4, "use_rslora": True},
    ),
    "DoRA": (
        {**lora_factors(Q, (8, 8)), f"{Q}.lora_magnitude_vector": torch.rand(8) + 1},
        {"r": 4, "lora_alpha": 6, "use_dora": True},
    ),
    "biases of factors (`lora_bias`)": (
        {**lora_factors(Q, (8, 8)), f"{Q}.lora_B.bias": torch.randn(8)},
        {"r": 4, "lora_alpha": 6, "lora_bias": True},
    ),
    "factors of embeddings": (
        {f"{EMBEDDING}.lora_embedding_A": torch.randn(4, 16), f"{EMBEDDING}.lora_embedding_B": torch.randn(8, 4)},
        {"r": 4, "lora_alpha": 8},
    ),
    "saved modules and biases": (
        {**lora_factors(Q, (8, 8)), f"{K}.weight": torch.randn(8, 8), f"{Q}.bias": torch.randn(8)},
        {"bias": "all"},
    ),
    "token rows": (
        {**lora_factors(Q, (8, 8)), f"{EMBEDDING}.token_adapter.trainable_tokens_delta": torch.randn(1, 8)},
        {"trainable_token_indices": {"embed_tokens": [1]}},
    ),
}
OPTIONS: Mapping[str, dict[str, Any]] = {
    "diffusers": {"prefix": "transformer."}, "comfy": {"prefix": "diffusion_model."}
}  # fmt: skip


def found(folder: Path) -> Mapping[str, Mapping[str, str]]:
    """What it is -> format -> what becomes of it."""
    torch.manual_seed(0)
    base = write_checkpoint(
        folder / "base", {name: torch.randn(shape) for name, shape in SHAPES.items()}, config=CONFIG
    )
    adapters: dict[str, tuple[str, Path]] = {}
    for number, (what, (tensors, fields)) in enumerate(OF_PEFT.items()):
        adapters[what] = "peft", write_adapter(folder / f"peft{number}", tensors, **fields)
    for number, (what, endings) in enumerate(OF_KOHYA.items()):
        path = folder / f"kohya{number}.safetensors"
        save_file({f"{FLAT}.{end}": torch.rand(shape) + 1 for end, shape in endings.items()}, path)
        adapters[what] = "kohya", path
    return {
        what: {to: "as it is" if to == own else became(path, to, base, folder) for to in SAVINGS}
        for what, (own, path) in adapters.items()
    }


def became(adapter: Path, to: str, base: Path, folder: Path) -> str:
    end = SAVINGS[to].end if not SAVINGS[to].weights else None
    out = folder / f"out{end or ''}"
    try:
        report = adaptertool.convert(adapter, out, to=to, base=base, dry_run=True, **OPTIONS.get(to, {}))
    except InputError:
        return "refused"
    if report.rounded:
        return "rounded"
    return "alpha rounded" if any("6e-8" in note for note in report.notes) else "exact"


TEXT = """# Formats of adapters

Which formats are read and written, and what each holds. This page is made by `python tests/test_formats_page.py`, which
converts an adapter of each sort, and a test holds it to what it says.

| format | what it is | written (`convert --to`) |
| --- | --- | --- |
{formats}

All of them are read, merged, verified and interpolated; of what has a pair of factors there are sums (`sum`) and
smaller ranks (`truncate`). These and `extract` write any of the formats too, by `--to`. One that is a file is written
where OUT ends as the table says.

## What is held

*exact*: factors keep their bits, or are multiplied by powers of two, and the scale is said as it is. *alpha rounded*:
the number that says the scale is stored in 32 bits, which moves the change by 6·10⁻⁸ of itself at most; the report
says so. *rounded*: a scale that cannot be said is multiplied into a factor, each element of which is rounded once, to
nearest; the report counts them. *refused*: by name, and nothing is written.

| what | {names} |
| --- | {lines} |
{rows}

## What else to know

- Names as kohya's tools write them cannot be undone: into other formats `--base` tells them, the folder of a pipeline
  or a single file. It also tells what layers are called in the other repository (sgm, diffusers), which of them are one
  there, and which halves are swapped. Layers of diffusers that are one in
  the original (`to_q`, `to_k`, `to_v` are `img_attn.qkv`) become one LoRA: its rank is the sum of theirs, and B has
  zeros where no part is changed. In kohya's format that is so where the base is a file that has such layers. Scales
  that differ by other factors than powers of two are multiplied into B. DoRA needs all parts; other kinds are refused.
- PEFT has an adapter for each model: of a pipeline choose one, `--part unet`. It makes LoKr's factors of shapes that
  follow from its config, one for all layers: where no such fields make just these shapes, LoKr is refused.
- diffusers: scales that are powers of two are multiplied into B, which every version loads; else the file says them in
  its metadata (`lora_adapter_metadata`), for every part of the pipeline, and factors stay as they are.
- kohya, ComfyUI: every layer has its alpha, also where it is its rank. `ss_network_dim` and `ss_network_alpha` are
  *Dynamic* where layers differ; `ss_*` and `modelspec.*` are carried over, also into other formats; `sshs_model_hash`
  and `sshs_legacy_hash` are those that sd-scripts would have written.
- kohya: saved weights and biases are differences to the base's, `.diff` and `.diff_b`, where `--base` tells those: in
  float32 at least, and what that does not hold is counted.
- Factors of all experts in one pair (PEFT's `target_parameters`), or in one stack (MLX, GGUF), become layers of each
  expert, and the reverse in MLX and GGUF, by the base: scales and all experts must be alike there. In PEFT's format
  they are the layers that transformers before 5 had.
- GGUF: of a model that ties its head to its embedding llama.cpp loads no change of either, and none is written. MLX
  changes both ends by either, so an adapter of one of them needs `--base`, and a tied one is refused.
- ComfyUI: saved modules and biases are `.set_weight`, which takes the place of the base's tensor; biases of text
  encoders have no such key, and are refused.
- ComfyUI divides DoRA by other norms than it was trained with: what it applies is not what was trained, which a note
  says.
- Text encoders have the names of transformers in every format.
"""
WHAT = {
    "peft": "`adapter_config.json`, `adapter_model.safetensors`",
    "kohya": "one file of sd-scripts, LyCORIS, OneTrainer: `lora_unet_`, `lora_te_`, `lycoris_`",
    "comfy": "one file with `diffusion_model.`",
    "diffusers": "`pytorch_lora_weights.safetensors`, or one file with `unet.`, `transformer.`",
    "mlx": "`adapters.safetensors` of mlx-lm",
    "gguf": "one file of llama.cpp",
}


def page(folder: Path) -> str:
    cases = found(folder)
    rows = [f"| {one.name} | {WHAT[one.name]} | {written(one)} |" for one in FORMATS]
    held = [f"| {what} | {' | '.join(own[to] for to in SAVINGS)} |" for what, own in cases.items()]
    names, lines = " | ".join(SAVINGS), " | ".join(["---"] * len(SAVINGS))
    return TEXT.format(formats="\n".join(rows), names=names, lines=lines, rows="\n".join(held))


def written(one: Format) -> str:
    """How a format is written."""
    if one.save is None:
        return "no"
    file = "" if one.save.end is None else f"a file `{one.save.end}`"
    return ", or ".join(part for part in ("a folder" if one.save.weights else "", file) if part)


def test_the_page_says_what_is_so(tmp_path: Path) -> None:
    assert PAGE.read_text() == page(tmp_path), "docs/formats.md: run python tests/test_formats_page.py"


@pytest.mark.parametrize("one", FORMATS, ids=lambda one: one.name)
def test_every_format_is_on_it(one: Any) -> None:
    assert one.name in WHAT


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        PAGE.write_text(page(Path(made)))
