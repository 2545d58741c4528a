"""The files beside the weights of a checkpoint: those that travel with it, and those that stay behind."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Collection, Iterator
from pathlib import Path

from adaptertool.errors import shown
from adaptertool.files import store_of
from adaptertool.files.hub import absent, snapshot_of, to_complete
from adaptertool.files.reader import open_input
from adaptertool.files.side_by_side import each
from adaptertool.files.store import FILE
from adaptertool.files.tokenizer import is_tokenizer_file
from adaptertool.files.trainer import is_trainer_file, is_trainer_folder
from adaptertool.patterns import regex
from adaptertool.spec.plan import Asset

MODEL_INDEX = "model_index.json"  # of a pipeline of diffusers
INDEX = "model.safetensors.index.json"
MANIFEST = "adaptertool.manifest.json"
SUMS = "SHA256SUMS"
RUN = "adaptertool.run"  # in the folder of a run whose OUT is in a store (files.remote)
STAGING = r"(\..+)?\.adaptertool-[0-9a-f]{16}"  # names of the directories that runs work in (files.leftovers)

# Other copies of the weights: beside edited tensors they would be stale. And sums of the files, which no longer are.
# They stay behind, and it is said; so do the state of trainers, and adapters, which loaders would apply to the output.
OTHER_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "*.safetensors.index.*.json",
    "pytorch_model*.bin", "pytorch_model*.bin.index.json",
    "consolidated*.pth", "tf_model*.h5", "flax_model*.msgpack", "model.ckpt*",
    "diffusion_pytorch_model*.bin", "diffusion_flax_model*.msgpack", "*.ckpt", "openvino_model.*",
    "rust_model.ot", "*.gguf", "*.onnx", "*.onnx_data", "*.onnx.data", SUMS,
)  # fmt: skip
# What those who load a model never download
_OF_THE_HUB = regex(r"(^|/)\.git|^LICENSE|^USE_POLICY|\.(md|png|jpe?g|gif|pdf)$", re.IGNORECASE)
_LISTED = 8  # files that are named
OTHER_FOLDERS = frozenset({".git", ".cache", "original", "metal", "onnx", "openvino", "coreml"})


def read_assets(
    root: Path, adapter_files: tuple[str, ...] = (), *, index: str = INDEX, apart: Collection[str] = ()
) -> tuple[tuple[Asset, ...], list[str]]:
    """The files to carry over, and the names of those to leave behind (the shards among them).

    adapter_files: patterns of the names of adapters' files, which are left behind
    index: the name of the index of the shards, which is carried over
    apart: folders that are read otherwise
    """
    carried: list[Path] = []
    left: list[str] = []
    for path in _walk(root, root, left, apart):
        name = path.relative_to(root).as_posix()
        if name == MANIFEST or (name == SUMS and store_of(root).look(root / MANIFEST) == FILE):  # ours, of these files
            continue
        if path.parent == root and name != index and (_is_other(name, adapter_files) or is_trainer_file(name)):
            left.append(name)
            continue
        carried.append(path)

    def asset(path: Path) -> Asset:
        with open_input(path) as file:
            return Asset(path, file.stamp, path.relative_to(root).as_posix(), file.size)

    return tuple(each(asset, carried)), left


def lacking(root: Path, adapter_files: tuple[str, ...]) -> list[str]:
    """What to say of a snapshot in the cache of the hub that has not all that would be carried over of its repository;
    nothing of other folders."""
    own = snapshot_of(root)
    if own is None or own.inside:
        return []
    known = absent(root)
    if known is None:
        names = [entry.name for entry in store_of(root).entries(root)]
        if MODEL_INDEX in names or any(map(is_tokenizer_file, names)):
            return []
        return [f"there is no tokenizer in {own}, which may be for want of downloading it{to_complete(root)}"]
    names = [name for name in known if not (_stays(name, adapter_files) or _OF_THE_HUB.search(name))]
    if not names:
        return []
    listed = ", ".join(map(shown, names[:_LISTED])) + (" ..." if len(names) > _LISTED else "")
    return [f"not there, and so not in what is made, though {own} has it: {listed}{to_complete(root)}"]


def _stays(name: str, adapter_files: tuple[str, ...]) -> bool:
    """Whether a file of a repository would be left behind."""
    first, *inside = name.split("/")
    if inside:
        return first in OTHER_FOLDERS or is_trainer_folder(first)
    return _is_other(name, adapter_files) or is_trainer_file(name)


def _is_other(name: str, adapter_files: tuple[str, ...]) -> bool:
    return any(_fits(name, pattern) for pattern in (*OTHER_WEIGHTS, *adapter_files))


def _fits(name: str, pattern: str) -> bool:
    """Whether a name matches a pattern that has stars alone. Its ends are compared first, since fnmatch compiles each
    pattern that it is given."""
    begin, end = pattern.partition("*")[0], pattern.rpartition("*")[2]
    return name.startswith(begin) and name.endswith(end) and fnmatch.fnmatchcase(name, pattern)


def is_ours(folder: Path) -> bool:
    """Whether a run of ours made it, or works in it: an OUT, or its staging directory."""
    return re.fullmatch(STAGING, folder.name) is not None or store_of(folder).look(folder / MANIFEST) is not None


def _walk(root: Path, here: Path, left: list[str], apart: Collection[str] = ()) -> Iterator[Path]:
    """The files below `here`, those of a folder before those of its folders; what is passed over goes into `left`."""
    entries = store_of(here).entries(here)
    folders = []
    for name, link in ((entry.name, entry.is_link) for entry in entries if entry.is_folder):
        if here == root and name in apart:
            continue
        other = here == root and (name in OTHER_FOLDERS or is_trainer_folder(name))
        if other or link or is_ours(here / name):
            left.append((here / name).relative_to(root).as_posix() + "/")
        else:
            folders.append(here / name)
    yield from (here / entry.name for entry in entries if not entry.is_folder)
    for folder in folders:
        yield from _walk(root, folder, left)
