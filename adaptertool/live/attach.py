"""Adapters beside the weights of a model in memory, as at inference: hooks add to what a layer gives."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from adaptertool.arguments import Number, PathLike
from adaptertool.arithmetic.chain import Chain
from adaptertool.arithmetic.region import choose
from adaptertool.arithmetic.tiling import matrix
from adaptertool.errors import shown
from adaptertool.files.reader import Inputs
from adaptertool.kinds import BY_NAME, NORM, kind_of
from adaptertool.kinds.lora import A
from adaptertool.live.bypass import forget_compiled, parents_in, readers_in
from adaptertool.live.change import arithmetic, as_torch, make_edit, norm_of, plain_arithmetic
from adaptertool.live.memory import Slot
from adaptertool.live.originals import Copies
from adaptertool.live.session import Found, Session, resolve_live
from adaptertool.numerics.ops import FLOATS
from adaptertool.planning.sources import COMPOSITIONS, Reading, check_compose
from adaptertool.records import dataclass
from adaptertool.spec.plan import Edit, Step

_Lower = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (x, A) -> A·x, laid out like the output


@dataclass(frozen=True, slots=True)
class _Layer:
    """How a module uses its weight."""

    lower: _Lower
    axis: int  # of the output: that of its channels
    transposed: bool  # the weight is stored (in, out)


@dataclass(frozen=True, slots=True)
class _Part:
    """An edit, ready to act on outputs, and on which channels of input and output it acts."""

    edit: Edit
    factors: Mapping[str, torch.Tensor]
    inputs: Any
    outputs: Any


@contextlib.contextmanager
def attaching(
    model: nn.Module,
    adapter: PathLike | Sequence[PathLike],
    weights: Sequence[Number] | None,
    reading: Reading,
    compose: str,
    tell: Callable[[str], None],
) -> Iterator[None]:
    """See `adaptertool.attached`. `tell` is given what a user should know."""
    check_compose(compose)
    mixed = compose == COMPOSITIONS[1]
    found = resolve_live(model, adapter, weights, reading, mixed=mixed)
    hooked, placed = _shared_out(found, readers_in(model))
    for note in (*found.notes, *_merged_after_all(placed)):
        tell(note)
    if hooked and forget_compiled():
        tell("what torch.compile has made in this process is dropped, and is made anew: it would pass the adapter by")
    unmet: set[str] = set()
    with contextlib.ExitStack() as stack:
        stack.callback(forget_compiled)  # else it might keep the adapter
        inputs = stack.enter_context(Inputs(found.files))
        apart = [end for end in found.apart if {end, found.held.subject.ends[end]} & placed.keys()]
        session = Session(found.held, placed, apart, Copies(), inputs)
        stack.callback(session.take_back)
        session.take(hooked)
        session.put(1.0)
        for name, edits in hooked.items():
            slot, ref = found.held.slots[name], found.held.subject.tensors[name]
            parts = _parts(slot, Step(ref.spec, 0, ref, tuple(edits)), inputs)
            stack.callback(_hook(slot.module, parts, functools.partial(unmet.discard, name)).remove)
            unmet.add(name)
        runs: list[None] = []
        stack.callback(model.register_forward_pre_hook(lambda *_: runs.append(None)).remove)
        layers = {name: found.held.slots[name].module for name in hooked}
        told = stack.enter_context(_watching(model, layers, unmet, tell))
        yield
    if runs and (left := unmet - told):
        tell(
            f"the adapter played no part in {len(left)} of {len(hooked)} layers, which the model did not call: "
            f"{shown(min(left))}, ..."
        )


@contextlib.contextmanager
def _watching(
    model: nn.Module, layers: Mapping[str, nn.Module], unmet: Collection[str], tell: Callable[[str], None]
) -> Iterator[set[str]]:
    """Tells, after the first run of the model, of layers that were not called by a module that ran and holds them: it
    uses their weights in some other way. Others, of experts above all, may be called later. Gives those it told of."""
    holds = parents_in(model)
    parents = {name: holds[layer] for name, layer in layers.items() if layer in holds}
    ran, told = set[nn.Module](), set[str]()

    def look(*_: Any) -> None:
        for handle in handles:
            handle.remove()
        if passed := sorted(name for name in unmet if parents.get(name) in ran):
            told.update(passed)
            tell(
                f"the adapter does nothing in {len(passed)} of {len(layers)} layers: the model ran what holds "
                f"{shown(passed[0])}, and did not call it; adaptertool.applied changes the weight itself"
            )

    handles = [parent.register_forward_hook(lambda module, *_: ran.add(module)) for parent in set(parents.values())]
    handles.append(model.register_forward_hook(look))
    try:
        yield told
    finally:
        for handle in handles:
            handle.remove()


def _shared_out(
    found: Found, is_read: Callable[[nn.Module], bool]
) -> tuple[dict[str, list[Edit]], dict[str, list[Edit]]]:
    """(edits that hooks make, edits that are made in place), by tensor. Ends that stay tied have both the same."""
    both = {name: [edit for edit in edits if edit.weight] for name, edits in found.edits.items()}
    both = {name: edits for name, edits in both.items() if edits}
    tied = {end: source for end, source in found.held.subject.ends.items() if end not in found.apart}
    together = {source: [end for end, of in tied.items() if of == source] for source in tied.values()}
    hooked: dict[str, list[Edit]] = {}
    for name, edits in both.items():
        ends = (name, *together.get(name, ()))
        slots = [found.held.slots[end] for end in ends]
        if all(_acts_on_output(slot, edits) and not is_read(slot.module) for slot in slots):
            hooked |= dict.fromkeys(ends, edits)
    return hooked, {name: edits for name, edits in both.items() if name not in hooked}


def _acts_on_output(slot: Slot, edits: Sequence[Edit]) -> bool:
    layer = _layer(slot.module) if slot.key == "weight" else None
    return layer is not None and all(
        kind_of(edit).pair
        and edit.transposed == layer.transposed
        and (edit.view is None or isinstance(slot.module, nn.Linear) or layer.transposed)
        for edit in edits
    )


def _merged_after_all(placed: Mapping[str, Sequence[Edit]]) -> list[str]:
    names = [name for name, edits in placed.items() if any(kind_of(edit).pair for edit in edits)]
    if not names:
        return []
    return [f"{len(names)} weights are merged in memory, since no layer's output shows them alone: {shown(names[0])}"]


def _layer(module: Any) -> _Layer | None:
    """How a module multiplies with its weight; None where that is not known."""
    kind: Any = type(module)
    forward = kind.forward
    if forward is nn.Linear.forward:
        return _Layer(nn.functional.linear, -1, transposed=False)
    if any(base.__name__ == "Conv1D" and base.forward is forward for base in kind.__mro__[:-1]):  # of transformers
        return _Layer(nn.functional.linear, -1, transposed=True)
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        if forward is nn.Embedding.forward:
            return _Layer(lambda ids, a: nn.functional.embedding(ids, a.T), -1, transposed=True)
        if kind.__name__.endswith("ScaledWordEmbedding"):  # of transformers: each row times a constant
            scale = torch.as_tensor(module.embed_scale).to(module.weight)
            return _Layer(lambda ids, a: nn.functional.embedding(ids, a.T) * scale, -1, transposed=True)
    if forward in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward) and module.groups == 1:
        shape = module.weight.shape[1:]
        return _Layer(lambda x, a: module._conv_forward(x, a.view(-1, *shape), None), -len(shape), transposed=False)
    return None


def _parts(slot: Slot, step: Step, inputs: Inputs) -> list[_Part]:
    """The factors of the edits on the device of the weight; of DoRA the norms too, of what the edits before made."""
    tensor, chain = slot.tensor.detach(), Chain(inputs, step)
    rows, columns = matrix(step)
    wide = torch.promote_types(tensor.dtype, torch.float32)
    parts = []
    with plain_arithmetic(tensor):
        base = now = tensor.reshape(rows, columns)
        for number, edit in enumerate(step.edits):
            kind, chosen = kind_of(edit), choose(edit, 0, rows)
            assert chosen is not None
            stored = chain.factors(number, edit, chosen.places)
            factors = {role: as_torch(factor, tensor.device, wide) for role, factor in stored.items()}
            if kind.norms is not None:
                some = (base if edit.on_base else now)[chosen.index, chosen.columns]
                norm = norm_of(kind, some.T if edit.transposed else some, stored, edit.scale)
                factors[NORM] = norm.to(wide)
            if any(kind_of(later).norms for later in step.edits[number + 1 :]):
                now = now.to(arithmetic(tensor), copy=now is base)
                make_edit(now, 0, chain, number, edit)
            ends = (chosen.columns, chosen.index)  # of a weight stored (out, in)
            parts.append(_Part(edit, factors, *(reversed(ends) if edit.transposed else ends)))
    return parts


def _hook(module: nn.Module, parts: Sequence[_Part], met: Callable[[], None]) -> Any:
    layer = _layer(module)
    assert layer is not None

    def act(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor) -> torch.Tensor:
        met()
        x = given[0] if given else named["input"]
        with torch.autocast(output.device.type, enabled=False):
            return _with_parts(layer, module, parts, x, output)

    return module.register_forward_hook(act, with_kwargs=True)


def _with_parts(
    layer: _Layer, module: Any, parts: Sequence[_Part], x: torch.Tensor, output: torch.Tensor
) -> torch.Tensor:
    """The output W'·x + b for W·x + b, rounded once.

    An edit acts on each column of W alone, given its norms: W' = d·(W + s·B·A). So W'·x is what its kind makes of the
    one column W·x, with A·x in the place of A; and so on through a chain of edits.
    """
    first = output.movedim(layer.axis, 0)
    wide = torch.promote_types(output.dtype, torch.float32)
    rows = first.reshape(len(first), -1).to(wide, copy=True)
    x = x.to(wide) if x.is_floating_point() else x
    bias = getattr(module, "bias", None)
    bias = None if bias is None else bias.to(wide)[:, None]
    for part in parts:
        kind = BY_NAME[part.edit.kind]
        factors = {role: factor.to(wide) for role, factor in part.factors.items()}
        lowered = layer.lower(x[..., part.inputs], factors[A]).movedim(layer.axis, 0)
        factors[A] = lowered.reshape(len(lowered), -1)
        some = rows[part.outputs]
        offset = bias[part.outputs] if bias is not None and kind.norms is not None else None
        if offset is not None:
            some -= offset
        kind.apply(FLOATS, some, factors, part.edit.scale, part.edit.weight)
        if offset is not None:
            some += offset
        if isinstance(part.outputs, list):  # else `some` shares its memory with `rows`
            rows[part.outputs] = some
    return rows.view(first.shape).movedim(0, layer.axis).to(output.dtype)
