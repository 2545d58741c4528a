"""What is remarkable about an adapter, and the rules of thumb that apply to it. Each in a line, with its source."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence

from adaptertool.architectures.families import ATTENTION, EXPERTS, MLP, OTHER
from adaptertool.errors import shown
from adaptertool.formats.format import Facts
from adaptertool.inspection.capacity import LEARNING_RATE
from adaptertool.kinds import BY_NAME, kind_of
from adaptertool.reports.inspect import AdapterFacts, Coverage, InspectedModule

_REGRET = "LoRA Without Regret, Thinking Machines 2025"
_UNUSED = 0.5  # a share of the rank, from which on it is remarked on


def findings(path: str, facts: AdapterFacts, *, truncates: bool) -> Iterator[str]:
    """truncates: whether `truncate` takes the adapter, and can be advised."""
    yield from _of_coverage(facts.modules, facts.coverage)
    yield from _of_spectra(path if truncates else None, facts.modules)
    for module in facts.modules:
        if module.problem:
            yield module.problem
            break
    if facts.capacity.verdict == "short":
        assert facts.capacity.load is not None
        yield (
            f"capacity: the data has {facts.capacity.load:.3g} times the bits that this adapter can hold; expect it to "
            f"learn slower than full fine-tuning, or raise the rank as many times ({_REGRET})"
        )


def _of_coverage(modules: Sequence[InspectedModule], coverage: Sequence[Coverage]) -> Iterator[str]:
    families = {module.family for module in modules if module.kind not in BY_NAME or not kind_of(module).follows}
    bases = [one.base for one in coverage if one.family in (MLP, EXPERTS)]  # none of a model named in ways unknown here
    known = any(bases) or all(one.base is None for one in coverage)
    if ATTENTION in families and not families & {MLP, EXPERTS, OTHER} and known:
        yield (
            "attention-only: no MLP or expert layer is adapted. Attention-only LoRA does worse than MLP-only, also at "
            f"equal parameters; MLP and MoE layers matter most ({_REGRET})"
        )
    elif any(one.family == EXPERTS and one.base and not one.modules for one in coverage) and families:
        whole = sum(one.base or 0 for one in coverage)
        own = next(one.base or 0 for one in coverage if one.family == EXPERTS)
        yield (
            f"experts are not adapted, and hold {own / whole:.0%} of the base's parameters; MLP and MoE layers matter "
            f"most ({_REGRET})"
        )


def _of_spectra(path: str | None, modules: Sequence[InspectedModule]) -> Iterator[str]:
    some = [(module, module.spectrum) for module in modules if module.spectrum is not None and module.rank]
    live = [(module, spectrum) for module, spectrum in some if any(spectrum.values)]
    if len(live) < len(some):
        yield f"{len(some) - len(live):,} of {len(some):,} modules change nothing: their B·A is 0 (never trained?)"
    unused = [1 - spectrum.rank_energy / (module.rank or 1) for module, spectrum in live]
    if live and statistics.median(unused) >= _UNUSED:
        ranks = [module.rank or 0 for module, _ in live]
        entropy = statistics.median(spectrum.entropy_rank for _, spectrum in live)
        most = max(spectrum.rank_energy for _, spectrum in live)
        how = f"--rank {most}" if most < max(ranks) else "--energy 0.99"
        yield (
            f"unused rank: of rank {max(ranks)} the effective rank is {entropy:.3g} (median), and rank {most} keeps "
            "99% of every Σσ²" + (f": adaptertool truncate {shown(path)} -o OUT {how}" if path else "")
        )


def rules(facts: AdapterFacts, said: Facts) -> Iterator[str]:
    """Rules for LoRA; none for other kinds. said: what its config says."""
    if not any(module.scale is not None for module in facts.modules):
        return
    yield (f"learning rate: the best for LoRA is about {LEARNING_RATE} times that of full fine-tuning ({_REGRET})")
    rank, alpha = said.rank, said.alpha
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not 1 <= rank < 2**53:
        return
    if facts.rank_stabilised:
        yield (
            f"scale: rsLoRA's alpha/√r is {alpha / math.sqrt(rank):.4g}, where alpha/r would be {alpha / rank:.4g}; "
            "so that updates do not shrink as the rank grows (Kalajdzievski 2023)"
        )
    else:
        yield (
            f"scale: alpha/r is {alpha / rank:.4g}; the best learning rate is then nearly independent of the rank "
            f"({_REGRET}). rsLoRA's alpha/√r would be {alpha / math.sqrt(rank):.4g}, √r times as much, so that updates "
            "do not shrink as the rank grows (Kalajdzievski 2023)"
        )
