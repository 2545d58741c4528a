"""`sum`: adapters into one, Σ wᵢ·Δᵢ."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from adaptertool.algebra import leading_part
from adaptertool.algebra import mix as mixing
from adaptertool.algebra import sum as summation
from adaptertool.algebra.leading_part import shares_on
from adaptertool.algebra.sum import jobs, specs
from adaptertool.architectures.decoded_beside import as_numbers
from adaptertool.arguments import Number, PathLike, as_input, as_path, given_settings
from adaptertool.errors import UsageError, argument
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.formats import BY_NAME, DEFAULT, format_at, writing
from adaptertool.formats.beside import left_out
from adaptertool.formats.checkpoints import open_checkpoint, require_named
from adaptertool.formats.format import Format, Written
from adaptertool.output.adapter import AdapterJob, check_out, write_adapter
from adaptertool.output.options import Options
from adaptertool.planning.namesakes import under_one_name
from adaptertool.planning.redraft import target_of
from adaptertool.planning.schedules import Given, parse_weights, rule_texts, usual, with_rules
from adaptertool.planning.sources import Reading
from adaptertool.planning.sum import Combined, combined, mixed
from adaptertool.planning.sum_saved import fields_of, notes_of, saved_of
from adaptertool.planning.sum_weights import LayerWeights
from adaptertool.reports.adapters import LayerSummed, SumReport
from adaptertool.spec.choices import Mix, RankChoice
from adaptertool.spec.layers import Layered
from adaptertool.spec.plan import Plan
from adaptertool.tasks.in_format import in_format, summed
from adaptertool.tasks.sum_inputs import on_base, opened_alone
from adaptertool.tasks.sum_methods import SETTINGS, check_adapters, cut_for, mix_for

if TYPE_CHECKING:  # numpy is loaded only where tensors are touched
    from adaptertool.algebra.leading_part import Share
    from adaptertool.algebra.sum import LayerOutcome, Maker
    from adaptertool.engine.produce import Job
    from adaptertool.files.reader import Inputs


def sum_adapters(
    adapters: Sequence[PathLike],
    out: PathLike,
    *,
    weights: Sequence[Given] | None = None,
    method: str = "cat",
    rank: int | None = None,
    energy: Number | None = None,
    base: PathLike | None = None,
    expert_layout: str | None = None,
    renames: Sequence[str] = (),
    density: Number | None = None,
    seed: int | None = None,
    leave_out: Sequence[str] = (),
    to: str | None = None,
    force: bool = False,
    threads: int | None = None,
    dry_run: bool = False,
    progress: Callable[[int], None] | None = None,
    before_publish: Callable[[], None] | None = None,
    clean: bool = False,
    **settings: Number | None,
) -> SumReport:
    """Write to `out` the adapter whose change is Σ wᵢ·Δᵢ, by concatenation: B = [c₁·B₁ ...], A = [A₁; ...].

    weights: one for each adapter, by order; 1 where None; negative ones subtract. Of layers as for `merge`, by their
             names in the adapters; a gradient needs the base, which tells how many there are
    method:  "cat" is the sum; "svd" the sum, cut to `rank` (the largest of the adapters', where None). "linear",
             "ties", "dare_linear", "dare_ties" and "magnitude_prune" combine A and B apart, as PEFT does, which has
             cross terms and is not the sum; with "_svd" at their end they combine the changes, and are cut as "svd" is
    rank, energy: cut off after that, as `truncate` does
    base: the checkpoint that the adapters are for, needed where one is DoRA or of a kind that is no product of factors.
          Of the matrices that these change the leading part of Σ wᵢ·(W'ᵢ − W) is extracted, and the error reported; so
          rank or energy is needed.
          It also tells what is one layer under the names of two versions of transformers
    expert_layout: as for `merge`; the sum has PEFT's layout, rank_major
    density, seed, settings: of the method; the share of elements that stays, and of chance, where it drops some
    to: the format to write, of `convert`; that of the first adapter unless given
    renames, leave_out, clean: as for `merge`. dry_run: compute the report, and write nothing
    The rank of a layer is the sum of its ranks. Without a cut the sum is exact where weights times scales differ by
    powers of two only; elsewhere B is rounded, to float32 at least, and the report says so.
    Saved tensors are kept where their weight is 1. Raises AdapterToolError; `out` is then as it was before.

    >>> len(adaptertool.sum_adapters(["fixtures/lora", "fixtures/rslora"], "both", weights=[0.5, 1]).layers)
    28
    """
    options = Options(
        force=force, threads=threads, dry_run=dry_run, clean=clean, progress=progress, before_publish=before_publish
    )
    given = given_settings("sum_adapters", SETTINGS, {"density": density, "seed": seed, **settings})
    reading = Reading(renames, leave_out, expert_layout)
    check_adapters(adapters, method)
    numbers = parse_weights(weights, len(adapters))
    paths, target = [as_input(path, "ADAPTER") for path in adapters], as_path(out, "OUT")
    checkpoint = None if base is None else as_numbers(require_named(open_checkpoint(as_input(base, "BASE"))))
    written = target_of(to, format_at(paths[0]).name, target)
    as_file = written is not None and written.as_file
    check_out(target, [*paths, *([checkpoint.path] if checkpoint else [])], force=options.force, as_file=as_file)
    opened, notes = under_one_name(opened_alone(paths, reading, checkpoint), checkpoint, renames)
    cut, mix = cut_for(method, rank, energy, opened), mix_for(method, given)
    opened, plans = on_base(opened, checkpoint)
    weigh = LayerWeights(opened, numbers, checkpoint)
    output, layers = _output(opened, weigh, method, mix, cut, plans)
    output = _with_names(output, notes, checkpoint, {"renames": list(renames), **reading.chosen})
    if written is not None:
        output = in_format(output, written, summed(opened, layers), {})
    own, done = {spec.name for layer in layers for spec in layer.specs()}, write_adapter(output, target, options)
    return SumReport(
        **done.summary(output, target, options),
        weights=tuple(map(usual, numbers)),
        weight_rules=tuple(rule_texts(numbers)),
        method=method,
        density=mix and mix.settings["density"],
        seed=mix and int(mix.settings["seed"]),
        cut={} if cut is None else cut.as_typed(),
        saved=tuple(sorted(spec.name for spec in output.largest if spec.name not in own)),
        layers=tuple(map(_summed, _whole(done.said).values())),
    )


def _with_names(
    output: AdapterJob[LayerOutcome | None], notes: Sequence[str], base: Checkpoint | None, chosen: Mapping[str, object]
) -> AdapterJob[LayerOutcome | None]:
    """With what has decided the names. Of a base that is for nothing else only headers and config are read."""
    choices = {"base": base and base.path.resolve().name, **chosen}
    recipe = {**output.recipe, **{name: choice for name, choice in choices.items() if choice}}
    stamps = {header.path: header.stamp for header in base.headers} if base else {}
    return dataclasses.replace(output, recipe=recipe, notes=[*output.notes, *notes], looked_at=stamps)


def _maker(mix: Mix | None, cut: RankChoice | None, shares: Mapping[str, Sequence[Share]]) -> Maker:
    """What makes the tensors of a layer: the jobs for it. shares: of layers that are DoRA."""
    if mix is None:
        if cut is None:
            return summation.concatenation
        whole = functools.partial(summation.cut_down, cut=cut)
    elif mix.on_factors:
        whole = functools.partial(mixing.on_factors, mix=mix)
    else:
        assert cut is not None
        whole = functools.partial(mixing.on_changes, mix=mix, cut=cut)

    def make(layer: Combined, inputs: Inputs) -> list[Job[LayerOutcome | None]]:
        if layer.path in shares and cut is not None:
            return [functools.partial(leading_part.extracted, layer, shares[layer.path], cut, inputs)]
        return [functools.partial(whole, layer, inputs=inputs)]

    return make


def _output(
    adapters: Sequence[Layered],
    weigh: LayerWeights,
    method: str,
    mix: Mix | None,
    cut: RankChoice | None,
    plans: Sequence[Plan],
) -> tuple[AdapterJob[LayerOutcome | None], list[Combined]]:
    if plans and (mix is not None or cut is None):
        raise UsageError(
            "a base is for sums of DoRA, and of kinds that are no product of factors, which are cut: give "
            f"{argument('rank')} or {argument('energy')}, and no method but cat or svd"
        )
    if mix is not None and mix.on_factors and cut is not None:
        raise UsageError(f"{method} keeps the rank; cut it down with `adaptertool truncate` after that")
    own = BY_NAME[adapters[0].adapter.format]  # in which the sum is written, unless another is asked for
    if mix is None:
        nearest = writing(DEFAULT if own.write is None else own).nearest_scale
        layers = combined(adapters, weigh.of_layer, nearest, dora=bool(plans), rank=None if cut is None else cut.rank)
    else:
        layers = mixed(adapters, weigh.of_layer, on_factors=mix.on_factors, rank=None if cut is None else cut.rank)
    saved, fields = saved_of(adapters, weigh.of_tensor), fields_of(adapters)
    paths = {layer.path for layer in layers}
    targets = next(
        (one.fields for one in adapters if one.layers.keys() == paths and "target_modules" in one.fields), None
    )
    make = _maker(mix, cut, shares_on(plans, weigh.of_layer, layers) if plans else {})
    output = AdapterJob(
        command="sum",
        recipe={
            "weights": [str(one.default) for one in weigh.schedules],
            **with_rules({}, weigh.schedules),
            "method": method,
            "cut": {} if cut is None else cut.as_typed(),
            **({} if mix is None else mix.settings),
            **left_out(one.adapter for one in adapters),
        },
        sources=[*(adapter.adapter.path for adapter in adapters), *(plan.base for plan in plans[:1])],
        weights=own.files.weights,
        stamps={
            **(plans[0].inputs if plans else {}),
            **{path: stamp for adapter in adapters for path, stamp in adapter.adapter.files.items()},
        },
        largest=specs(layers, saved),
        metadata=adapters[0].adapter.metadata,
        jobs=lambda inputs: jobs(layers, saved, make, inputs),
        small=lambda said: (
            {} if own.write is None else {own.files.named[0]: _config(own, fields, targets, _whole(said))}
        ),
        notes=[*notes_of(adapters), *weigh.notes],
        reserved=0 if cut is not None and cut.rank is None and (mix is not None or plans) else None,
    )
    return output, layers


def _whole(said: Sequence[LayerOutcome | None]) -> dict[str, LayerOutcome]:
    """What the parts of each layer say, together."""
    found: dict[str, LayerOutcome] = {}
    for one in said:
        if one is not None:
            known = found.get(one.layer.path)
            found[one.layer.path] = one if known is None else known._replace(rounded=known.rounded + one.rounded)
    return found


def _config(
    own: Format, fields: Mapping[str, Any], targets: Mapping[str, Any] | None, said: Mapping[str, LayerOutcome]
) -> bytes:
    written = [
        Written(path, one.rank, one.layer.scale, is_parameter=one.layer.first.is_parameter)
        for path, one in said.items()
    ]
    return writing(own).config_text(fields, written, targets_of=targets)


def _summed(said: LayerOutcome) -> LayerSummed:
    return LayerSummed(
        layer=(layer := said.layer).path,
        ranks=tuple(term.layer.rank for term in layer.terms),
        rank=said.rank,
        dtype=layer.dtype,
        scale=layer.scale,
        exact=said.rank == layer.rank and not said.rounded and all(term.exact for term in layer.terms),
        rounded=said.rounded,
        energy=said.energy,
        error=said.error,
        storing=said.storing,
    )
