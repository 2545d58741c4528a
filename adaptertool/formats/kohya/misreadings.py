"""Other ways to read the alphas of a single file, which some tools take: for verify.

All change scales alone. A tool that leaves out magnitudes is known by its kind (kinds.dora).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from adaptertool.kinds import kind_of
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.plan import Edit


def misreadings(adapter: Adapter) -> Mapping[str, Callable[[Edit], Edit]]:
    """What the edits of the adapter are to a tool that has a fault, by the name of the fault.

    alpha-ignored: every scale is 1. alpha-squared: (alpha/r)², as where LyCORIS merges LoHa and LoKr. alpha-of-others:
    the alpha that most modules have is that of all, as where diffusers loads files of Stable Diffusion.
    """
    own = {module.name: (module.scale, module.rank) for module in adapter.modules if module.rank}
    if all(scale == 1 for scale, _ in own.values()):
        return {}
    usual = Counter(scale * rank for scale, rank in own.values()).most_common(1)[0][0]
    found = {
        "alpha-ignored": {name: 1 / scale for name, (scale, _) in own.items()},
        "alpha-squared": {name: scale for name, (scale, _) in own.items()},
        "alpha-of-others": {name: usual / (scale * rank) for name, (scale, rank) in own.items()},
    }
    return {fault: _scaled(times) for fault, times in found.items()}


def _scaled(times: Mapping[str, float]) -> Callable[[Edit], Edit]:
    def read(edit: Edit) -> Edit:
        return edit if kind_of(edit).replaces else edit._replace(scale=edit.scale * times.get(edit.module, 1.0))

    return read
