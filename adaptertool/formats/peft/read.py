"""PEFT's adapters: `adapter_config.json` and `adapter_model.safetensors`.

Keys are `base_model.model.<module>.<suffix>`. The suffixes read here stand in _FACTORS; `base_layer.weight` and
`base_layer.bias` of a targeted layer, and any plain tensor name (modules_to_save, biases), replace the base's
tensor. All others are refused by name. As PEFT 0.21.2 writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adaptertool.codecs import COMPUTED
from adaptertool.codecs.tensors import INTEGERS
from adaptertool.errors import InputError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.hints import found_below, from_pickle, not_there
from adaptertool.files.hub import to_complete
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import exists, is_folder, names_in
from adaptertool.formats.beside import Beside, read_beside
from adaptertool.formats.format import BaseHas
from adaptertool.formats.mlx.keys import recognise as is_mlx
from adaptertool.formats.peft import tinker
from adaptertool.formats.peft.config import LoraConfig, parse_config
from adaptertool.formats.peft.fields import FORMAT
from adaptertool.formats.peft.keys import CONFIG, FILES, PREFIX, WEIGHTS, plain_keys
from adaptertool.formats.peft.modules import low_rank, token_rows
from adaptertool.formats.peft.parameters import packing_notes
from adaptertool.formats.peft.saved import Saved
from adaptertool.formats.peft.spelled import apart, spelled
from adaptertool.formats.peft.variants import steering
from adaptertool.kinds import FULL
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.kasa import DIAGONAL
from adaptertool.kinds.kasa import NOTE as OF_KASA
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.offset import BIAS
from adaptertool.kinds.spelling import Spelling
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

# Replacement rows, for all their name: beside factors, and where they are all that the adapter has
_TOKENS, _TOKENS_ALONE = ".token_adapter.trainable_tokens_delta", ".trainable_tokens_delta"
_MARK = ".lora_"
_FACTORS = {  # what follows the name of a module, from the mark on
    ".lora_A.weight": A,
    ".lora_B.weight": B,
    ".lora_embedding_A": A,
    ".lora_embedding_B": B,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,  # PEFT before 0.12
    ".lora_B.bias": BIAS,
    ".lora_diag": DIAGONAL,
}

# Up to this version lora_A of fused experts belonged to their first dimension; of such as transformers marks
# (is_transposed) up to the second one. Later it still does so under transformers 5, but not under 4, which has no mark.
_LAST_ON_FIRST = (0, 19, 0)
_LAST_MARKED_ON_FIRST = (0, 18, 1)


_OF_ADAPTERHUB = ("adapter.safetensors", "pytorch_adapter.bin")  # which has a config of the same name

# Fields that make a merge wrong, and leave it clear what B·A is.
_CLEAR = {"init_lora_weights": True, "alora_invocation_tokens": None, "layer_replication": None}


def recognise(path: Path) -> bool:
    """Whether a config is there, and not one of MLX's, which has the same name."""
    return exists(path / CONFIG) and not is_mlx(path)


def read_adapter(
    files: Parsed,
    base_has: BaseHas,
    *,
    base: Checkpoint | None = None,
    leave_out: Sequence[str] | None = (),
    expert_layout: str | None = None,
    instead: Mapping[str, Any] | None = None,
) -> Adapter:
    """The adapter that config and header describe, with what lies beside them; no factor is read. Raises InputError.

    The arguments are those of `formats.format.Read`; instead: fields that count in the place of the config's.
    """
    _check_present(path := files.path)
    fields = files.json(CONFIG)
    config = parse_config(path / CONFIG, {**fields, **(instead or {})}, expert_layout)
    header = files.header(WEIGHTS)
    factors: dict[str, dict[str, Ref]] = {}
    saved, tokens = Saved(header.path), dict[str, Ref]()
    own, shared = apart(config, header.tensors)
    own, stacked = tinker.apart(header.path, own, base_has) if config.spelled is None else (own, [])
    tensors, read_so = plain_keys(header.path, own)
    in_common = [ref for one in shared.values() for ref in one.stored]
    for ref in (*tensors.values(), *in_common):
        if ref.spec.dtype not in COMPUTED or ref.spec.shape == (0,):  # here, since a call for each takes long
            _require_numbers(header.path, ref, config)
    without = steering(fields, tensors) if config.spelled is None else {}
    rest = {key: ref for key, ref in tensors.items() if key not in without} if without else tensors
    for key, ref in (rest if config.spelled is not None else _take_usual(rest, factors)).items():
        _file(config, header.path, key.removeprefix(PREFIX), ref, factors, saved, tokens)
    if config.spelled is None:
        embeddings = {key.removeprefix(PREFIX).rpartition(".")[0] for key in tensors if ".lora_embedding_" in key}
        modules = low_rank(config, header.path, factors, embeddings, base_has)
    else:
        modules = spelled(config, header.path, factors, shared, base_has)
    notes = [*_of_kind(header.path, config), *packing_notes(config, modules)]
    ignored = saved.without_copies()
    if saved.tensors:
        saved.refuse_beside({module.target: config.saves(module.layer) for module in modules})
    modules += [Module(name, name, FULL.name, {TUNED: ref}, 1.0) for name, ref in saved.tensors.items()]
    modules += token_rows(config, header.path, tokens)
    if not modules:
        raise InputError(f"{header.path} holds no tensors")
    beside = Beside() if leave_out is None else read_beside(files, FILES, modules, base, base_has, leave_out)
    return Adapter(
        path,
        {path / CONFIG: files.stamp(CONFIG), header.path: header.stamp, **beside.files},
        (*modules, *beside.modules),
        config.task,
        config.base,
        experts_on_first=None if config.version is None else config.version <= _LAST_ON_FIRST,
        marked_on_first=True if config.version is not None and config.version <= _LAST_MARKED_ON_FIRST else None,
        ties_ends=config.ties_ends,
        claims_transposed=config.fan_in_fan_out,
        ignored=frozenset({*ignored, *without}),
        left=beside.left,
        notes=(*stacked, *read_so, *notes, *_left_out(header.path, ignored, without), *beside.notes),
        format=FORMAT,
        fields=fields,
        tensors={**tensors, **{ref.spec.name: ref for ref in in_common}},
        metadata=header.metadata,
    )


def _of_kind(file: Path, config: LoraConfig) -> Iterator[str]:
    """What to say of every adapter of its kind."""
    if config.spelled is not None and config.spelled[1].note:
        yield f"{file}: {config.spelled[1].note}"
    if config.truncated:
        yield f"{file}: {OF_KASA}"


def _left_out(file: Path, copies: Mapping[str, str], steering: Mapping[str, str]) -> Iterator[str]:
    """What to say of the tensors that play no part."""
    for key, what in copies.items():
        yield f"{file}: {shown(key)} is not needed: it is {what}"
    for what, count in Counter(steering.values()).items():
        yield f"{file}: {count:,} tensors that {what} used in training play no part in the weights"


def read_as_far_as_clear(files: Parsed, base_has: BaseHas, expert_layout: str | None) -> Adapter:
    """The adapter without what lies beside it, also where only its base was changed. Raises InputError."""
    return read_adapter(files, base_has, leave_out=None, expert_layout=expert_layout, instead=_CLEAR)


def _check_present(path: Path) -> None:
    if not exists(path):
        raise InputError(not_there(path))
    if not is_folder(path):
        hint = f"; give the directory that it stands in, {path.parent}" if path.name == CONFIG else ""
        raise InputError(
            f"{path} is no adapter: that is a directory with {CONFIG} and {WEIGHTS}, or a .safetensors or GGUF file"
            f"{hint}"
        )
    if not recognise(path):
        hint = found_below(path, (CONFIG,)) or to_complete(path)
        if exists(path / WEIGHTS):
            hint = f", which tells its scales, beside {WEIGHTS}: copy it there too"
        elif not names_in(path, "*"):
            hint = "; the directory is empty"
        elif names_in(path, "*.safetensors"):
            hint = "; a fine-tuned checkpoint is mixed with its base by `wise`, and made an adapter by `extract`"
        raise InputError(f"{path} is not an adapter: it has no {CONFIG}{hint}")
    if not exists(path / WEIGHTS):
        if any(exists(path / name) for name in _OF_ADAPTERHUB):
            raise UnsupportedError(
                f"{path} is an adapter of the library adapters (AdapterHub), and is not read: where it is LoRA or "
                "(IA)³ merge it there (merge_adapter) and save the model; `adaptertool extract` makes an adapter of "
                "the difference"
            )
        pickle, hint = path / "adapter_model.bin", to_complete(path)
        if exists(pickle):
            hint = (
                f", only {pickle.name}, a pickle, and pickles are never opened. This makes a safetensors file of it:\n"
            )
            hint += f"  {from_pickle(pickle, path / WEIGHTS)}"
        raise InputError(f"{path} has no {WEIGHTS}{hint}")


def _require_numbers(file: Path, ref: Ref, config: LoraConfig) -> None:
    spelling = None if config.spelled is None else config.spelled[1]
    integer = spelling is not None and ref.spec.dtype in INTEGERS and spelling.may_be_integer(ref.spec.name)
    if ref.spec.dtype not in COMPUTED and not integer:
        raise UnsupportedError(f"{file}: {shown(ref.spec.name)} is {ref.spec.dtype}; factors are {', '.join(COMPUTED)}")
    if ref.shape == (0,):
        raise InputError(
            f"{file}: {shown(ref.spec.name)} has no elements, as where ZeRO-3 or FSDP saved without gathering: save it "
            "again with stage3_gather_16bit_weights_on_model_save, or take it out of the trainer's checkpoint by "
            "zero_to_fp32.py"
        )


def _take_usual(tensors: Mapping[str, Ref], factors: dict[str, dict[str, Ref]]) -> dict[str, Ref]:
    """File the factors of modules by their names, and hand back what is none, or is there twice. All by themselves, for
    there may be hundreds of thousands."""
    rest, begin = dict[str, Ref](), len(PREFIX)
    for key, ref in tensors.items():
        mark = key.rfind(_MARK)
        role = _FACTORS.get(key[mark:])
        begins = mark >= begin and key.startswith(PREFIX)
        if role is None or not begins or role in (own := factors.setdefault(key[begin:mark], {})):
            rest[key] = ref
        else:
            own[role] = ref
    return rest


def _file(
    config: LoraConfig,
    file: Path,
    key: str,
    ref: Ref,
    factors: dict[str, dict[str, Ref]],
    saved: Saved,
    tokens: dict[str, Ref],
) -> None:
    """Put one tensor where it belongs: the factor of a module, token rows, or a saved tensor."""
    if config.spelled is None:
        mark = key.rfind(_MARK)
        name, role = key[:mark], _FACTORS.get(key[mark:])
    else:
        name, role = _spelled_role(config.spelled[1], file, key, ref)
    if role:
        roles = factors.setdefault(name, {})
        if role in roles:
            raise InputError(f"{file} holds two tensors for {role} of {shown(name)}")
        roles[role] = ref
    elif key.endswith(ending := _TOKENS_ALONE if config.only_tokens else _TOKENS):
        tokens[key.removesuffix(ending)] = ref
    else:
        saved.add(config.plain(key), ref)


def _spelled_role(spelling: Spelling, file: Path, key: str, ref: Ref) -> tuple[str, str | None]:
    """The module that a key names a factor of, and its role; None where it names none."""
    further = {} if spelling.variant is None else spelling.variant[0]
    for ending, role in (*spelling.keys.items(), *spelling.embedding.items(), *further.items()):
        if key.endswith(ending):
            return key.removesuffix(ending), role
    for ending, why in spelling.refused.items():
        if ending.startswith(".") and key.endswith(ending):
            raise UnsupportedError(f"{file}: {shown(ref.spec.name)}: {why}")
    return key, None
