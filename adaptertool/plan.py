"""The plan: what becomes of every tensor, made from headers and configs alone. No weights are read.

Also the two rules that planning and running share: which outputs are verbatim copies, and how tensors are
cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path, PurePath
from typing import NoReturn

from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.reader import same_bytes
from adaptertool.heads import Head, require_only, take_head
from adaptertool.kinds import BY_NAME, DORA, FULL
from adaptertool.kinds.full import TUNED
from adaptertool.layout import Changes, assets_of, shards_of
from adaptertool.resolve import Subject, open_subject, resolve
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.plan import Edit, Output, Plan, Step
from adaptertool.spec.tensors import Ref, Stamp
from adaptertool.ties import settle
from adaptertool.tuned import full_edits

MAX_DIGITS = 20  # of an alpha, in the name of its folder
BLOCK_ELEMENTS = 1 << 20  # elements of a weight computed at once: smaller blocks cost more in calls


def plan_merge(base: Checkpoint, adapters: Sequence[Adapter], weights: Sequence[float], *, mixed: bool = False) -> Plan:
    """Each adapter is applied, with its weight, to what the ones before it produced; rounded once at the end.

    mixed: the adapters act together, as unmerged ones do at inference: the norms of DoRA are those of the base
    weight and its own delta. For LoRA the two are the same. Source: PEFT 0.21.2, checked against it in the tests.
    """
    edits, changes, notes = adapter_edits(open_subject(base), adapters, weights, mixed=mixed)
    if mixed:
        require_mixable(edits)
    notes += _replacements(edits)
    notes += [f"{adapter.path} is given twice, and is applied twice" for adapter in _repeated(adapters)]
    return make_plan("merge", base, adapters, weights, edits, changes, (Output("", 1.0),), notes)


def plan_wise(base: Checkpoint, tuned: Adapter | Checkpoint, alphas: Sequence[Decimal]) -> Plan:
    """W + α·(T − W) for each α, where T is the base with the adapter merged, or the tuned checkpoint."""
    notes = [f"alpha {alpha} lies outside 0..1: this extrapolates" for alpha in alphas if not 0 <= alpha <= 1]
    equal: list[tuple[Ref, Ref]] = []
    changes = Changes()
    if isinstance(tuned, Adapter):
        edits, changes, more = adapter_edits(open_subject(base), [tuned], [1.0])
        if (changes.resized or changes.head) and any(alpha != 1 for alpha in alphas):
            what = "resizes the vocabulary; between embeddings of different sizes there is nothing"
            if changes.head:
                what = "brings a new head; between none and it there is nothing"
            raise UnsupportedError(f"{tuned.path} {what}")
    else:
        edits, equal, more = full_edits(base, tuned)
    notes += more
    outputs = in_folders(alphas) if len(alphas) > 1 else (Output("", float(alphas[0])),)
    return make_plan("wise", base, [tuned], [1.0], edits, changes, outputs, notes, equal)


def adapter_edits(
    subject: Subject, adapters: Sequence[Adapter], weights: Sequence[float], *, mixed: bool = False
) -> tuple[dict[str, list[Edit]], Changes, list[str]]:
    """What the adapters change, by the names of the tensors; how the set of tensors changes; and notes."""
    edits: dict[str, list[Edit]] = {}
    notes: list[str] = []
    head: Head | None = None
    for number, (whole, weight) in enumerate(zip(adapters, weights, strict=True)):
        before = len(subject.resized)
        new, adapter = take_head(subject.base, subject.names, whole)
        if new is not None:
            require_only(adapter, weight, head)
            head = new
        resolved, more = resolve(subject, adapter)
        if len(subject.resized) > before and (weight != 1 or edits):
            _refuse_resizing(adapter, weight)
        notes += more + _other_base(subject.base, adapter)
        for target, modules in resolved.items():
            if edits.get(target):
                modules = _without_copies(subject, adapter, target, modules)
            edits.setdefault(target, []).extend(
                Edit(
                    module.kind,
                    number,
                    module.name,
                    module.factors,
                    module.scale,
                    weight,
                    transposed=bool(module.transposed),
                    view=module.view,
                    on_base=mixed,
                )
                for module in modules
            )
    ends = subject.ends if head is None else {}  # such a model has no end that could be tied
    tying = [number for number, adapter in enumerate(adapters) if adapter.ties_ends]
    apart, more = settle(edits, ends, subject.resized, tying)
    notes += subject.traits.notes_on(edits)
    changes = Changes({end: ends[end] for end in apart}, subject.resized, head)
    if head is not None:
        notes += head.notes(subject.base, subject.ends, edits)
    for name, ref in subject.resized.items():
        notes.append(f"{shown(name)} has {ref.spec.shape[0]:,} rows in the adapter, and so in the output")
    return edits, changes, notes + more


def _without_copies(subject: Subject, adapter: Adapter, target: str, modules: Sequence[Module]) -> list[Module]:
    """Without the base's own weight, which PEFT saves below the factors of an embedding: beside the change of another
    adapter it is none. Raises UnsupportedError where it is another."""
    kept = []
    for module in modules:
        ref = module.factors.get(TUNED)
        if len(modules) > 1 and module.kind == FULL.name and module.rows is None and ref is not None:
            base = subject.tensors[target]
            if ref.spec[1:] != base.spec[1:] or not same_bytes(ref, base):
                raise UnsupportedError(
                    f"{adapter.path}: {shown(ref.spec.name)} is saved below factors, is not the base's, and another "
                    f"adapter changes {shown(target)} too: there is no agreed meaning"
                )
            continue
        kept.append(module)
    return kept


def _other_base(base: Checkpoint, adapter: Adapter) -> list[str]:
    """A note where the adapter names another base: a fine-tune of the same shapes is told by its name alone."""
    folder = (base.path.parent if base.is_file else base.path).resolve()
    hub = [part.rpartition("--")[2] for part in folder.parts if part.startswith("models--")]
    said = (base.config or {}).get("_name_or_path")
    names = {folder.name, *hub, *([PurePath(said).name] if isinstance(said, str) else [])}
    if not adapter.trained_on or PurePath(adapter.trained_on).name.lower() in {name.lower() for name in names}:
        return []
    return [f"{adapter.path} says it was trained on {shown(adapter.trained_on)}; is {base.path} that? Its shapes fit"]


def _refuse_resizing(adapter: Adapter, weight: float) -> NoReturn:
    how = f"with weight {weight:g}" if weight != 1 else "after other adapters; give it first"
    raise UnsupportedError(f"{adapter.path} resizes the vocabulary; that cannot be done {how}")


def _replacements(edits: Mapping[str, Sequence[Edit]]) -> list[str]:
    """Say where a saved tensor takes the place of what an adapter before it did."""
    return [
        f"{shown(target)}: the saved tensor of adapter {last.adapter + 1} replaces the changes of those before it"
        for target, chain in edits.items()
        for last in chain
        if last.kind == FULL.name and last.weight != 0 and last.adapter > chain[0].adapter
    ]


def require_mixable(edits: Mapping[str, Sequence[Edit]]) -> None:
    """Refuse what has no agreed meaning when adapters act together: DoRA with a weight, or on a replaced weight, and
    a saved tensor beside another adapter's change."""
    for target, chain in edits.items():
        if any(edit.kind == FULL.name for edit in chain) and len({edit.adapter for edit in chain}) > 1:
            raise UnsupportedError(f"{shown(target)}: a replaced weight and another adapter in mixed composition")
        if len(chain) > 1 and any(edit.kind == DORA.name for edit in chain):
            if any(edit.weight != 1 for edit in chain):
                raise UnsupportedError(f"{shown(target)}: weights other than 1 with DoRA in mixed composition")
            if any(edit.kind == FULL.name for edit in chain):
                raise UnsupportedError(f"{shown(target)}: a replaced weight with DoRA in mixed composition")


def _repeated(adapters: Sequence[Adapter]) -> list[Adapter]:
    paths = [adapter.path.resolve() for adapter in adapters]
    return [adapter for number, adapter in enumerate(adapters) if paths[number] in paths[:number]]


def in_folders(alphas: Sequence[Decimal]) -> tuple[Output, ...]:
    """alpha-0.300 and so on: three decimals, more for all where one needs them. Raises UsageError."""
    digits = max(3, *(-int(alpha.normalize().as_tuple().exponent) for alpha in alphas))
    if digits > MAX_DIGITS or any(abs(alpha) >= 10**MAX_DIGITS for alpha in alphas):
        raise UsageError(f"an alpha with more than {MAX_DIGITS} digits before or after the point names no folder")
    return tuple(Output(f"alpha-{alpha:.{digits}f}", float(alpha)) for alpha in alphas)


def make_plan(
    command: str,
    base: Checkpoint,
    sources: Sequence[Adapter | Checkpoint],
    weights: Sequence[float],
    edits: Mapping[str, Sequence[Edit]],
    changes: Changes,
    outputs: tuple[Output, ...],
    notes: Sequence[str],
    equal: Sequence[tuple[Ref, Ref]] = (),
) -> Plan:
    shards = shards_of(base, edits, changes)
    return Plan(
        command=command,
        base=base.path,
        sources=tuple(source.path for source in sources),
        files=({asset.name: asset.source for asset in base.assets} | base.named, *(source.named for source in sources)),
        weights=tuple(weights),
        shards=shards,
        assets=assets_of(base, shards, changes),
        outputs=outputs,
        inputs=_inputs(base, sources),
        equal=tuple(equal),
        tuned_is_checkpoint=not all(isinstance(source, Adapter) for source in sources),
        single_file=base.is_file,
        notes=(*base.notes, *notes),
    )


def _inputs(base: Checkpoint, sources: Sequence[Adapter | Checkpoint]) -> dict[Path, Stamp]:
    files = {asset.source: asset.stamp for asset in base.assets}
    for source in (base, *sources):
        files |= source.files if isinstance(source, Adapter) else {h.path: h.stamp for h in source.headers}
    return files


def all_steps(plan: Plan) -> Iterator[Step]:
    for shard in plan.shards:
        yield from shard.steps


def verbatim(step: Step, alpha: float) -> Ref | None:
    """The tensor whose bytes this output is, or None where it must be computed.

    Without edits, and at α = 0, the base; at α = 1 a tensor that replaces it. That is what makes α = 0 and
    α = 1 of two checkpoints equal to them byte for byte, NaN and −0.0 included.
    """
    source = None
    if step.makes is not None or (step.blend is not None and step.edits):
        return None
    if alpha == 0 or step.base.spec.numel == 0 or all(edit.weight == 0 for edit in step.edits):
        source = step.base
    elif alpha == 1 and replaces(step):
        source = step.edits[-1].factors[TUNED]
    return source if source is not None and source.spec.dtype == step.spec.dtype else None


def replaces(step: Step) -> bool:
    """Whether the last edit puts another tensor in the place of all that was before."""
    last = step.edits[-1] if step.edits else None
    return last is not None and last.kind == FULL.name and last.weight == 1 and last.view is None


def matrix(step: Step) -> tuple[int, int]:
    """(rows, columns) of the tensor as it is cut into blocks; rows of one element where the edits allow it."""
    numel = step.base.spec.numel
    views = [edit.view for edit in step.edits if edit.view is not None]
    if not views and all(BY_NAME[edit.kind].elementwise for edit in step.edits):
        return numel, 1
    rows = max(step.base.spec.shape[0], 1)
    width = views[0].width if views else numel // rows
    return numel // width if width else 0, width


def block_rows(columns: int) -> int:
    return max(1, BLOCK_ELEMENTS // max(columns, 1))
