"""CLIP's text encoder in its spellings: of transformers 4, of transformers 5 (which leaves out `text_model.`), and of
OpenCLIP, as original checkpoints of Stable Diffusion 2 and XL have it (diffusers 0.42,
loaders.single_file_utils.convert_open_clip_checkpoint)."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from adaptertool.architectures.conversion import Part
from adaptertool.architectures.relation import Relation
from adaptertool.patterns import regex

BEFORE = "text_model."  # of transformers 4
OPEN = "transformer.resblocks."  # how names of layers begin in OpenCLIP
_OF_OPEN = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_IN_LAYER = {
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
}
_LAYER = regex(r"transformer\.resblocks\.(\d+)\.(.*)")
_FUSED = regex(r"attn\.in_proj_(weight|bias)")


def is_clip(names: Collection[str]) -> bool:
    """Whether tensors of these names are those of such a text encoder, in any spelling."""
    known = "encoder.layers.0.self_attn.q_proj.weight"
    return any(name in names for name in (known, BEFORE + known, "transformer.resblocks.0.ln_1.weight"))


def relations(names: Collection[str]) -> Iterator[Relation]:
    """Each tensor of a checkpoint as transformers 4 and 5 have it."""
    for name in names:
        if name == "text_projection":
            yield Relation("text_projection.weight", name, Part(turned=True))
        elif name.startswith(BEFORE):
            yield Relation(name.removeprefix(BEFORE), name)
        elif name.startswith(("encoder.", "embeddings.", "final_layer_norm.")):
            yield Relation(BEFORE + name, name)
        else:
            for ours, part in _of_open(name):
                yield Relation(ours, name, part)
                yield Relation(BEFORE + ours, name, part)


def _of_open(name: str) -> Iterator[tuple[str, Part | None]]:
    if name in _OF_OPEN:
        yield _OF_OPEN[name], None
    elif match := _LAYER.fullmatch(name):
        layer, inner = f"encoder.layers.{match[1]}", match[2]
        path, _, kind = inner.rpartition(".")
        if path in _IN_LAYER:
            yield f"{layer}.{_IN_LAYER[path]}.{kind}", None
        elif fused := _FUSED.fullmatch(inner):
            for part, projection in enumerate("qkv"):
                yield f"{layer}.self_attn.{projection}_proj.{fused[1]}", Part(part, 3)
