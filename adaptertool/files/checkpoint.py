"""A checkpoint on disk: its shards, checked against the index, and the assets that travel with it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adaptertool.errors import InputError, MismatchError, shown
from adaptertool.files import store_of
from adaptertool.files.assets import INDEX as INDEX
from adaptertool.files.assets import MANIFEST as MANIFEST
from adaptertool.files.assets import RUN, lacking
from adaptertool.files.assets import SUMS as SUMS
from adaptertool.files.assets import is_ours as is_ours
from adaptertool.files.assets import read_assets as read_assets
from adaptertool.files.gguf import is_gguf, read_gguf
from adaptertool.files.header import Header, read_header
from adaptertool.files.hints import another_file, found_below, not_there
from adaptertool.files.hub import to_complete
from adaptertool.files.jsonfile import load_json
from adaptertool.files.reader import exists, names_in
from adaptertool.files.side_by_side import each
from adaptertool.files.store import FOLDER
from adaptertool.patterns import regex
from adaptertool.records import dataclass
from adaptertool.spec.plan import Asset, KeptWeight
from adaptertool.spec.tensors import Ref

SINGLE = "model.safetensors"


@dataclass(frozen=True, slots=True)
class WeightNames:
    """How the files of weights in a folder are called."""

    single: str
    index_file: str
    shard: re.Pattern[str]


NAMES = WeightNames(SINGLE, INDEX, regex(r"model-\d+-of-\d+\.safetensors"))


class Adapters(NamedTuple):
    """What tells an adapter from a checkpoint. Which formats of adapters there are is known above (formats)."""

    recognise: Callable[[Path], bool]
    files: tuple[str, ...]  # patterns of the names of their files, which stay behind


_NO_ADAPTERS = Adapters(lambda _: False, ())


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A directory with shards and assets, or one file, of safetensors or GGUF (then without assets)."""

    path: Path
    headers: tuple[Header, ...]
    tensors: Mapping[str, Ref]
    config: Mapping[str, Any] | None
    assets: tuple[Asset, ...]
    notes: tuple[str, ...]
    is_file: bool = False
    index: Mapping[str, Any] | None = None  # as its file has it, where there is one
    left: tuple[str, ...] = ()  # names of files that are neither shards nor assets
    # Of a pipeline, the folders that are models of their own: its tensors have these before their names, with a dot,
    # and its config has theirs by these
    components: tuple[str, ...] = ()
    stored_as: Mapping[str, str] | None = None  # dtypes of outputs, where others than those here; headers follow
    # Weights that stay codes, by the names of these and of their scales: `tensors` has the weights, `headers` these
    kept: Mapping[str, KeptWeight] | None = None

    @property
    def named(self) -> dict[str, Path]:
        """The files of its weights, by name."""
        return {self.name_of(header): header.path for header in self.headers}

    def name_of(self, header: Header) -> str:
        """The name of one of its files: the path inside the directory, with /."""
        return header.path.name if self.is_file else header.path.relative_to(self.path).as_posix()

    @property
    def gguf(self) -> Mapping[str, Any] | None:
        """The fields of a GGUF file; None where it is none."""
        return self.headers[0].typed if self.headers else None

    @property
    def is_shard(self) -> bool:
        """Whether the file is one of several that make a checkpoint."""
        return self.is_file and NAMES.shard.fullmatch(self.path.name) is not None

    def renamed(self, names: Mapping[str, str]) -> Checkpoint:
        """The checkpoint with other names for some tensors. Raises MismatchError where two would have the same."""
        tensors: dict[str, Ref] = {}
        for name, ref in self.tensors.items():
            new = names.get(name, name)
            if new in tensors:
                raise MismatchError(f"{self.path}: {shown(name)} and another tensor would both be {shown(new)}")
            tensors[new] = ref if new == name else ref.renamed(new)
        return dataclasses.replace(self, tensors=tensors)


def open_checkpoint(path: Path, adapters: Adapters = _NO_ADAPTERS) -> Checkpoint:
    """Read all headers, the index and the config of a checkpoint. Raises InputError; reads no weights."""
    if store_of(path).look(path) == FOLDER:
        return open_directory(path, adapters)
    if not exists(path):
        raise InputError(not_there(path))
    if path.name.endswith(".index.json"):
        raise InputError(f"{path} is an index; give the directory that it stands in")
    if is_gguf(path):
        if path.suffix == ".safetensors":
            raise InputError(f"{path} is a GGUF file; give it a name that ends in .gguf")
        header = read_gguf(path)
        return Checkpoint(path, (header,), header.tensors, None, (), (), is_file=True)
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is neither a directory nor a .safetensors file, nor GGUF{another_file(path)}")
    header, notes = read_header(path), list[str]()
    # Not part of the output, but a config that stands beside the file says what the file is.
    if NAMES.shard.fullmatch(path.name):
        notes.append(f"{path.name} is one shard of many; the others are not read. The checkpoint is {path.parent}")
    return Checkpoint(path, (header,), header.tensors, _config(path.parent), (), tuple(notes), is_file=True)


def open_directory(root: Path, adapters: Adapters = _NO_ADAPTERS, own: WeightNames = NAMES) -> Checkpoint:
    """The same of a directory whose files of weights have such names. Raises InputError."""
    # A link to nothing, as to a blob that the hub's cache has lost, is there: what it names is then missing.
    look = store_of(root).look
    has_single, has_index = look(root / own.single) is not None, look(root / own.index_file) is not None
    # Assets first: what identifies a config or an index is noted before it is read.
    assets, left = read_assets(root, adapters.files, index=own.index_file)
    if unfinished := next(
        (name for name in left if name.startswith(".adaptertool-") and exists(root / name / RUN)), None
    ):
        raise InputError(
            f"{root} is not finished: {unfinished[:-1]} in it is of the run that makes it; wait, or go on with it"
        )
    notes: list[str] = []
    index: Mapping[str, Any] | None = None
    if has_index:
        index = load_json(root / own.index_file)
        headers, note = _open_shards(root / own.index_file, index)
        notes += note
    elif has_single:
        headers = (read_header(_contained(root / own.index_file, own.single)),)
    else:
        raise InputError(_nothing_found(root, adapters))
    names = {header.path.name for header in headers}
    tensors = {name: ref for header in headers for name, ref in header.tensors.items()}
    stray = [name for name in names_in(root, "*") if own.shard.fullmatch(name) and name not in names]
    if stray and not has_index:
        raise InputError(f"{root} holds {stray[0]}, but it stands beside {own.single}; remove the stale file")
    for name in stray:
        _require_stale(root / name, tensors)
        notes.append(f"left out as stale, since the index has all of its tensors in other files: {name}")
    left = [name for name in left if name not in names]
    if others := [name for name in left if name not in stray]:
        listed = ", ".join(map(shown, others))
        notes.append(f"left out (other copies of the weights, or not part of the model): {listed}")
    notes += lacking(root, adapters.files)
    return Checkpoint(root, headers, tensors, _config(root), assets, tuple(notes), index=index, left=tuple(left))


def _require_stale(path: Path, tensors: Mapping[str, Ref]) -> None:
    """Raise InputError where a shard that the index does not name holds tensors that are nowhere else."""
    where = f"{path.parent} holds {path.name}, but the index does not name it"
    try:
        only = [name for name in read_header(path).tensors if name not in tensors]
    except InputError as error:
        raise InputError(f"{where}; remove the stale file ({error})") from error
    if only:
        raise InputError(f"{where}, and {shown(only[0])} is in no other file; remove the one that is stale")


def _config(root: Path) -> Mapping[str, Any] | None:
    return load_json(root / "config.json") if exists(root / "config.json") else None


def _nothing_found(root: Path, adapters: Adapters) -> str:
    if adapters.recognise(root):
        return f"{root} is an adapter, not a checkpoint; the checkpoint comes first, then the adapters"
    if pickles := names_in(root, "*pytorch_model*.bin"):
        return f"{root} has only pickled weights ({pickles[0]}); pickles are never opened: convert to safetensors"
    others = [name for end in ("*.safetensors", "*.gguf") for name in names_in(root, end) if exists(root / name)]
    hint = f"; to use {shown(others[0])}, give the path of that file" if others else found_below(root, (SINGLE, INDEX))
    hint = hint or to_complete(root) or ("" if names_in(root, "*") else "; it is empty")
    return f"{root} has neither {SINGLE} nor {INDEX}{hint}"


def _contained(index_path: Path, name: str) -> Path:
    """The path of shard `name`: a plain name, whose real file lies in the checkpoint or the hub cache's blobs."""
    plain = name.endswith(".safetensors") and not name.startswith("..") and name.isprintable()
    if not plain or re.search(r"[/\\:]", name):
        raise InputError(f"{index_path} names the shard '{shown(name)}'; a shard is a plain .safetensors file name")
    root, path = index_path.parent, index_path.parent / name
    try:
        real, real_root = (store_of(root).real(one) for one in (path, root))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{shown(path)} is missing, though the checkpoint needs it{to_complete(root)}") from error
    # A component of a pipeline lies one level below
    snapshots = (folder for folder in list(real_root.parents)[:2] if folder.name == "snapshots")
    in_hub_cache = any(real.parent == folder.parent / "blobs" for folder in snapshots)
    if real.parent != real_root and not in_hub_cache:
        raise InputError(f"{path} is a link that leads out of the checkpoint, to {shown(real)}")
    return path


def _open_shards(index_path: Path, index: Mapping[str, Any]) -> tuple[tuple[Header, ...], list[str]]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index_path} has no weight_map")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise InputError(f"{index_path}: weight_map must map tensor names to file names")
    by_shard: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        by_shard.setdefault(shard, set()).add(tensor)
    # MLX's index names that one alone
    single = index_path.with_name(re.sub(r"(\.safetensors)\.index(\.[\w-]+)?\.json$", r"\2\1", index_path.name))
    if store_of(single).look(single) is not None and by_shard.keys() != {single.name}:
        raise InputError(f"{single.parent} has both {single.name} and {index_path.name}; remove the one that is stale")
    headers = tuple(each(read_header, [_contained(index_path, shard) for shard in sorted(by_shard)]))
    for header in headers:
        _agree(index_path, header, by_shard[header.path.name])
    total = sum(ref.spec.nbytes for header in headers for ref in header.tensors.values())
    metadata = index.get("metadata")
    claimed = metadata.get("total_size") if isinstance(metadata, dict) else None
    if claimed is not None and claimed != total:
        return headers, [
            f"{index_path.name} gives total_size {shown(claimed)[:80]}, but the tensors have {total} bytes"
        ]
    return headers, []


def _agree(index_path: Path, header: Header, named: set[str]) -> None:
    present = header.tensors.keys()
    if missing := sorted(named - present):
        raise InputError(f"{index_path} puts {shown(missing[0])} in {header.path.name}, which does not hold it")
    if extra := sorted(present - named):
        raise InputError(f"{header.path} holds {shown(extra[0])}, which {index_path.name} does not put there")


def load_manifest(root: Path) -> dict[str, Any]:
    """What adaptertool wrote of the files of a checkpoint, whose names need not be UTF-8."""
    return load_json(root / MANIFEST, halves=True)


def has_manifest(checkpoint: Checkpoint) -> bool:
    """Whether adaptertool made the checkpoint."""
    return not checkpoint.is_file and exists(checkpoint.path / MANIFEST)
