"""Write adaptertool/architectures/diffusion.json: what tensors of image and video models are called in the checkpoints
of their original repositories and in diffusers, and which rows of which they are.

    HF_HUB_OFFLINE=1 python tools/derive_diffusion_names.py

diffusers' own converters of single files are recorded. Each is given marker tensors, whose elements say which tensor
and which row they are, so that what it returns says where each row comes from. Some ask for tensors by name: these get
a marker for whatever they ask. Others rename what is there: for them names are sought that they turn into those of
diffusers' model, which is built on the meta device, by undoing the replacements that stand in their source. Layer
numbers are written as *, and as $ where it is the last layer alone. Takes a minute.
"""

import ast
import inspect
import json
import logging
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders import single_file_utils as converters

OUTPUT = Path(__file__).parent.parent / "adaptertool" / "architectures" / "diffusion.json"
BIG = 10**6  # of a marker: the number of the tensor times this, plus the row
ROWS = 36
LAYER = r"(?:blocks|layers|refiner)\."  # then comes the number of a layer
STATES = 3000  # names that are tried for one tensor
Row = tuple[str, str, list[int] | str | None]  # diffusers' name, the original's, which rows

# class -> (converter, names that it looks for before it asks, rows where it counts on a size)
ASKING: Mapping[str, tuple[Callable[..., Any], list[str], Mapping[str, int]]] = {
    "FluxTransformer2DModel": (
        converters.convert_flux_transformer_checkpoint_to_diffusers,
        [*(f"{kind}_blocks.{i}." for kind in ("double", "single") for i in range(2)), "guidance_in"],
        {"linear1": 7 * 3072},
    ),
    "ChromaTransformer2DModel": (
        converters.convert_chroma_transformer_checkpoint_to_diffusers,
        [
            f"{kind}.{i}."
            for kind in ("double_blocks", "single_blocks", "distilled_guidance_layer.layers")
            for i in range(2)
        ],
        {"linear1": 7 * 3072},
    ),
    "SD3Transformer2DModel": (
        converters.convert_sd3_transformer_checkpoint_to_diffusers,
        [*(f"joint_blocks.{i}.x_block.attn.ln_q." for i in range(3)), "joint_blocks.0.x_block.attn2.qkv."],
        {},
    ),
    "AuraFlowTransformer2DModel": (
        converters.convert_auraflow_transformer_checkpoint_to_diffusers,
        [f"{kind}_layers.{i}." for kind in ("double", "single") for i in range(2)],
        {},
    ),
    "MochiTransformer3DModel": (converters.convert_mochi_transformer_checkpoint_to_diffusers, [], {}),
    "SanaTransformer2DModel": (
        converters.convert_sana_transformer_to_diffusers,
        [f"blocks.{i}." for i in range(2)],
        {},
    ),
}
# class -> (converter, settings with which it has all modules that there are, one after the other)
RENAMING: Mapping[str, tuple[Callable[..., Any], list[dict[str, Any]]]] = {
    "WanTransformer3DModel": (
        converters.convert_wan_transformer_to_diffusers,
        [{"num_layers": 2}, {"num_layers": 2, "image_dim": 1280, "added_kv_proj_dim": 5120}],
    ),
    "WanVACETransformer3DModel": (
        converters.convert_wan_transformer_to_diffusers,
        [{"num_layers": 2, "vace_layers": [0, 1]}],
    ),
    "HunyuanVideoTransformer3DModel": (
        converters.convert_hunyuan_video_transformer_to_diffusers,
        [{"num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 2}],
    ),
    "LTXVideoTransformer3DModel": (converters.convert_ltx_transformer_checkpoint_to_diffusers, [{"num_layers": 2}]),
    "LTX2VideoTransformer3DModel": (converters.convert_ltx2_transformer_to_diffusers, [{"num_layers": 2}]),
    "Lumina2Transformer2DModel": (
        converters.convert_lumina2_to_diffusers,
        [{"num_layers": 2, "num_refiner_layers": 2}],
    ),
    "ZImageTransformer2DModel": (
        converters.convert_z_image_transformer_checkpoint_to_diffusers,
        [{"n_layers": 2, "n_refiner_layers": 2}],
    ),
    "Flux2Transformer2DModel": (
        converters.convert_flux2_transformer_checkpoint_to_diffusers,
        [{"num_layers": 2, "num_single_layers": 2}],
    ),
    "CosmosTransformer3DModel": (  # of Cosmos Predict 2, and Anima
        converters.convert_cosmos_transformer_checkpoint_to_diffusers,
        [{"num_layers": 2, "extra_pos_embed_type": None}],
    ),
    "Krea2Transformer2DModel": (converters.convert_krea2_transformer_checkpoint_to_diffusers, [{"num_layers": 2}]),
}
# class -> settings: models whose original repositories have the names of diffusers
ALIKE: Mapping[str, dict[str, Any]] = {
    "QwenImageTransformer2DModel": {"num_layers": 2},
    "QwenImage21Transformer2DModel": {"num_layers": 2},
    "HiDreamImageTransformer2DModel": {
        "patch_size": 2,
        "num_layers": 2,
        "num_single_layers": 2,
        "caption_channels": [8, 8],
        "llama_layers": [0, 1],
    },
    "ErnieImageTransformer2DModel": {"num_layers": 2},
}
# Replacements that a converter makes otherwise than by dictionaries and `replace`
MORE: Mapping[str, list[tuple[str, str]]] = {
    "HunyuanVideoTransformer3DModel": [
        ("single_blocks", "single_transformer_blocks"),
        *(("linear1", f"attn.to_{part}") for part in "qkv"),
        ("linear1", "proj_mlp"),
    ],
    "Flux2Transformer2DModel": [
        ("double_blocks", "transformer_blocks"),
        ("single_blocks", "single_transformer_blocks"),
        *(("img_attn.qkv", f"attn.to_{part}") for part in "qkv"),
        *(("txt_attn.qkv", f"attn.add_{part}_proj") for part in "qkv"),
    ],
}


class Asked(dict[str, torch.Tensor]):
    """A checkpoint that holds whatever is asked for."""

    def __init__(self, sizes: Mapping[str, int], names: list[str]) -> None:
        super().__init__()
        self.sizes, self.made = sizes, list[str]()
        for name in names:
            self[name] = torch.zeros(1)

    def marker(self, name: str) -> torch.Tensor:
        rows = next((size for part, size in self.sizes.items() if part in name), ROWS)
        self.made.append(name)
        column = torch.arange(rows) + BIG * (len(self.made) - 1)
        return column if name.endswith((".bias", ".scale")) else torch.stack([column, column], 1)

    def pop(self, name: str, *_: Any) -> Any:
        if name in self:
            super().pop(name)
        return self.marker(name)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.marker(name)

    def get(self, name: str, *_: Any) -> Any:
        return self.marker(name)


def rows_of(out: Mapping[str, Any], made: list[str], sizes: Mapping[str, int]) -> Iterator[Row]:
    """Which rows of which tensor each of the results is."""
    for ours, tensor in out.items():
        if tensor is None or tensor.ndim == 0 or tensor.shape[-1] == 1:
            continue
        column = tensor if tensor.ndim == 1 else tensor[:, 0]
        numbers = {int(number) for number in column // BIG}
        if len(numbers) != 1 or (tensor.ndim > 1 and tensor.shape[1] != 2):
            continue
        original, rows = made[numbers.pop()], (column % BIG).tolist()
        total = next((size for part, size in sizes.items() if part in original), ROWS)
        if rows == list(range(total)):
            yield ours, original, None
        elif rows == [*range(total // 2, total), *range(total // 2)]:
            yield ours, original, "swapped"
        elif rows == list(range(rows[0], rows[-1] + 1)):
            unit = math.gcd(rows[0], total, len(rows))
            yield ours, original, [rows[0] // unit, (rows[-1] + 1) // unit, total // unit]
        else:
            raise ValueError(f"{ours} is no part of {original} that is known")


def asked(convert: Callable[..., Any], names: list[str], sizes: Mapping[str, int]) -> list[Row]:
    checkpoint = Asked(sizes, names)
    return list(rows_of(convert(checkpoint), checkpoint.made, sizes))


def replacements(convert: Callable[..., Any]) -> list[tuple[str, str]]:
    """The pairs of strings of dictionaries and of `replace` in the source of a converter, that differ."""
    pairs = list[tuple[str, str]]()
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(convert)))):
        some = list[tuple[Any, Any]]()
        if isinstance(node, ast.Dict):
            some = list(zip(node.keys, node.values, strict=True))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "replace":
            some = [(node.args[0], node.args[1])]
        for one, other in some:
            if all(isinstance(part, ast.Constant) and isinstance(part.value, str) for part in (one, other)):
                pairs.append((one.value, other.value))
    return [(old, new) for old, new in pairs if old != new and new]


def renamed(convert: Callable[..., Any], ours: str, pairs: list[tuple[str, str]]) -> list[Row]:
    """The names that a converter turns into `ours`: those for which most replacements are undone."""
    depths, found = {ours: 0}, list[tuple[int, Row]]()
    for state in (states := [ours]):  # grows while it is walked
        for old, new in pairs:
            before = state.replace(new, old)
            if new in state and before not in depths and len(states) < STATES:
                states.append(before)
                depths[before] = depths[state] + 1
    if "norm" in ours:
        depths |= {state.replace(".weight", ".scale"): depth for state, depth in depths.items()}
    for state, depth in depths.items():
        checkpoint = Asked({"qkv": 2304 + 2 * 768, "linear1": 7 * 3072}, [])
        plain: dict[str, Any] = {state: checkpoint.marker(state)}
        try:
            out = convert(plain)
        except (KeyError, IndexError, ValueError, RuntimeError, UnboundLocalError):
            continue
        found += [(depth, row) for row in rows_of(out, checkpoint.made, checkpoint.sizes) if row[0] == ours]
    most = max((depth for depth, _ in found), default=0)
    return [row for depth, row in found if depth == most]


def undone(name: str, convert: Callable[..., Any], settings: list[dict[str, Any]]) -> Iterator[Row]:
    """The rows of a class whose converter renames, of the first of its layers. Raises ValueError where the converter
    does not make of all of them what they were sought for."""
    pairs = [*replacements(convert), *MORE.get(name, ())]
    for one in settings:
        with torch.device("meta"):
            model = getattr(diffusers, name)(**one)
        wanted = [ours for ours in model.state_dict() if not re.search(rf"{LAYER}[1-9]", ours)]
        rows = [row for ours in wanted for row in renamed(convert, ours, pairs)]
        if lost := set(wanted) - {ours for ours, *_ in rows}:
            print(f"  of {name} no other name is found for", *sorted(lost))
        yield from rows


def starred(rows: list[Row]) -> list[str]:
    """The rows with a * for the numbers of layers, each once, and one for all parameters of a module."""
    kinds = dict[tuple[str, str], dict[str, str]]()
    for ours, original, part in rows:
        key = (re.sub(rf"({LAYER})\d+", r"\1*", ours), re.sub(rf"({LAYER})\d+", r"\1*", original))
        numbers = re.findall(rf"{LAYER}(\d+)", ours)
        said = "" if part is None else part if isinstance(part, str) else " ".join(map(str, part))
        kinds.setdefault(key, {})[numbers[0] if numbers else ""] = said
    lines = dict[str, None]()
    for (ours, original), said in kinds.items():
        last = max(said, key=lambda number: int(number or 0))
        others = {part for number, part in said.items() if number != last} or {said[last]}
        if len(others) > 1:
            raise ValueError(f"the layers of {ours} differ in more than the last")
        found = {(ours, original): others.pop()}
        if said[last] not in found.values():
            found[ours.replace("*", "$", 1), original.replace("*", "$", 1)] = said[last]
        for paths, part in found.items():
            kind = re.search(r"\.(weight|bias)$", ours)
            if kind and original.endswith(kind[0]):
                paths = tuple(path.removesuffix(kind[1]) for path in paths)
            lines[" ".join((*dict.fromkeys(paths), part)).rstrip()] = None
    return sorted(lines)


def main() -> None:
    logging.disable()
    tables = {name: starred(asked(convert, names, sizes)) for name, (convert, names, sizes) in ASKING.items()}
    tables |= {name: starred(list(undone(name, *how))) for name, how in RENAMING.items()}
    for name, settings in ALIKE.items():
        with torch.device("meta"):
            tables[name] = starred([(ours, ours, None) for ours in getattr(diffusers, name)(**settings).state_dict()])
    for name, lines in tables.items():
        print(f"{name}: {len(lines)}")
    content = {"diffusers": diffusers.__version__, "models": tables}
    OUTPUT.write_text(json.dumps(content, indent=0) + "\n")


if __name__ == "__main__":
    main()
