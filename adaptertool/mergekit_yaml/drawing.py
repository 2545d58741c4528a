"""All tensors of the output: where each comes from, and how inputs are combined.

The tensors that are in no layer come from the first slice where they are embeddings, and else from the last, as in
mergekit; layers are those of the slices, one after the other, numbered anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from adaptertool.architectures.traits import may_be_end
from adaptertool.arguments import settings_for
from adaptertool.codecs import COMPUTED
from adaptertool.errors import MismatchError, UnsupportedError, by, shown
from adaptertool.kinds import FULL
from adaptertool.kinds.full import TUNED
from adaptertool.mergekit_yaml.embeddings import with_rows
from adaptertool.mergekit_yaml.forms import Form
from adaptertool.mergekit_yaml.layers import counts, in_layer, is_first
from adaptertool.mergekit_yaml.opened import Models, Opened
from adaptertool.mergekit_yaml.parameters import Reader, Tensor, form_of, unfit_filters
from adaptertool.mergekit_yaml.records import Config, Model
from adaptertool.mergekit_yaml.slices import (
    Layer,
    Part,
    layers_of,
    names_in,
    of_layer,
    outside,
    parts_of,
    require_same_depths,
)
from adaptertool.mergekit_yaml.vocabulary import Tokens
from adaptertool.methods import METHOD_BY_NAME
from adaptertool.methods.average import MERGEKIT_LINEAR
from adaptertool.methods.nuslerp import COLUMNS, TENSOR
from adaptertool.records import dataclass
from adaptertool.spec.plan import Blend, Edit, Step
from adaptertool.spec.tensors import DTYPE_BITS, Ref, TensorSpec

_WIDTH = {"BF16": 16, "F16": 16, "F32": 32, "F64": 64}


class Drawn(NamedTuple):
    """What a plan is made of."""

    steps: Sequence[Step]
    equal: Sequence[tuple[Ref, Ref]]  # what must hold the same bytes
    notes: Sequence[str]
    layers: Sequence[Layer] | None  # where layers are numbered anew
    has_head: bool  # whether an end that the first model ties is stored apart


def draw(config: Config, models: Models, tokens: Tokens | None = None) -> Drawn:
    """All tensors of the output, in order. Raises InputError and MismatchError for models that do not fit."""
    parts, notes = parts_of(config, models), dict[str, None]()
    drawing = Drawing(form_of(config), config.dtype, [], [], notes, tokens, config.base, [])
    layers = None
    if config.whole:
        (part,) = parts
        stacks = counts(name for one in part.opened for name in one.tensors)
        require_same_depths(part)
        for name in names_in(part):
            place, last = in_layer(name), 0
            if place is not None:
                last = stacks[place.front] - 1
            t = Fraction(0) if place is None else Fraction(place.number, last) if last else Fraction(1)
            drawing.add(part, Tensor(name, [name] * len(part.opened), t))
    else:
        layers = list(layers_of(parts))
        for name in outside(parts[0]):
            if is_first(name):
                drawing.add(parts[0], Tensor(name, [name] * len(parts[0].opened), Fraction(0)))
        for number, layer in enumerate(layers):
            for tensor in of_layer(layer, number):
                drawing.add(layer.part, tensor)
        for name in outside(parts[-1]):
            if not is_first(name):
                drawing.add(parts[-1], Tensor(name, [name] * len(parts[-1].opened), Fraction(0)))
    first = next(iter(models.opened.values()))
    names = {step.spec.name for step in drawing.steps}
    apart = any(name in names for name in first.tensors.keys() - first.stored)
    return Drawn(drawing.steps, drawing.equal, [*notes, *unfit_filters(drawing.asked)], layers, apart)


@dataclass(frozen=True, slots=True)
class Drawing:
    """The steps so far."""

    form: Form
    dtype: str | None
    steps: list[Step]
    equal: list[tuple[Ref, Ref]]
    notes: dict[str, None]
    tokens: Tokens | None
    base: Model | None
    asked: list[tuple[Reader, Tensor]]  # all tensors, with what reads their parameters

    def add(self, part: Part, tensor: Tensor) -> None:
        """One more tensor. Raises MismatchError for shapes that differ."""
        self.asked.append((part.reader, tensor))
        anchor = part.anchor
        refs = [one.tensors[name] for one, name in zip(part.opened, tensor.names, strict=True)]
        dtypes = refs
        if self.tokens is not None and _of_tokens(part.opened, tensor, refs):
            refs = self._with_rows(part, tensor, refs)
        base = refs[anchor]
        for ref, opened in zip(refs, part.opened, strict=True):
            if ref.shape != base.shape:
                raise MismatchError(_other_shape(part, tensor, (base, ref), opened))
        if any(ref.spec.dtype not in COMPUTED for ref in refs):
            self._fixed(part, tensor, base, refs)
            return
        spec = _spec(tensor.name, base, self.dtype or _widest(dtypes))
        changes = [
            _changes(opened, name, ref, is_base=ref == base)
            for opened, name, ref in zip(part.opened, tensor.names, refs, strict=True)
        ]
        if self.form.ours is None:
            self._passed(part, tensor, base, spec, changes[0])
            return
        found = part.reader.blend(tensor)
        others = [number for number in range(len(refs)) if number != part.base]
        edits = [edit for number in others if number not in found.without for edit in changes[number]]
        method, blend = METHOD_BY_NAME[found.blend.method], found.blend
        numbers = tuple(part.opened[number].number for number in others)
        blend = blend._replace(sources=numbers, settings={**blend.settings, **_of_shape(blend, base)})
        if not edits and method.moves is not None and method.moves(blend.weights, blend.settings):
            edits = [_itself(base, numbers[0])]
        self.steps.append(Step(spec, 0, base, tuple(edits), blend if edits else None))

    def _with_rows(self, part: Part, tensor: Tensor, refs: Sequence[Ref]) -> list[Ref]:
        """The same with a row for each token of the output. Raises UnsupportedError where adapters change them."""
        assert self.tokens is not None
        new = with_rows(self.tokens, [one.model for one in part.opened], refs, self.base)
        for opened, name in zip(part.opened, tensor.names, strict=True):
            if new != list(refs) and opened.edits.get(name):
                raise UnsupportedError(
                    f"{opened.model}: the adapter changes {shown(name)}, whose tokens are others in the output: merge "
                    "it first, and name what that makes"
                )
        return new

    def _passed(self, part: Part, tensor: Tensor, base: Ref, spec: TensorSpec, edits: Sequence[Edit]) -> None:
        """As it is, or times a number."""
        scale = part.reader.scale(tensor)
        if scale is None or scale == 1:
            self.steps.append(Step(spec, 0, base, tuple(edits)))
            return
        number = part.opened[0].number
        whole = tuple(edits) or (_itself(base, number),)
        self.steps.append(Step(spec, 0, base, whole, scaled(scale, number)))

    def _fixed(self, part: Part, tensor: Tensor, base: Ref, refs: Sequence[Ref]) -> None:
        """What no arithmetic is done on: it must be the same in all."""
        if any(ref.spec.dtype != base.spec.dtype for ref in refs):
            raise MismatchError(
                f"{part.slice.at}: {shown(tensor.name)} is {base.spec} in one model, and not in another"
            )
        self.equal.extend((base, ref) for ref in refs if ref != base)
        self.steps.append(Step(base.spec._replace(name=tensor.name), 0, base))
        self.notes[f"tensors of {base.spec.dtype} must be the same in all models, and are copied"] = None


def scaled(scale: float, number: int) -> Blend:
    """A tensor times a number, as a sum of one that is not divided by its weight."""
    settings = settings_for(MERGEKIT_LINEAR, {"normalize": False})
    return Blend(MERGEKIT_LINEAR.name, (scale,), settings, (number,))


def _changes(opened: Opened, name: str, ref: Ref, *, is_base: bool) -> list[Edit]:
    """What makes a source's tensor of the base's: it takes its place, and its adapter's edits follow."""
    edits = list(opened.edits.get(name, ()))
    if is_base:
        return edits
    return [Edit(FULL.name, opened.number, name, {TUNED: ref}, 1.0, 1.0), *edits]


def _of_shape(blend: Blend, base: Ref) -> Mapping[str, int]:
    """The settings that are others for such a tensor: what has one row is one vector, also by columns. Raises
    UnsupportedError for columns of what is no matrix."""
    if blend.settings.get("vectors") != COLUMNS or len(base.shape) == 2:
        return {}
    if len(base.shape) > 2:
        raise UnsupportedError(f"{base.path}: {shown(base.spec.name)} is no matrix: leave out nuslerp_row_wise")
    return {"vectors": TENSOR}


def _of_tokens(models: Sequence[Opened], tensor: Tensor, refs: Sequence[Ref]) -> bool:
    """Whether a tensor has a row for each token: an embedding or a head."""
    return in_layer(tensor.name) is None and all(
        len(ref.shape) > 0 and ref.shape[0] == one.config.get("vocab_size") and may_be_end(ref.spec.name)
        for one, ref in zip(models, refs, strict=True)
    )


def _itself(base: Ref, number: int) -> Edit:
    """An edit that changes nothing, for a method that moves what nothing changes."""
    return Edit(FULL.name, number, base.spec.name, {TUNED: base}, 1.0, 1.0)


def _spec(name: str, ref: Ref, dtype: str) -> TensorSpec:
    return TensorSpec(name, dtype, ref.shape, ref.spec.numel * DTYPE_BITS[dtype] // 8)


def _widest(refs: Sequence[Ref]) -> str:
    """The dtype that holds those of all, as torch has it: of bf16 and f16 it is f32. Raises UnsupportedError for others
    that differ."""
    found = {ref.spec.dtype for ref in refs}
    if len(found) == 1:
        return found.pop()
    if not found <= _WIDTH.keys():
        raise UnsupportedError(
            f"{refs[0].path}: {shown(refs[0].spec.name)} is stored as {' and '.join(sorted(found))}: say out_dtype"
        )
    widest = max(found, key=lambda dtype: (_WIDTH[dtype], dtype))
    return "F32" if found == {"BF16", "F16"} else widest


def _other_shape(part: Part, tensor: Tensor, refs: tuple[Ref, Ref], opened: Opened) -> str:
    ours, theirs = refs
    hint = ""
    if is_first(tensor.name) or in_layer(tensor.name) is None:
        hint = ": where these are other tokens, say tokenizer_source: union (or base)"
    return (
        f"{part.slice.at}: {shown(tensor.name)} is {by(theirs.shape)} in {shown(opened.model)}, and {by(ours.shape)} "
        f"in {shown(part.opened[part.anchor].model)}{hint}"
    )
