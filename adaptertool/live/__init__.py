"""Adapters on a model in memory: merged in place for a while, and then taken back to the last bit. And the devices that
torch computes on.

The rest of this folder needs torch, which adaptertool itself does not: it is imported when a function below is called.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from adaptertool.arguments import Number, PathLike, decimal, parse_alphas
from adaptertool.errors import UsageError
from adaptertool.numerics.device import CPU, Device
from adaptertool.planning.sources import Reading

if TYPE_CHECKING:
    from torch import nn

    from adaptertool.live.session import Session

    Model = TypeVar("Model", bound=nn.Module)


@contextlib.contextmanager
def applied(
    model: Model,
    adapter: PathLike | Sequence[PathLike],
    alpha: Number = 1.0,
    *,
    weights: Sequence[Number] | None = None,
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
    restore: str = "copy",
    base: PathLike | None = None,
) -> Iterator[Model]:
    """Within the block `model` has the weights W + α·(W' − W), W' as `merge` makes it; after it those from before.

    model:   a torch.nn.Module, of transformers or not, on any device; or one that PEFT has wrapped: its base weights,
             where no adapter of it is active or merged
    adapter: a PEFT adapter directory, or several, each applied to what those before it produced
    alpha:   0 changes nothing, 1 is the merge; also beyond
    weights, renames, leave_out, expert_layout: as for `merge`
    restore: "copy" keeps a copy of every weight that is changed, on its device. "recompute" keeps none: the bits are
             read from the checkpoint `base`, one tensor at a time. That it holds them is checked before the change.

    The bits come back after an exception and an interrupt too, also where they come while weights are changed. What the
    block itself did to a changed weight (a step of an optimizer) is then lost. Parameters stay the same objects at the
    same addresses, written in place without a gradient; autograd notices, and refuses a graph made before the change.
    Only an end that was tied to another, and is not changed like it, is a parameter of its own for the block.

    Precision: that of `merge` with precision="fast". 16-bit weights are computed in float32, others in float64 (float32
    on devices without it, such as mps), norms in float64; rounded once, to the dtype of the weight. The error is at
    most max(1 ulp, (r+4)·u·(|W| + |s|·|B||A|)), u that of the arithmetic. No autocast, no TF32.

    Raises UsageError, MismatchError for an adapter that does not fit, UnsupportedError for quantised, sharded (DTensor)
    and absent (meta) weights, NonFiniteError; the model is then as it was.
    Source of α: M. Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv:2109.01903).
    """
    factor, reading = float(decimal(alpha, "alpha")), Reading(renames, leave_out, expert_layout)
    with _session(model, adapter, weights, reading, restore, base) as session:
        session.put(factor)
        yield model


def sweep(
    model: Model,
    adapter: PathLike | Sequence[PathLike],
    alphas: Number | Sequence[Number],
    *,
    weights: Sequence[Number] | None = None,
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
    restore: str = "copy",
    base: PathLike | None = None,
) -> Iterator[tuple[float, Model]]:
    """(α, model) for each α, the model as `applied` has it; each made from the original bits, never from another α.

    alphas: a number, several, or text as on the command line ("0:1:0.1"). The other arguments are those of `applied`.

    The original bits are back after the last, and where the loop is left by break or an exception: as soon as the
    iterator is let go of. One that is kept is ended by its close().
    """
    factors = [float(alpha) for alpha in parse_alphas(alphas)]
    reading = Reading(renames, leave_out, expert_layout)
    _require_torch()

    def steps() -> Iterator[tuple[float, Model]]:
        with _session(model, adapter, weights, reading, restore, base) as session:
            for factor in factors:
                session.put(factor)
                yield factor, model
                session.take_back()

    return steps()


@contextlib.contextmanager
def attached(
    model: Model,
    adapter: PathLike | Sequence[PathLike],
    *,
    weights: Sequence[Number] | None = None,
    renames: Sequence[str] = (),
    leave_out: Sequence[str] = (),
    expert_layout: str | None = None,
    compose: str = "sequential",
) -> Iterator[Model]:
    """Within the block the adapters act beside the weights, unmerged: y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ, by hooks on the layers.

    DoRA: y = d·(x·Wᵀ + s·(x·Aᵀ)·Bᵀ) + b with d = m/‖W + s·B·A‖. Several adapters act in order, each on the output that
    those before it gave, which is that of the merge but for rounding. weights, renames, leave_out, expert_layout,
    compose: as for `merge`; compose="mixed" is what PEFT does with several active adapters.

    The delta and its sum with the layer's output are computed in float32 (float64 for float64) and rounded once, to the
    dtype of the output; the norms in float64, once. Memory: the factors on the device of the model.

    What no output of a layer shows alone is put in place, as by `applied`: saved modules, biases, rows of tokens (whose
    unmerged form is the same), and, with a warning, parameters of fused experts, chains that hold a saved tensor,
    layers with a forward of their own, and weights that another module reads (F.linear(x, self.a.weight)), as its
    source tells.
    Warns too, after the first run, of layers that were passed by, and at the end of those that the model never called.
    What torch.compile has made before is dropped, with a warning, and compiled anew: it would pass the hooks by.

    Raises as `applied`. Source: the layers of PEFT 0.21.2, against which this is checked in the tests.
    """
    _require_torch()
    from adaptertool.live.attach import attaching  # noqa: PLC0415  # needs torch

    def tell(note: str) -> None:
        warnings.warn(note, stacklevel=6)

    with attaching(model, adapter, weights, Reading(renames, leave_out, expert_layout), compose, tell):
        yield model


@contextlib.contextmanager
def scaled(peft_model: Model, alpha: Number) -> Iterator[Model]:
    """Within the block the adapters that are active in a live PEFT model act α times: y = x·(W + α·(W' − W))ᵀ.

    They are those that are active when it begins. Nothing is merged. The scaling of LoRA is multiplied. Under DoRA that
    would be wrong (α = 0 would still rescale W): there each layer gives base + α·(full − base), from the outputs that
    it computes anyway; 16-bit ones are interpolated in float32 and rounded once. Blocks may be nested: their α are
    multiplied.

    Raises UsageError where there is no active adapter, UnsupportedError for what cannot be scaled this way: merged
    layers, modules_to_save, trainable tokens, trained biases, adapters on a residual base (PiSSA and its like), tuners
    other than LoRA, and variants of it other than DoRA. `applied` does most of these from the adapter's files.
    Source: the layers of PEFT 0.21.2, against which this is checked in the tests.
    """
    factor = float(decimal(alpha, "alpha"))
    _require_torch()
    from adaptertool.live.scale import scaling  # noqa: PLC0415  # needs torch

    with scaling(peft_model, factor):
        yield peft_model


@contextlib.contextmanager
def _session(
    model: nn.Module,
    adapter: PathLike | Sequence[PathLike],
    weights: Sequence[Number] | None,
    reading: Reading,
    restore: str,
    base: PathLike | None,
) -> Iterator[Session]:
    _require_torch()
    from adaptertool.live.session import open_session  # noqa: PLC0415  # needs torch

    with open_session(model, adapter, weights, reading, restore, base) as session:
        yield session


def device_named(name: str) -> Device:
    """The device, "cpu" or one of torch ("cuda", "cuda:1"), for products of large matrices.

    Raises UsageError where there is none, or torch is missing.
    """
    if name == CPU.name:
        return CPU
    _require_torch(f"the device {name!r} needs")
    from adaptertool.live.device import open_device  # noqa: PLC0415  # needs torch

    return open_device(name)


def _require_torch(what: str = "models in memory need") -> None:
    try:
        import torch  # noqa: F401, PLC0415  # no dependency of adaptertool
    except ImportError as error:
        raise UsageError(f"{what} torch: pip install 'adaptertool[live]' ({error})") from error
