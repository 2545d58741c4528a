"""The plan of an interpolation, turned into one that writes adapters: `wise --as-adapter`.

Merged into the base, each gives W + α·(W' − W). Of LoRA only lora_alpha changes, since its change is linear in it. The
factors of DoRA are made anew (kinds.dora.interpolated), and so are saved tensors T: W + α·(T − W).
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

from adaptertool.errors import UnsupportedError, UsageError, shown
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.header import build_header, read_header
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import same_bytes
from adaptertool.formats.beside import assets_of
from adaptertool.formats.peft.keys import plain_keys
from adaptertool.formats.peft.packing import layout_of
from adaptertool.formats.peft.read import CONFIG, WEIGHTS
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
    config = adapter.path / CONFIG
    kinds = [kind_of(edit) for step in plan.steps() for edit in step.edits]
    for kind in kinds:
        if not kind.linear and not kind.anew:
            raise UnsupportedError(
                f"{config}: between {kind.name} and the base lies no adapter of its kind that is known"
            )
    if any(kind.norms for kind in kinds) and any(kind.linear for kind in kinds):
        raise UnsupportedError(f"{config}: DoRA beside plain LoRA: --as-adapter would need a lora_alpha for each")
    if others := [path for path in adapter.files if path not in (config, adapter.path / WEIGHTS)]:
        raise UnsupportedError(
            f"{others[0]} holds tensors beside {WEIGHTS}, and --as-adapter writes one file: move them in there, or do "
            f"without them (--leave-out {others[0].name}), or write a checkpoint"
        )
    shard, notes = _factors_file(plan, adapter)
    assets, left = assets_of(adapter.path)
    outputs, inputs = plan.outputs, dict(plan.inputs)
    if any(kind.linear for kind in kinds):
        fields = load_json(config)
        fields |= layout_of(adapter, fields)
        outputs = tuple(
            dataclasses.replace(output, files=((CONFIG, _rescaled(fields, alpha)),))
            for output, alpha in zip(outputs, alphas, strict=True)
        )
    else:
        assets = (*assets, Asset(config, inputs[config], CONFIG, inputs[config][2]))
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


def _rescaled(fields: Mapping[str, Any], alpha: Decimal) -> bytes:
    """The config with lora_alpha, and those of alpha_pattern, times alpha."""

    exact = Fraction(alpha) if alpha.adjusted() > -1000 else Fraction(0)  # beyond, all products round to 0

    def times(number: float) -> float:
        product = exact * Fraction(number)
        if abs(product) > Fraction(sys.float_info.max):
            raise UsageError(f"alpha {alpha:g} times lora_alpha {number:g} is beyond what a number holds")
        return int(product) if product.denominator == 1 else float(product)

    changed = {**fields, "lora_alpha": times(fields["lora_alpha"])}
    if patterns := fields.get("alpha_pattern"):
        changed["alpha_pattern"] = {key: times(number) for key, number in patterns.items()}
    return (json.dumps(changed, indent=2) + "\n").encode()


def _factors_file(plan: Plan, adapter: Adapter) -> tuple[Shard, list[str]]:
    """The file of factors: those that are made anew, and the others as they are; and notes."""
    header = read_header(adapter.path / WEIGHTS)
    tensors, _ = plain_keys(header.path, header.tensors)
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
    text = build_header(ordered, header.metadata)
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
    return Shard(header.path, len(text), end, tuple(steps), text), _narrowed(steps)


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
    rows = dataclasses.replace(base, spec=spec._replace(shape=(spec.numel // view.width, view.width)))
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
