"""Where a module's change acts: on a whole tensor, a part of one, or several tensors that were one in memory.

A change of a weight (out, in) is cut by output rows where the weight is joined from several tensors or is a part of
one. Fused experts are a stack of weights (resolution/experts.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from adaptertool.architectures.changed import changed
from adaptertool.architectures.conversion import ExpertLayout, Part, Piece, Pieces
from adaptertool.errors import MismatchError, UnsupportedError, by, shown
from adaptertool.kinds import kind_of
from adaptertool.kinds.lora import A, B
from adaptertool.resolution.divided import as_transposed, by_rows, in_halves, require_shapes
from adaptertool.resolution.experts import Stack, in_expert, is_on_first, of_expert, require_stack
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.tensors import Ref, TensorSpec, View

Found = Sequence[tuple[Module, Pieces]]

_WHOLE = [*Piece("")[1:]]  # of a piece that is all of a tensor, as it is


class Placer:
    """Places the modules of one adapter. Raises MismatchError where shapes do not add up."""

    def __init__(
        self,
        tensors: Mapping[str, Ref],
        layout: ExpertLayout | None,
        kv_rows: int | None,
        adapter: Adapter,
        found: Found,
    ) -> None:
        self._tensors, self._layout, self._kv_rows, self._adapter = tensors, layout, kv_rows, adapter
        self._found = found

    @functools.cached_property
    def _decided(self) -> Mapping[str, bool]:
        """Whether lora_A belongs to the first dimension of experts, by the names of modules: PEFT decides for all
        parameters of a module alike, so one that is not square tells for one that is."""
        decided = {}
        for module, pieces in self._found:
            if self._is_fused(module, pieces):
                first = is_on_first(module, self._stack(pieces))
                if first is not None:
                    decided[module.name] = first
        return decided

    def place(self, module: Module, pieces: Pieces) -> Iterable[tuple[str, Module]]:
        """(tensor on the disk, the module as it acts on that tensor)"""
        disk, *rest = pieces[0]
        if rest == _WHOLE and not module.stacked and len(self._tensors[disk].spec.shape) != 3:
            return ((disk, module),)  # as a rule: there may be hundreds of thousands
        return self._place(module, pieces)

    def _place(self, module: Module, pieces: Pieces) -> Iterator[tuple[str, Module]]:
        piece = pieces[0]
        if piece.change is not None:
            module = changed(module, piece.change, self._tensors[piece.disk].spec)
        if module.stacked:
            yield from self._on_stack(module, pieces)
        elif self._is_fused(module, pieces):
            yield from self._on_experts(module, pieces)
        elif piece.part is not None:
            yield from self._on_joined(module, pieces)
        elif piece.cut is not None:
            spec = self._tensors[piece.disk].spec
            if piece.cut.turned:
                yield piece.disk, as_transposed(module, spec)
            elif piece.cut.swapped:
                yield from ((piece.disk, half) for half in in_halves(module, spec))
            elif piece.cut.expert is None:
                yield piece.disk, _in_rows(module, piece.cut, spec, self._kv_rows)
            else:
                yield piece.disk, in_expert(module, piece.cut, spec, self._layout)
        else:
            yield piece.disk, module

    def _is_fused(self, module: Module, pieces: Pieces) -> bool:
        """Whether the factors of a module are those of all experts of a fused tensor."""
        piece = pieces[0]
        if piece.cut is not None or (piece.expert is None and len(self._tensors[piece.disk].spec.shape) != 3):
            return False
        return kind_of(module).is_product and len(module.factors[A].shape) == 2

    def _stack(self, pieces: Pieces) -> Stack:
        first = self._tensors[pieces[0].disk].spec.shape
        if pieces[0].expert is None:
            return first[0], first[1], first[2]
        experts, sizes = self._joined(pieces)
        return experts, sum(sizes), first[1] if len(first) > 1 else 1

    def _joined(self, pieces: Pieces) -> tuple[int, list[int]]:
        """(experts or 1, rows of each part). Raises unless all are there and alike."""
        parts = pieces[0].parts
        at = {(piece.expert or 0, piece.part or 0): self._tensors[piece.disk].spec.shape for piece in pieces}
        experts = max(expert for expert, _ in at) + 1
        sizes = [at[0, part][0] if at.get((0, part)) else 0 for part in range(parts)]
        for expert in range(experts):
            for part in range(parts):
                shape = at.get((expert, part))
                if shape is None or shape != at.get((0, part)) or shape[1:] != at[0, 0][1:]:
                    raise MismatchError(
                        f"{pieces[0].disk} and its like make one tensor in memory, but they are not all there, or not "
                        f"of one shape: see part {part} of expert {expert}"
                    )
        return experts, sizes

    def _on_experts(self, module: Module, pieces: Pieces) -> Iterator[tuple[str, Module]]:
        stack = self._stack(pieces)
        require_stack(module, stack)
        on_first = self._is_on_first(module, stack)
        if pieces[0].expert is None:
            experts, rows, columns = stack
            for expert in range(experts):
                own = of_expert(module, stack, expert, range(rows), on_first=on_first)
                view = View(columns, range(expert * rows, (expert + 1) * rows), range(columns), (rows, columns))
                yield pieces[0].disk, module._replace(factors=own, view=view, transposed=on_first)
            return
        for piece, inside in self._offsets(pieces):
            own = of_expert(module, stack, piece.expert or 0, inside, on_first=on_first)
            yield piece.disk, module._replace(factors=own, transposed=on_first)

    def _on_stack(self, module: Module, pieces: Pieces) -> Iterator[tuple[str, Module]]:
        """Factors that are stacked as the weights are."""
        spec, (a, b) = self._tensors[pieces[0].disk].spec, (module.factors[role] for role in (A, B))
        if len(pieces) > 1 and len(pieces) == a.shape[0]:  # one of each
            for piece in pieces:
                one = {role: _layer_of(module.factors[role], piece.expert or 0) for role in (A, B)}
                yield from self.place(module._replace(factors=one, stacked=False), (piece._replace(expert=None),))
            return
        if len(pieces) > 1 or pieces[0].cut is not None or spec.shape != (a.shape[0], b.shape[1], a.shape[2]):
            raise MismatchError(
                f"{shown(module.target)} is a stack of {by(b.shape[:2])} and {by(a.shape[2:])} inputs by its factors "
                f"in {a.path}, but {shown(spec.name)} is {spec}; is this adapter for another model?"
            )
        _, rows, columns = spec.shape
        for expert in range(a.shape[0]):
            own = {role: _layer_of(module.factors[role], expert) for role in (A, B)}
            view = View(columns, range(expert * rows, (expert + 1) * rows), range(columns), (rows, columns))
            yield pieces[0].disk, module._replace(factors=own, view=view, transposed=False, stacked=False)

    def _is_on_first(self, module: Module, stack: Stack) -> bool:
        """Whether lora_A belongs to the first of the two dimensions of an expert: that has changed with PEFT's
        versions."""
        first = is_on_first(module, stack)
        if first is None:
            first = self._decided.get(module.name)
        marked = None if self._layout is None else self._layout.marked
        if first is None and marked is not None:
            first = self._adapter.marked_on_first if marked else self._adapter.experts_on_first
        if first is None:
            why = "peft_version in its config does not tell"
            if marked is None:
                why = "how the architecture marks its experts is not known"
            elif marked and self._adapter.experts_on_first is not None:
                why = "since PEFT 0.19 that depends on the version of transformers in training, which is not saved"
            raise UnsupportedError(
                f"{shown(module.target)}: its experts are square ({by(stack[1:])}), and no other parameter of the "
                f"module tells to which side lora_A in {self._adapter.path} belongs; {why}"
            )
        return first

    def _offsets(self, pieces: Pieces) -> Iterator[tuple[Piece, range]]:
        """Each piece with its rows within its expert."""
        _, sizes = self._joined(pieces)
        for piece in pieces:
            start = sum(sizes[: piece.part])
            yield piece, range(start, start + sizes[piece.part or 0])

    def _on_joined(self, module: Module, pieces: Pieces) -> Iterator[tuple[str, Module]]:
        """A change of a weight whose output rows are stored in several tensors."""
        experts, sizes = self._joined(pieces)
        total = sum(sizes)
        stacked = pieces[0].expert is not None
        shape = self._tensors[pieces[0].disk].spec.shape
        wanted = (*([experts] if stacked else []), total, *shape[1:])
        module = by_rows(module, wanted)
        kind = kind_of(module)
        shapes = {role: ref.shape for role, ref in module.factors.items()}
        expected = kind.shapes(wanted, shapes)
        whole = kind.undivided or not kind.by_row
        if expected is None or whole or ((stacked or len(shape) > 2) and not kind.replaces):
            raise UnsupportedError(
                f"{shown(module.target)} is stored in several tensors; {module.kind} on it is not supported yet"
            )
        require_shapes(module, expected, f"{shown(module.target)} is stored in {len(pieces)} tensors, {wanted} in all")
        for piece, inside in self._offsets(pieces):
            begin = (piece.expert or 0) * total
            cut = {
                role: (_stacked(ref) if stacked else ref).rows(begin + inside.start, begin + inside.stop)
                if role in kind.by_row
                else ref
                for role, ref in module.factors.items()
            }
            yield piece.disk, module._replace(factors=cut, transposed=False)


def _in_rows(module: Module, cut: Part, spec: TensorSpec, kv_rows: int | None) -> Module:
    """A change of one of several projections that are stored one after the other; k and v have `kv_rows` rows."""
    kind = kind_of(module)
    total = spec.shape[0] if spec.shape else 0
    # Where no factor goes by row, the shapes of all tell whether they fit
    own = next((ref.shape[0] for role, ref in module.factors.items() if role in kind.by_row and ref.shape), None)
    if cut.grouped:
        if kv_rows is None:
            raise UnsupportedError(
                f"{shown(module.target)} lies in {shown(spec.name)}, and config.json has no num_key_value_heads and "
                "head_dim (or hidden_size and num_attention_heads) that tell where"
            )
        query = total - 2 * kv_rows
        starts = (0, query, query + kv_rows, total)
        rows = range(starts[cut.index], starts[cut.index + 1]) if query >= kv_rows else range(0)
        fits = len(rows) > 0
    else:
        fits = total % cut.count == 0
        rows = cut.of(total)
    fits = fits and (len(rows) == own or not kind.by_row)
    width = spec.numel // total if total else 0
    view = View(width, rows, range(width), (len(rows), *spec.shape[1:]))
    expected = kind.shapes(view.shape, {role: ref.shape for role, ref in module.factors.items()})
    if len(spec.shape) > 2 and not kind.elementwise:
        expected = None
    if expected is None:
        raise UnsupportedError(f"{shown(spec.name)} is {spec}; {module.kind} on a part of it is not supported yet")
    parts = f"part{f's {cut.index + 1} to' * bool(cut.more)} {cut.end}"
    where = f"{shown(module.target)} is {parts} of {cut.count} of {shown(spec.name)}, {spec}"
    if not fits:
        raise MismatchError(
            f"{where}, but its factors are for {own or 'other'} rows; is this adapter for another model?"
        )
    require_shapes(module, expected, where)
    return module._replace(view=view, transposed=False)


def _layer_of(ref: Ref, number: int) -> Ref:
    """One of the matrices (rows, columns) of a stack (E, rows, columns)."""
    one = ref.rows(number, number + 1)
    return one._replace(spec=one.spec._replace(shape=ref.shape[1:]))


def _stacked(ref: Ref) -> Ref:
    """(E, rows, ...) as (E·rows, ...)"""
    shape = ref.spec.shape
    return ref._replace(spec=ref.spec._replace(shape=(math.prod(shape[:2]), *shape[2:])))
