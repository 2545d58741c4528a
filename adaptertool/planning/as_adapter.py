"""The plan of an interpolation, turned into one that writes adapters: `wise --as-adapter`.

Merged into the base, each gives W + α·(W' − W). Of LoRA only lora_alpha changes, since its change is linear in it. The
factors of DoRA are made anew (kinds.dora.interpolated), and so are saved tensors T: W + α·(T − W).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from adaptertool.errors import UnsupportedError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import build_header
from adaptertool.files.reader import same_bytes
from adaptertool.formats import BY_NAME, writing
from adaptertool.formats.beside import assets_of
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora import widened
from adaptertool.kinds.full import TUNED
from adaptertool.kinds.lora import B
from adaptertool.resolution.ties import FLAG, STORED_APART
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Asset, Edit, Plan, Shard, Step
from adaptertool.spec.tensors import DTYPE_BITS, Ref, TensorSpec

_TO_BE_APART = f"a merge of OUT stores them apart, and its config.json says {FLAG}: false"


def into_adapter(plan: Plan, base: Checkpoint, adapter: Adapter, alphas: Sequence[Decimal]) -> Plan:
    """`plan` is that of the checkpoints that lie at these alphas between `base` and `adapter`.

    Raises UnsupportedError for what is no adapter again, UsageError for a lora_alpha beyond what a number holds.
    """
    own = BY_NAME[adapter.format]
    if own.write is None:
        back = f", and with its OUT `adaptertool convert --to {own.name}`" if own.save is not None else ""
        raise UnsupportedError(
            f"{adapter.path} is of the format {own.name}, and --as-adapter writes the config of PEFT: `adaptertool "
            f"convert --to peft --base BASE` first, then this with what it makes{back}"
        )
    config, weights = (adapter.path / name for name in own.files.named)
    kinds = [kind_of(edit) for step in plan.steps() for edit in step.edits]
    for kind in (*map(kind_of, adapter.modules), *kinds):
        spelling = kind.spellings.get(adapter.format)
        no_scale = spelling is not None and spelling.alpha is None
        if kind.becomes or no_scale or not (kind.linear or kind.anew):
            raise UnsupportedError(
                f"{config}: between {kind.name} and the base lies no adapter of its kind that is known"
            )
    if any(kind.norms for kind in kinds) and any(kind.linear for kind in kinds):
        raise UnsupportedError(f"{config}: DoRA beside plain LoRA: --as-adapter would need a lora_alpha for each")
    if others := [path for path in adapter.files if path not in (config, weights)]:
        raise UnsupportedError(
            f"{others[0]} holds tensors beside {weights.name}, and --as-adapter writes one file: move them in there, "
            f"or do without them (--leave-out {others[0].name}), or write a checkpoint"
        )
    shard, notes = _factors_file(plan, adapter, weights)
    assets, left = assets_of(adapter.path, own.files)
    outputs, inputs = plan.outputs, dict(plan.inputs)
    if any(kind.linear for kind in kinds):
        outputs = tuple(
            dataclasses.replace(output, files=((config.name, writing(own).times(adapter, alpha)),))
            for output, alpha in zip(outputs, alphas, strict=True)
        )
    else:
        assets = (*assets, Asset(config, inputs[config], config.name, inputs[config][2]))
    if left:
        notes.append(f"left out (other copies of the weights, or not part of it): {', '.join(map(shown, left))}")
    return dataclasses.replace(
        plan,
        command=f"{plan.command} --as-adapter",
        shards=(shard,),
        assets=assets,
        outputs=outputs,
        inputs=inputs | {asset.source: asset.stamp for asset in assets},
        files=(plan.files[0], {**plan.files[1], **{asset.name: asset.source for asset in assets}}),
        single_file=False,
        notes=(*(note.replace(STORED_APART, _TO_BE_APART) for note in plan.notes[len(base.notes) :]), *notes),
        as_adapter=True,
    )


def _factors_file(plan: Plan, adapter: Adapter, weights: Path) -> tuple[Shard, list[str]]:
    """The file of factors: those that are made anew, and the others as they are; and notes."""
    tensors = adapter.tensors
    made: dict[str, dict[int, Step]] = {}  # name -> where in the file its parts lie, and how they are made
    for step in plan.steps():
        for edit in step.edits:
            for ref, new in _made(step, edit):
                made.setdefault(ref.spec.name, {})[ref.offset] = new
    for module in adapter.modules:
        for role in kind_of(module).anew:
            ref = module.factors[role]
            if ref.spec.name in made or not ref.spec.numel:
                continue
            if twin := next((step for step in _steps(made) if _is_twin(step, ref)), None):
                edit = twin.edits[0]._replace(factors={TUNED: ref})
                made[ref.spec.name] = {ref.offset: twin._replace(spec=ref.spec, edits=(edit,))}
            else:
                raise UnsupportedError(
                    f"{ref.path}: {shown(ref.spec.name)} changes nothing that the base stores by itself; write a "
                    "checkpoint, without --as-adapter"
                )
    specs = {name: ref.spec for name, ref in tensors.items() if name not in adapter.ignored}
    for name, pieces in made.items():
        specs[name] = _as_dtype(specs[name], next(iter(pieces.values())).spec.dtype)
    # In the order of the file; where dtypes differ wide ones come first, as in all files of the reference writer.
    ordered = sorted(specs.values(), key=lambda spec: -DTYPE_BITS[spec.dtype])
    text = build_header(ordered, adapter.metadata)
    steps, end = [], len(text)
    for spec in ordered:
        old = tensors[spec.name]
        grown = DTYPE_BITS[spec.dtype] // DTYPE_BITS[old.spec.dtype]
        if spec.name in made:
            steps += [
                new._replace(offset=end + (offset - old.offset) * grown)
                for offset, new in sorted(made[spec.name].items(), key=lambda piece: piece[0])
            ]
        else:
            steps.append(Step(spec, end, old))
        end += spec.nbytes
    return Shard(weights, len(text), end, tuple(steps), text), _narrowed(steps)


def _steps(made: Mapping[str, Mapping[int, Step]]) -> list[Step]:
    return [step for parts in made.values() for step in parts.values()]


def _is_twin(step: Step, ref: Ref) -> bool:
    """Whether a saved tensor is the same as one that is made anew: that of a tied end, which the plan makes once."""
    tuned = step.edits[0].factors.get(TUNED)
    return (
        tuned is not None and (tuned.spec.dtype, tuned.shape) == (ref.spec.dtype, ref.shape) and same_bytes(tuned, ref)
    )


def _made(step: Step, edit: Edit) -> Iterator[tuple[Ref, Step]]:
    """(tensor of the adapter or some rows of it, how it is made anew) for all that `edit` has of such."""
    if kind_of(edit).norms:
        if any(kind_of(other).replaces for other in step.edits):
            raise UnsupportedError(
                f"{edit.factors[B].path}: {shown(edit.module)} has a saved weight under DoRA; between it and the base "
                "lies no DoRA adapter: write a checkpoint, without --as-adapter"
            )
        for role in kind_of(edit).anew:
            ref = edit.factors[role]
            yield ref, Step(_as_dtype(ref.spec, widened(ref.spec.dtype)), 0, step.base, (edit,), makes=role)
    elif kind_of(edit).replaces:
        for base, ref in _saved(step.base, edit):
            yield ref, Step(ref.spec, 0, base, (edit._replace(factors={TUNED: ref}, view=None),))


def _saved(base: Ref, edit: Edit) -> Iterator[tuple[Ref, Ref]]:
    """(rows of the base, the saved tensor for them): all, or the runs of rows that it acts on."""
    ref, view = edit.factors[TUNED], edit.view
    if view is None:
        yield base, ref
        return
    spec = base.spec
    rows = base._replace(spec=spec._replace(shape=(spec.numel // view.width, view.width)))
    assert len(view.columns) == view.width
    for _, run in itertools.groupby(enumerate(view.rows), lambda pair: pair[1] - pair[0]):
        (place, row), *more = run
        yield rows.rows(row, row + 1 + len(more)), ref.rows(place, place + 1 + len(more))


def _as_dtype(spec: TensorSpec, dtype: str) -> TensorSpec:
    return TensorSpec(spec.name, dtype, spec.shape, spec.numel * DTYPE_BITS[dtype] // 8)


def _narrowed(steps: Sequence[Step]) -> list[str]:
    """Say where a saved tensor cannot hold what the base has."""
    pairs = {(step.spec.dtype, step.base.spec.dtype) for step in steps if step.edits and step.makes is None}
    return [
        f"saved tensors of dtype {here} stay so: what merging makes of them has its precision, not {there} of the base"
        for here, there in sorted(pairs)
        if here != there and DTYPE_BITS[here] <= DTYPE_BITS[there]
    ]
