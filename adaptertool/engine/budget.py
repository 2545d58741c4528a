"""What a plan costs: memory, bytes to read and to write. From the plan alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from adaptertool.arithmetic.requirements import requirements_of
from adaptertool.arithmetic.tiling import BLOCK_ELEMENTS, matrix, needs_columns, rows_at_once
from adaptertool.arithmetic.verbatim import only_cast, verbatim
from adaptertool.codecs import BY_DTYPE
from adaptertool.codecs.tensors import BAND
from adaptertool.engine.forms import Forms, forms_of
from adaptertool.kinds import kind_of
from adaptertool.kinds.made import KEPT as MADE
from adaptertool.spec.plan import Plan, Step
from adaptertool.spec.tensors import KEPT, WINDOW, Ref, files_of

BASE_MEMORY = 64 << 20  # resident with numpy loaded and nothing to do, rounded up
_BYTES_PER_ELEMENT = 80  # per thread: its buffers and what is open (≤ 52), and arrays on the way to them
_WHILE = 4  # times as much is there while a matrix is decomposed


def predicted_memory(plan: Plan, threads: int, forms: Forms | None = None) -> int:
    """Upper estimate of peak resident bytes: a constant, the blocks of each thread, factors, and the plan itself."""
    forms = forms or forms_of(plan)
    block = whole = own = decomposed = 0
    for step in forms.firsts:
        if not step.edits:
            continue
        decomposed = max(decomposed, _decomposed(step))
        rows, columns = matrix(step)
        at_once = rows_at_once(step)
        block = max(block, columns * at_once * (3 if _may_double(step) else 1))
        held, by_row = _factors(step, rows, threads * at_once)
        if step.keeps is not None:  # codes of each output, and as they are stored
            by_row += columns * (len(plan.outputs) + 2)
            at_once = max(at_once, step.keeps.lattice.at_once)
        whole, own = max(whole, held), max(own, min(at_once, rows) * by_row)
    tensors = len(forms.numbers)
    # Threads may be at different tensors, each with its factors, and a factor is there twice while it is widened
    each = max(block, BLOCK_ELEMENTS) * _BYTES_PER_ELEMENT + 2 * whole + own
    bands = KEPT * BAND if any(step.base.made for step in forms.firsts) else 0
    each += _WHILE * decomposed
    kept = min(MADE, tensors) * decomposed
    return BASE_MEMORY + threads * each + kept + _windows(plan, forms) + bands + tensors * 2000


def _decomposed(step: Step) -> int:
    """Bytes of a tensor that is decomposed whole for what its factors are made of, and of these."""
    costly = [ref for edit in step.edits for ref in edit.factors.values() if ref.made is not None and ref.made.costly]
    return 8 * step.base.spec.numel + sum(ref.spec.nbytes for ref in costly) if costly else 0


def _may_double(step: Step) -> bool:
    """Whether a tensor that is one block may be there in double-double as well."""
    rounds = step.spec.dtype in BY_DTYPE and BY_DTYPE[step.spec.dtype].rounds
    whole = requirements_of(step.edits).whole_rows or not rounds
    return needs_columns(step.edits) and whole


def _windows(plan: Plan, forms: Forms) -> int:
    """The bytes of the factors in turn that are kept (codecs.tensors.read_rows)."""
    turns = {number for number, step in enumerate(forms.firsts) if any(ref.turns > 1 for ref in _factors_of(step))}
    steps = (step for step, number in forms.members(plan) if number in turns) if turns else ()
    sizes = {
        (ref.path, ref.offset): max(min(ref.spec.nbytes, WINDOW), ref.spec.nbytes // ref.turns)
        for step in steps
        for ref in _factors_of(step)
        if ref.turns > 1
    }
    return KEPT * max(sizes.values(), default=0) if len(sizes) > KEPT else sum(sizes.values())


def _factors_of(step: Step) -> Iterator[Ref]:
    return (ref for edit in step.edits for ref in edit.factors.values())


def _factors(step: Step, rows: int, at_once: int) -> tuple[int, int]:
    """Bytes of the factors that are kept whole at one time, of many experts only those that the threads are at; and of
    one row of the factors that go by row: as stored, widened, and times the scale."""
    held = widest = longest = 0
    for edit in step.edits:
        kind, view = kind_of(edit), edit.view
        longest = max(longest, rows if view is None else len(view.rows))
        kept = edit.transposed or (view is not None and isinstance(view.rows, tuple))
        for role, factor in edit.factors.items():
            shape, goes_by_row = factor.shape, role in kind.by_row
            if kept or not goes_by_row:
                held += (16 if kind.neighbours else 8) * math.prod(shape)  # and its magnitudes, for a bound
            if goes_by_row and len(shape) > 1 and not kind.elementwise:
                widest = max(widest, shape[1])
    window = at_once + 2 * longest
    return held if window >= rows else -(-held * window // rows), 24 * widest


def bytes_to_read(plan: Plan) -> int:
    """Every tensor that is needed, header and asset once (the check before the run reads the factors a second time)."""
    steps = list(plan.steps())
    refs = [step.base for step in steps]
    refs += [ref for step in steps if step.fisher is not None for ref in step.fisher]
    refs += [ref for step in steps for edit in step.edits for ref in edit.factors.values()]
    if any(ref.made for ref in refs):
        refs = [one for ref in refs for one in ref.stored]
    _, files = files_of(refs)
    places = zip(files, [ref.offset for ref in refs], strict=True)
    sizes = dict(zip(places, [ref.spec.nbytes for ref in refs], strict=True))
    others = sum(shard.data_start for shard in plan.shards) + sum(asset.size for asset in plan.assets)
    return others + sum(sizes.values())


def _bytes_per_output(plan: Plan) -> int:
    return sum(shard.size for shard in plan.shards) + sum(asset.size for asset in plan.assets)


def bytes_to_write(plan: Plan) -> int:
    own = sum(len(content) for output in plan.outputs for _, content in output.files)
    return _bytes_per_output(plan) * len(plan.outputs) + own


def count_elements(plan: Plan, forms: Forms | None = None) -> int:
    """How many elements the tensors have that at least one output does not copy from the base: edited, or of another
    size."""
    forms = forms or forms_of(plan)
    alphas, base = [output.alpha for output in plan.outputs], set(plan.files[0].values())
    same = [_has_its_numbers(step, alphas) for step in forms.firsts]
    sizes = [_counted(step) for step in forms.firsts]
    return sum(sizes[number] for step, number in forms.members(plan) if not same[number] or step.base.path not in base)


def _has_its_numbers(step: Step, alphas: Sequence[float]) -> bool:
    """Whether all outputs have the numbers of the base."""
    own = map(step.at, alphas)
    return all(verbatim(step, alpha) is step.stored or only_cast(step, alpha) for alpha in own)


def _counted(step: Step) -> int:
    """The elements of a weight that stays codes are counted once, and not those of its scales."""
    if step.keeps is None:
        return step.spec.numel
    return step.base.spec.numel if step.spec.name == step.base.stored[0].spec.name else 0


def count_tensors(plan: Plan, forms: Forms | None = None) -> tuple[int, int, int]:
    """(tensors, those of which at least one output differs from a copy of the base's bytes, those of which all have its
    numbers in another dtype)"""
    forms = forms or forms_of(plan)
    alphas = [output.alpha for output in plan.outputs]
    becomes = [_becomes(step, alphas) for step in forms.firsts]
    names = [(step.spec.name, becomes[number]) for step, number in forms.members(plan)]
    edited, cast = ({name for name, what in names if what == wanted} for wanted in (_EDITED, _CAST))
    return len({name for name, _ in names}), len(edited), len(cast)


_COPIED, _EDITED, _CAST = range(3)


def _becomes(step: Step, alphas: Sequence[float]) -> int:
    """Whether some output differs from the base's bytes, and whether all have its numbers nevertheless."""
    for alpha in map(step.at, alphas):
        if verbatim(step, alpha) is not step.stored:
            alike = only_cast(step, alpha) and all(only_cast(step, step.at(other)) for other in alphas)
            return _CAST if alike else _EDITED
    return _COPIED
