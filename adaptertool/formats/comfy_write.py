"""A file as ComfyUI (2026) reads it: factors under the names of the original model, and their alpha."""

from __future__ import annotations

from adaptertool.architectures.flat import is_flat
from adaptertool.architectures.parts import DENOISERS, ORIGINALS, likely_part, part_of, path_in
from adaptertool.errors import shown
from adaptertool.formats.saving import WritingOptions, in_order, refuse
from adaptertool.formats.spelled_out import Spelt, kept_metadata, notes_on, spelt_out, tensors_of
from adaptertool.kinds import kind_of
from adaptertool.kinds.dora_scale import SCALE
from adaptertool.spec.adapter import Module
from adaptertool.spec.portable import Draft, Portable

_WHAT, COMFY, WEIGHT = "ComfyUI's format", "comfy", ".weight"
# Its usual endings, instead of those of kohya's, which it reads too
_USUAL = {".lora_down.weight": ".lora_A.weight", ".lora_up.weight": ".lora_B.weight"}
_CORE = ".lora_mid.weight"  # which it looks for beside the endings of kohya's alone


def draft(portable: Portable, options: WritingOptions) -> Draft:
    """The file. Raises UnsupportedError for what it cannot hold."""
    found = spelt_out(portable, _WHAT, lambda change: _key_of(portable, change, options), replacing=COMFY)
    spelt = [_usual(one) for one in found]
    notes = notes_on(spelt)
    if rows := [one for one in spelt if (m := one.change.factors.get(SCALE)) and m.shape[1:2] in ((), (1,))]:
        notes.append(
            f"{len(rows)} layers, {shown(rows[0].change.name)} the first, are DoRA with norms of rows: ComfyUI divides "
            "by those of the base without the change, so what it applies is not what was trained"
        )
    tensors = in_order(tensor for one in spelt for tensor in tensors_of(one))
    return Draft(tensors=tensors, metadata=kept_metadata(portable.adapter), notes=notes)


def _key_of(portable: Portable, change: Module, options: WritingOptions) -> str:
    """What the keys of a change begin with. What takes the place of a parameter is under its layer's name, where it is
    the weight, else under its own, which ComfyUI finds in denoisers alone. Raises UnsupportedError for others."""
    if not kind_of(change).replaces:
        return name_of(portable, change, options)
    is_weight = change.target.endswith(WEIGHT)
    name = name_of(portable, change._replace(name=change.target.removesuffix(WEIGHT)), options)
    if not is_weight and not name.startswith(ORIGINALS):
        refuse(portable, [change], f"saved whole, and no weight: of those {_WHAT} has only what is in {ORIGINALS[:-1]}")
    return name


def _usual(one: Spelt) -> Spelt:
    if _CORE in one.endings.values():
        return one
    return one._replace(endings={role: _USUAL.get(ending, ending) for role, ending in one.endings.items()})


def name_of(portable: Portable, change: Module, options: WritingOptions) -> str:
    """What the keys of a change begin with. Raises UnsupportedError where the original model's names are not known."""
    if is_flat(change.name):
        refuse(
            portable,
            [change],
            "named as kohya's tools do, which only a base can tell: give --base; ComfyUI reads "
            "such files as they are, too",
        )
    part, path = part_of(change.name)
    if options.prefix is not None:
        return options.prefix + path
    if part is not None and part.name in DENOISERS and change.name.startswith(f"{part.name}."):
        refuse(
            portable,
            [change],
            "named as diffusers does, where ComfyUI has the names of the original model: the base tells them (--base); "
            "or say what names begin with, if they are the same (--prefix "
            "diffusion_model.)",
        )
    part = part or likely_part(path) or part_of("diffusion_model.")[0]
    assert part is not None
    part, path = path_in(part, path)
    return part.comfy + path
