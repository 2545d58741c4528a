"""What a base checkpoint is, beyond its tensors: quantised, tied, stored transposed. Read once per base.

Each of these makes an edit that looks right come out wrong, so each is refused by name until it is handled.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from adaptertool.architectures.mlx import is_by_mlx
from adaptertool.codecs import COMPUTED
from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.jsonfile import objects
from adaptertool.patterns import regex
from adaptertool.records import dataclass
from adaptertool.spec.tensors import Ref

# Families whose linear layers are stored (in, out): Conv1D of transformers 5.23. Where a weight is square its shape
# does not tell, so the family must. A family on neither list (code from a hub, say) may be a fork of GPT-2.
_TRANSPOSED_FAMILIES = frozenset({"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"})
_TRANSPOSED_NAMES = frozenset({"c_attn", "c_proj", "c_fc", "q_attn"})
_LINEAR_FAMILIES = frozenset({"gpt_bigcode", "gpt_neo", "starcoder2", "idefics"})  # the same names, not transposed

# Names of what models tie: input embeddings (a part with "embed" in it, or one of a few more) and output heads (the
# last part). When unsure, it is one; but nothing ties embeddings of positions and of token types.
_MORE_EMBEDDINGS = "wte|shared|lm_head|tokens|token_embd"
_HEADS = "embed_out|output|pred_layer|proj_out|lm_loss|decoder|unembed"
_MAY_BE_TIED = regex(
    r"^(?!.*(?:position|token_type|segment|patch_embed|embedding_hidden|rel_attn_embed|decoder_embed|\d\..*output))"
    rf".*(?:embed|\b(?:{_MORE_EMBEDDINGS})\b|\b(?:{_HEADS})(?:\.weight)?$)"
)
_ALIKE = bytes.maketrans(b"123456789", b"0" * 9)  # which digits makes no difference: of all layers one is asked for
_ANY_OF_THEM = regex(rf"embed|{_MORE_EMBEDDINGS}|{_HEADS}")  # seldom there, and soon looked for

_VOCABULARY = regex(r"^(?!type_).*vocab|^n_words$")  # keys of a config

# Names of what stands beside codes, their scales and the like: what follows the name of the tensor that the codes are,
# and what stands in the place of `weight`. Scales of activations and of a cache of keys and values (k_scale) are not
# among them, but for input_scale, which goes with codes.
_OF_TENSOR = (
    "_scale", "_scale_inv", "_scale_2", "_scales", "_global_scale", "_packed", "_blocks", "_shape", "_zero_point",
    "_g_idx", "_format", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", "._data", "._scale",
    "._shift", "._zeropoint", "_qdata",
)  # fmt: skip
_OF_MODULE = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".SCB", ".W_q", ".qscale_weight", ".input_scale",
    ".scale_weight", ".scale_input", ".comfy_quant",
)  # fmt: skip
_SCALE = ".scale"  # of the module, as DeepSeek-V4 has it; norms have one too
_ENDS = (*_OF_TENSOR, *_OF_MODULE, _SCALE)
_GGUF = "gguf"  # the family of whatever is in that format: nothing is stored transposed there
_STATE = ".quant_state."  # bitsandbytes: then the name of the format
NOT_CODES = frozenset({*COMPUTED, "I64", "BOOL"})  # dtypes of weights, of positions and of masks


@dataclass(frozen=True, slots=True)
class Traits:
    families: frozenset[str]  # model_type of the model and of those that it is made of
    quantisation: str | None  # what config.json says of it
    codes: Mapping[str, str]  # quantised tensor, or what would be it -> a tensor beside it that shows this
    beside_codes: frozenset[str]  # all of those
    has_codes: bool  # whether any tensor is quantised
    vocabularies: tuple[object, ...]  # vocab_size and the like, as the config has them
    kv_rows: int | None  # output rows of k_proj, and of v_proj
    surely_tied: bool  # config.json says tie_word_embeddings: true
    why_tied: str | None  # why embedding and output head may be one; None where they are not
    by_mlx: bool  # whether MLX wrote it

    @property
    def quantised(self) -> str | None:
        """How the base is quantised; None where no tensor is, whatever the config says."""
        if not self.has_codes:
            return None
        return self.quantisation or next((f"it holds {shown(name)}" for name in self.beside_codes), None)

    def refuse_quantised(self, ref: Ref) -> None:
        """Refuse to edit a tensor whose stored numbers are codes, or belong to codes. Raises UnsupportedError.

        What is stored tells. The config names a method for the whole model, and often not what was kept as it was:
        heads, routers, attention.
        """
        name = ref.spec.name
        if ref.spec.dtype not in COMPUTED:
            why = f"{self.quantisation + ', and ' if self.quantisation else ''}it is stored as {ref.spec.dtype}"
        elif name in self.codes:
            why = f"{shown(self.codes[name])} stands beside it"
        elif name in self.beside_codes:
            why = "it belongs to the codes of another tensor"
        elif self.quantisation and len(ref.spec.shape) == 2 and ref.spec.shape[0] > ref.spec.shape[1] == 1:
            why = f"{self.quantisation}, and it is a column, as bytes of codes are stored"
        else:
            return
        raise UnsupportedError(
            f"{ref.path}: {shown(name)} looks quantised ({why}); it is not edited as it is stored. {self.way_out}"
        )

    @property
    def way_out(self) -> str:
        """What to do with a quantised base."""
        if _GGUF in self.families:
            return "--dtype bf16 (f16, f32) decodes it; quantise what that makes (llama-quantize)"
        if self.by_mlx:
            return "Use the checkpoint that it was made from, or what `mlx_lm.convert --dequantize` makes of it"
        return (
            "`merge` and `wise` with --dtype bf16 decode it, and write a dense checkpoint, or with --quantise keep one "
            "in its own format (docs/quantised.md: what survives); or use the checkpoint that it was made from"
        )

    def notes_on(self, edited: Collection[str]) -> list[str]:
        """What to say where the config names a quantisation, and tensors are changed."""
        if not self.quantisation or not edited:
            return []
        if self.has_codes:
            return [f"{self.quantisation}; the {len(edited)} tensors that are changed are not quantised, and stay so"]
        return [
            f"{self.quantisation}, but no tensor is quantised; config.json stays so, and loaders that heed it quantise "
            "the weights: take quantization_config out of it where they are not to"
        ]

    def refuse_tied(self, ref: Ref) -> None:
        """Refuse to edit an embedding or head that may be tied: loaders would apply it twice or not at all. Raises
        UnsupportedError."""
        if self.why_tied and self.may_be_end(ref):
            raise UnsupportedError(
                f"{ref.path}: {shown(ref.spec.name)} is an embedding or output head, and may be tied: "
                f"{self.why_tied}; edits of it are supported only where it is known what is tied to what"
            )

    def may_be_end(self, ref: Ref) -> bool:
        """Whether a tensor may be an embedding or head, an end that models tie, by name or by size. When unsure:
        yes."""
        if len(ref.spec.shape) != 2:
            return False
        return may_be_end(ref.spec.name) or ref.spec.shape[0] in self.vocabularies

    def may_transpose(self, ref: Ref) -> bool:
        """Whether a weight of that name could be stored (in, out) in this model, as far as its family is known."""
        return bool(self._transposes or not self.families or _named_transposed(ref.spec.name)) and not self.by_mlx

    def is_transposed(self, ref: Ref, *, claimed: bool) -> bool:
        """Whether a weight is stored (in, out), where its shape does not tell: PEFT goes by the class of the layer,
        which no checkpoint tells. Raises where it has a name of layers that may be, and no model_type tells."""
        named = _named_transposed(ref.spec.name)
        if self.by_mlx:
            return False
        if self._transposes and named:
            return True
        if (named and not self.families & _LINEAR_FAMILIES) or (claimed and not self.families):
            square = "is square, and " if len(set(ref.shape)) == 1 else ""
            raise UnsupportedError(
                f"{ref.path}: {shown(ref.spec.name)} {square}may be stored transposed as GPT-2's layers are; "
                "config.json has no model_type that tells"
            )
        return False

    @property
    def _transposes(self) -> bool:
        return bool(_TRANSPOSED_FAMILIES & self.families)


def may_be_end(name: str) -> bool:
    """Whether a tensor may be an embedding or a head, an end that models tie, by its name."""
    return _may_be_end(name.encode(errors="surrogatepass").translate(_ALIKE))


@functools.lru_cache(4096)
def _may_be_end(raw: bytes) -> bool:
    name = raw.decode(errors="surrogatepass")
    return bool(_ANY_OF_THEM.search(name) and _MAY_BE_TIED.match(name))


def _named_transposed(name: str) -> bool:
    return not _TRANSPOSED_NAMES.isdisjoint(name.split("."))


def read_traits(base: Checkpoint, *, ties_known: bool = False) -> Traits:
    parts = objects(base.config or {})
    types = {part["model_type"] for part in parts if isinstance(part.get("model_type"), str)}
    codes, beside = codes_of(base)
    return Traits(
        families=frozenset({_GGUF} if base.gguf is not None else types),
        quantisation=None if base.kept is not None else _quantisation(base.config or {}),
        codes=codes,
        beside_codes=beside,
        has_codes=bool(codes) or any(ref.spec.dtype not in NOT_CODES for ref in base.tensors.values()),
        vocabularies=tuple(part[key] for part in parts for key in part if _VOCABULARY.search(key)),
        kv_rows=_kv_rows(base.config or {}),
        surely_tied=(base.config or {}).get("tie_word_embeddings") is True,
        why_tied=None if ties_known else _why_tied(base, parts),
        by_mlx=is_by_mlx(base),
    )


def _kv_rows(config: Mapping[str, Any]) -> int | None:
    """num_key_value_heads · head_dim, as far as the config tells. Where one of them is null others stand for it."""
    heads = config.get("num_attention_heads")
    groups = config.get("num_key_value_heads", 0)
    groups, width, hidden = heads if groups is None else groups, config.get("head_dim"), config.get("hidden_size")
    if width is None and type(hidden) is int and type(heads) is int and heads > 0:
        width = hidden // heads
    return groups * width if type(groups) is int and type(width) is int and groups > 0 and width > 0 else None


def _quantisation(config: Mapping[str, Any]) -> str | None:
    for part in objects(config):
        for key in ("quantization_config", "compression_config"):
            if settings := part.get(key):
                method = settings.get("quant_method") if isinstance(settings, dict) else settings
                return f"config.json: quant_method {shown(method)[:80]}"
    return None


def codes_of(base: Checkpoint) -> tuple[Mapping[str, str], frozenset[str]]:
    """Tensors that hold codes, each with one that stands beside it and shows this; and all that stand so."""
    codes: dict[str, str] = {}
    beside = set()
    for name in base.tensors:
        soon = name.endswith(_ENDS) or _STATE in name  # of a million names hardly one is looked at
        if soon and (of := _beside(base, name)) is not None:
            codes.setdefault(of, name)
            beside.add(name)
    return codes, frozenset(beside)


def _beside(base: Checkpoint, name: str) -> str | None:
    """The tensor, there or not, beside whose codes this one stands; None where it stands beside none."""
    module = name.rpartition(".")[0]
    if name.endswith(_OF_MODULE):
        return module if module.endswith("weight") else f"{module}.weight"
    if name.endswith(_SCALE):
        weight = base.tensors.get(f"{module}.weight")
        return None if weight is None or weight.spec.dtype in COMPUTED else weight.spec.name
    if name.endswith(_OF_TENSOR):
        of = name.removesuffix(max((end for end in _OF_TENSOR if name.endswith(end)), key=len))
        blocks = base.tensors.get(f"{of}_blocks")  # MXFP4 of GPT-OSS has no tensor of the parameter's own name
        mine = of in base.tensors or of.endswith("weight") or (blocks and blocks.spec.dtype not in COMPUTED)
        return of if mine else None
    return name.partition(_STATE)[0] if _STATE in name else None


def _why_tied(base: Checkpoint, parts: Sequence[Mapping[str, Any]]) -> str | None:
    config = base.config
    if base.gguf is not None:
        return None if "output.weight" in base.tensors else "there is no output.weight, in whose place it is used"
    if config is None:
        return "there is no config.json that says tie_word_embeddings: false"
    # Loaders heed the flag of the whole model. Where it is not written its default may be true.
    flags = [part["tie_word_embeddings"] for part in parts if "tie_word_embeddings" in part]
    if config.get("tie_word_embeddings") is False and all(flag is False for flag in flags):
        return None
    if config.get("tie_word_embeddings") is True:
        return "config.json says tie_word_embeddings: true, and it is stored twice or its architecture is not known"
    return "config.json does not say tie_word_embeddings: false"
