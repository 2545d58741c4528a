"""What MLX stores otherwise than Hugging Face: what mlx-lm changes when it converts a checkpoint.

Names and numbers stay as they are, with these exceptions. The matrices of all experts become one tensor (E, out, in).
Convolutions are (out, k, in). Linear layers are (out, in) in every family, GPT-2's too. And in a few families numbers
themselves differ. Read off mlx-lm 0.32.2 (`sanitize` of its models); its checkpoints say "format": "mlx" in their
metadata.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from adaptertool.architectures.conversion import ExpertLayout
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.jsonfile import objects
from adaptertool.patterns import regex
from adaptertool.spec.tensors import Ref, TensorSpec

MLX = "mlx"  # what it is called in that metadata, and as a format of adapters
METADATA = ("format", MLX)
LAYOUT = ExpertLayout(marked=None, concatenated=True, transposed=False)

_NORMS = regex(r"norm\d*\.weight$")
_HEAD = regex(r"\blm_head\.weight$")
_ALL = regex("")
# Tensors of other numbers under the same name, by model_type: norms have 1 added, heads are normalised, or multipliers
# are folded in
_OTHER_NUMBERS = {
    "qwen3_next": _NORMS, "qwen3_5": _NORMS, "qwen3_5_text": _NORMS, "qwen3_5_moe": _NORMS, "qwen3_5_moe_text": _NORMS,
    "prism_hadamard_qwen35": _NORMS, "step3p5": _NORMS, "baichuan_m1": _HEAD, "bailing_moe": _HEAD,
    "bailing_moe_linear": _HEAD, "falcon_h1": _ALL, "muse_spark": _ALL, "rwkv7": _ALL,
}  # fmt: skip

# One expert of a stack: what stands before, its number, its projection. And what some call these projections
_EXPERT = regex(r"(.*)\.experts\.(\d{1,9})\.([^.]+)\.weight")
_STACKS = ("switch_mlp", "experts", "experts.switch_glu", "experts.switch_mlp")
_PROJECTIONS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
_PLAIN = frozenset({"Klear", "afmoe", "dots1", "gpt_oss", "llama4", "llama4_text"})  # by model_type
_ALIASES = (*((new, old) for old, new in _PROJECTIONS.items()), ("up_proj", "fc1"), ("down_proj", "fc2"))


def is_by_mlx(checkpoint: Checkpoint) -> bool:
    return any(METADATA in header.metadata.items() for header in checkpoint.headers)


def stored_otherwise(spec: TensorSpec, families: Collection[str], *, in_stack: bool) -> str | None:
    """Why MLX and Hugging Face have other numbers, or another order of them, in a tensor; None where they have not.

    families: model_type of the model and its parts; in_stack: it is of experts
    """
    if len(spec.shape) > 2 and not in_stack:
        return "MLX has the channels of convolutions last"
    if any(own.search(spec.name) for family, own in _OTHER_NUMBERS.items() if family in families):
        return "MLX converts the numbers of this model"
    return None


def require_alike(ref: Ref, families: Collection[str], *, base: bool, adapter: bool, in_stack: bool) -> None:
    """Refuse a change that was trained on other numbers than are stored. base, adapter: whether MLX wrote it. Raises
    UnsupportedError."""
    why = stored_otherwise(ref.spec, families, in_stack=in_stack) if base != adapter else None
    if why is not None:
        one, other = ("MLX", "Hugging Face") if adapter else ("Hugging Face", "MLX")
        raise UnsupportedError(
            f"{ref.path}: {shown(ref.spec.name)} is stored as {other} has it, and the adapter is for a model as {one} "
            f"has it: {why}; use a base of {one}'s"
        )


def require_comparable(base: Checkpoint, other: Checkpoint) -> None:
    """Refuse two checkpoints, one of MLX and one of Hugging Face, with a tensor that these store otherwise. Raises
    UnsupportedError."""
    if is_by_mlx(base) == is_by_mlx(other):
        return
    families = {str(part.get("model_type")) for one in (base, other) for part in objects(one.config or {})}
    for name in base.tensors.keys() & other.tensors.keys():
        if (why := stored_otherwise(base.tensors[name].spec, families, in_stack=False)) is not None:
            raise UnsupportedError(
                f"{shown(name)} of {base.path} and of {other.path} are not the same, for MLX wrote one of both: {why}; "
                "take both from MLX, or both from Hugging Face"
            )


def in_stack(module: str) -> tuple[str, int, str] | None:
    """The layer of one expert as what stands before, its number, and its projection as MLX calls it; None where it is
    none."""
    match = _EXPERT.fullmatch(f"{module}.weight")
    return None if match is None else (match[1], int(match[2]), _PROJECTIONS.get(match[3], match[3]))


def stack_of(families: Collection[str]) -> str:
    """What the stacks of all experts are called in a model of these families."""
    return "experts" if _PLAIN.intersection(families) else "switch_mlp"


def of_one_expert(name: str) -> Iterator[tuple[str, int | None]]:
    """What else the weight of one expert may be called: (the tensor, which expert of it, where that is a stack)."""
    if (match := _EXPERT.fullmatch(name)) is None:
        return
    before, expert, own = match[1], int(match[2]), match[3]
    others = [pair[1 - pair.index(own)] for pair in _ALIASES if own in pair]
    for projection in (own, *others):
        for stack in _STACKS:
            yield f"{before}.{stack}.{projection}.weight", expert
    for projection in others:
        yield f"{before}.experts.{expert}.{projection}.weight", None
