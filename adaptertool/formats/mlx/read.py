"""mlx-lm's adapters: `adapter_config.json` and `adapters.safetensors`.

x·lora_a·lora_b·scale is added to what a layer makes of x, so the factors are PEFT's transposed: lora_a (in, r), lora_b
(r, out), of an embedding (vocabulary, r) and (r, d). Only those of experts lie as PEFT's do, in stacks: (E, r, in) and
(E, out, r). As mlx-lm 0.32.2 writes them, against which this is checked in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn

from adaptertool.codecs import COMPUTED
from adaptertool.errors import InputError, MismatchError, UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import exists
from adaptertool.formats.beside import Beside, read_beside
from adaptertool.formats.format import BaseHas
from adaptertool.formats.mlx.config import MlxConfig, parse_config
from adaptertool.formats.mlx.keys import CONFIG, FILES, FORMAT, TYPE, WEIGHTS, is_looked_up, of_expert
from adaptertool.kinds import FULL, LORA
from adaptertool.kinds.dora import MAGNITUDE
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.lora import A, B
from adaptertool.kinds.made import turned
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref

Roles = Mapping[str, Ref]


class _Change(NamedTuple):
    """A module, and the tensors of the file that it is made of, by the names that its factors have."""

    module: Module
    stored: Sequence[Ref]


def read_adapter(
    files: Parsed,
    base_has: BaseHas,
    *,
    base: Checkpoint | None = None,
    leave_out: Sequence[str] | None = (),
    expert_layout: str | None = None,  # noqa: ARG001
) -> Adapter:
    """The adapter that config and header describe, with what lies beside them; no factor is read. Raises InputError.

    The arguments are those of `formats.format.Read`; factors of experts are stacked, so their layout is no question.
    """
    path, fields = files.path, files.json(CONFIG)
    config = parse_config(path / CONFIG, fields)
    if not exists(path / WEIGHTS):
        raise InputError(f"{path} has no {WEIGHTS}")
    header = files.header(WEIGHTS)
    for ref in header.tensors.values():
        _require_numbers(ref)
    changes = list(_whole(header.tensors) if config.spelling is None else _factored(config, header.tensors))
    if not changes:
        raise InputError(f"{header.path} holds no tensors")
    modules = [change.module for change in changes]
    beside = Beside() if leave_out is None else read_beside(files, FILES, modules, base, base_has, leave_out)
    model = fields.get("model")
    return Adapter(
        path,
        {path / CONFIG: files.stamp(CONFIG), header.path: header.stamp, **beside.files},
        (*modules, *beside.modules),
        trained_on=model if isinstance(model, str) else "",
        ties_ends=True,  # of a tied model the head is the embedding, with whatever was trained on it
        left=beside.left,
        notes=tuple(beside.notes),
        format=FORMAT,
        fields=fields,
        tensors={ref.spec.name: ref for change in changes for ref in change.stored},
        metadata=header.metadata,
    )


def _require_numbers(ref: Ref) -> None:
    where = f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}"
    if ref.spec.dtype not in COMPUTED:
        raise UnsupportedError(f"{where}; adapters are {', '.join(COMPUTED)}")
    if not ref.spec.numel:
        raise InputError(f"{where}; it has no elements")


def _whole(tensors: Mapping[str, Ref]) -> Iterator[_Change]:
    """Tensors of the model itself, in place of the base's. Raises InputError."""
    for key, ref in tensors.items():
        module, _, parameter = key.rpartition(".")
        if parameter in ("lora_a", "lora_b"):
            raise InputError(f"{ref.path}: {shown(key)} is a factor, and {TYPE} in {CONFIG} says full")
        stack = len(ref.shape) == 3 and of_expert(module, 0) is not None
        for expert in range(ref.shape[0] if stack else 1):
            name, own = (of_expert(module, expert) or module, _matrix(ref, expert)) if stack else (module, ref)
            name = f"{name}.{parameter}" if name else parameter
            own = own.renamed(name)
            yield _Change(Module(name, name, FULL.name, {TUNED: own}, 1.0), [own])


def _factored(config: MlxConfig, tensors: Mapping[str, Ref]) -> Iterator[_Change]:
    """The low-rank changes, in the order of the file. Raises InputError."""
    assert config.spelling is not None
    found: dict[str, dict[str, Ref]] = {}
    for key, ref in tensors.items():
        name, _, ending = key.rpartition(".")
        role = config.spelling.keys.get(f".{ending}")
        if role is None:
            known = ", ".join(config.spelling.keys)
            raise UnsupportedError(
                f"{ref.path}: {shown(key)}: this tensor is not known; of {config.spelling.tag} mlx-lm has {known}"
            )
        found.setdefault(name, {})[role] = ref
    for name, roles in found.items():
        if missing := [end for end, role in config.spelling.keys.items() if role not in roles]:
            path = next(iter(roles.values())).path
            raise InputError(f"{path}: module {shown(name)} has no {', '.join(end[1:] for end in missing)}")
        if len(roles[A].shape) == len(roles[B].shape) == 3:
            yield from _of_experts(config, name, roles)
        else:
            yield _of_layer(config, name, roles)


def _of_layer(config: MlxConfig, name: str, roles: Roles) -> _Change:
    """The change of a linear layer, or of an embedding, whose weight (vocabulary, d) is what lookups see of it.

    LoRA's of an embedding is as PEFT has it, the transpose of a layer's. DoRA's has one magnitude for each row of the
    vocabulary, so it is as that of a layer with as many outputs.
    """
    a, b = roles[A], roles[B]
    if len(a.shape) != 2 or len(b.shape) != 2 or not a.shape[1] == b.shape[0] == config.rank:
        _refuse_shapes(config, a, b, f"(n, {config.rank}) and ({config.rank}, n)")
    turned_by, more = {A: turned(a), B: turned(b)}, {} if MAGNITUDE not in roles else {MAGNITUDE: roles[MAGNITUDE]}
    module = Module(name, f"{name}.weight", config.kind.name, turned_by | more, config.scale, config.rank, layer=name)
    if not is_looked_up(name):
        return _Change(module, list(roles.values()))
    if more:
        return _Change(module._replace(factors={A: b, B: a} | more, transposed=False), list(roles.values()))
    names = {role: f"{name}.lora_embedding_{role[-1]}" for role in (A, B)}  # such names tell what is looked up
    factors = {role: ref.renamed(names[role]) for role, ref in turned_by.items()}
    return _Change(
        module._replace(factors=factors, transposed=True), [roles[role].renamed(names[role]) for role in (A, B)]
    )


def _of_experts(config: MlxConfig, name: str, roles: Roles) -> Iterator[_Change]:
    """The change of every expert of a stack, under the name that it has by itself. Raises InputError."""
    a, b = roles[A], roles[B]
    if not a.shape[1] == b.shape[2] == config.rank or a.shape[0] != b.shape[0]:
        _refuse_shapes(config, a, b, f"(experts, {config.rank}, in) and (experts, out, {config.rank})")
    if of_expert(name, 0) is None or not config.kind.is_product:
        raise UnsupportedError(
            f"{a.path}: {shown(name)} has {shown(a.spec.name)} {a.spec}: {config.kind.name} of such a stack is not "
            "known; LoRA of experts is"
        )
    for expert in range(a.shape[0]):
        own = of_expert(name, expert) or ""
        factors = {
            role: _matrix(ref, expert).renamed(f"{own}.{ref.spec.name.rpartition('.')[2]}")
            for role, ref in roles.items()
        }
        module = Module(own, f"{own}.weight", LORA.name, factors, config.scale, config.rank, layer=own)
        yield _Change(module, list(factors.values()))


def _matrix(stack: Ref, expert: int) -> Ref:
    """One matrix of a stack (E, n, m)."""
    one = stack.rows(expert, expert + 1)
    return Ref(one.path, one.offset, one.spec._replace(shape=stack.shape[1:]))


def _refuse_shapes(config: MlxConfig, a: Ref, b: Ref, fitting: str) -> NoReturn:
    """Raises MismatchError."""
    raise MismatchError(
        f"{a.path}: {shown(a.spec.name)} is {a.spec} and {shown(b.spec.name)} {b.spec}; with rank {config.rank} of "
        f"{config.path.name} they must be {fitting}"
    )
