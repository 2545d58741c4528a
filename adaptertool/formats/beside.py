"""What lies beside an adapter in its folder: every file there is used, known to hold no weights, or said.

Heads, projectors and embeddings that were trained with the adapter are often saved in files of their own. Lost in
silence they make another model than the one that was trained.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from adaptertool.codecs import COMPUTED
from adaptertool.errors import InputError, UnsupportedError, UsageError, shown
from adaptertool.files import store_of
from adaptertool.files.checkpoint import INDEX, SINGLE, Checkpoint, is_ours, read_assets
from adaptertool.files.header import Header
from adaptertool.files.hints import from_pickle
from adaptertool.files.jsonfile import load_json
from adaptertool.files.magic import START, told_apart
from adaptertool.files.parsed import Parsed
from adaptertool.files.reader import exists, is_file, open_input, read_exact
from adaptertool.files.store import Entry
from adaptertool.files.trainer import is_trainer_file, is_trainer_folder
from adaptertool.formats.format import BaseHas, FileNames
from adaptertool.kinds import FULL
from adaptertool.kinds.full import TUNED
from adaptertool.records import dataclass, field
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.plan import Asset
from adaptertool.spec.tensors import Ref, Stamp

_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_MAY_HOLD = _PICKLES | frozenset(
    {
        ".safetensors", ".npz", ".npy", ".h5", ".hdf5", ".keras", ".msgpack", ".ot", ".joblib",
        ".params", ".weights", ".nemo",
    }
)  # fmt: skip
_EXPORTS = frozenset({".gguf", ".ggml", ".onnx", ".onnx_data", ".tflite", ".mlmodel"})  # nothing is trained into these
# Text, pictures, tokenizers (.model is SentencePiece's)
_NO_WEIGHTS = frozenset(
    {
        ".md", ".txt", ".rst", ".json", ".jsonl", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".conf", ".lock", ".log",
        ".out", ".err", ".csv", ".tsv", ".xml", ".html", ".css", ".js", ".py", ".sh", ".ipynb", ".jinja", ".jinja2",
        ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp", ".bmp", ".pdf", ".mp4", ".wav", ".mp3", ".flac",
        ".ico", ".ttf", ".parquet", ".arrow", ".db",
        ".model", ".tiktoken", ".vocab", ".bpe",
    }
)  # fmt: skip
_LISTED = 8  # files that an error lists


@dataclass(slots=True)
class Beside:
    """What was found: tensors that replace the base's, the files that they are in, and what the user should know."""

    modules: list[Module] = field(default_factory=list)
    files: dict[Path, Stamp] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    left: dict[str, tuple[str, ...]] = field(default_factory=dict)  # of leave_out, what was found: names of files


def read_beside(
    files: Parsed,
    own: FileNames,
    taken: Sequence[Module],
    base: Checkpoint | None,
    base_has: BaseHas,
    leave_out: Sequence[str],
) -> Beside:
    """The files beside config and factors of an adapter, which are its `own`.

    A safetensors file whose tensors all have names of the base is read: they replace the base's. Any other that may
    hold weights raises UnsupportedError, unless `leave_out` has it: regexes that are found in its name, or paths.

    taken: what the adapter's own file holds; InputError where a file beside it holds a tensor for the same

    Raises UsageError where `leave_out` is no list of regexes or names.
    """
    if isinstance(leave_out, str) or not all(isinstance(text, str) and text for text in leave_out):
        raise UsageError("what to leave out is a list of regexes or names of files (text), none of them empty")
    root, found, lost, earlier = files.path, Beside(), dict[str, str](), list[str]()
    known = {} if base is None else {header.path.resolve() for header in base.headers}
    for path in _files(root, own, base, found.notes):
        name = path.relative_to(root).as_posix()
        if name in (own.config, own.weights) or path.resolve() in known or not _may_hold(path):
            continue
        if patterns := [text for text in leave_out if _means(text, path, name)]:
            found.left |= {text: (*found.left.get(text, ()), name) for text in patterns}
            found.notes.append(f"{root}: {shown(name)} is left out, and what it holds is lost")
        elif own.earlier is not None and own.earlier.fullmatch(name):
            earlier.append(name)
        elif path.suffix.lower() in _EXPORTS:
            found.notes.append(f"{path} is an export to another format, and is not read")
        elif path.suffix.lower() in _PICKLES and exists(path.with_suffix(".safetensors")):
            found.notes.append(f"{path} is not read: {path.with_suffix('.safetensors').name} stands beside it")
        elif (why := _not_read(path, in_root=path.parent == root)) or (
            why := _not_of(files.header(name), own, base, base_has)
        ):
            lost[name] = why
        else:
            _take(found, files.header(name), own.prefix, taken)
    if lost:
        raise UnsupportedError(_lost(root, lost))
    if earlier:
        found.notes.append(f"{root}: {shown(earlier[0])} and its like are of earlier steps, and not read")
    return found


def require_used(leave_out: Sequence[str], adapters: Sequence[Adapter]) -> None:
    """Raise UsageError where there is nothing that one of them leaves out: it may be mistyped."""
    for text in leave_out:
        if not any(text in adapter.left for adapter in adapters):
            where = ", ".join(str(adapter.path) for adapter in adapters) or "the sources, which are no adapters"
            raise UsageError(
                f"{text!r} leaves nothing out: there is no such file with weights, nor such a model of a pipeline, in "
                f"{where}"
            )


def left_out(adapters: Iterable[Adapter]) -> dict[str, list[str]]:
    """What the manifest says of the files that were left out; nothing where there are none."""
    names = {name for adapter in adapters for found in adapter.left.values() for name in found}
    return {"leave_out": sorted(names)} if names else {}


def assets_of(root: Path, own: FileNames) -> tuple[tuple[Asset, ...], list[str]]:
    """The files that travel with an adapter, and the names of those that do not: other weights above all."""
    if not own.weights:  # the adapter is one file
        return (), []
    assets, left = read_assets(root, own.patterns)
    weights = [asset.name for asset in assets if _may_hold(asset.source)]
    left = [name for name in left if name not in (own.config, own.weights)]
    return tuple(asset for asset in assets if asset.name not in weights), [*left, *weights]


def weights_beside(root: Path, own: FileNames) -> list[str]:
    """The names of other files in the folder of an adapter that may hold weights."""
    return [
        path.relative_to(root).as_posix()
        for path in _files(root, own, None, [])
        if path.name not in (own.config, own.weights) and _may_hold(path)
    ]


def _files(root: Path, own: FileNames, base: Checkpoint | None, notes: list[str]) -> Iterator[Path]:
    """All files, but those of trainers, of other adapters and checkpoints, of our own, and hidden ones."""
    entries = store_of(root).entries(root)
    below = [root / one.name for one in entries if one.is_folder and not _is_other(root, one, own, base, notes)]
    names = [one.name for one in entries if not one.is_folder]
    yield from (root / name for name in names if not name.startswith(".") and not is_trainer_file(name))
    for folder in below:
        yield from _files(folder, own, base, notes)


def _is_other(here: Path, found: Entry, own: FileNames, base: Checkpoint | None, notes: list[str]) -> bool:
    folder = here / found.name
    if folder.name.startswith(".") or is_trainer_folder(folder.name) or is_ours(folder):
        return True
    if base is not None and folder.resolve() == base.path.resolve():
        return True
    if found.is_link:
        notes.append(f"{folder} is a link to a directory, and is not looked into")
    elif exists(folder / (own.config or own.weights)):
        notes.append(f"{folder} is another adapter, and is not applied; give its own path for that")
    elif base is not None and base.config and _is_checkpoint_of(folder, base.config.get("architectures")):
        notes.append(f"{folder} is a checkpoint of its own, and is not read")
    else:
        return False
    return True


def _is_checkpoint_of(folder: Path, architectures: object) -> bool:
    if not any(exists(folder / name) for name in (SINGLE, INDEX)) or not exists(folder / "config.json"):
        return False
    return bool(architectures) and load_json(folder / "config.json").get("architectures") == architectures


def _may_hold(path: Path) -> bool:
    """Whether a file may hold weights: by its name, or where that does not tell by its first bytes."""
    suffix = path.suffix.lower()
    if suffix in _MAY_HOLD or suffix in _EXPORTS:
        return True
    if suffix in _NO_WEIGHTS or path.name.startswith("tokenizer") or not is_file(path):
        return False
    with open_input(path) as file:
        start = read_exact(file, 0, min(file.size, START))
    return b"\0" in start or bool(told_apart(start))


def _means(text: str, path: Path, name: str) -> bool:
    """Whether a text to leave out by means this file: its name, its path, or a regex that is found in the name."""
    if text in (name, str(path)) or Path(text).resolve() == path.resolve():
        return True
    try:
        return re.search(text, name) is not None
    except re.error as error:
        raise UsageError(f"{text!r} is neither a file nor a valid regex: {error}") from error


def _not_read(path: Path, *, in_root: bool) -> str:
    """Why a file is not read at all; empty where it is."""
    if path.suffix.lower() in _PICKLES:
        return f"a pickle, which is never opened: {from_pickle(path, path.with_suffix('.safetensors'))}"
    if path.suffix != ".safetensors":
        return "of a format that is not read"
    if not in_root:
        return "files in folders below are not read"
    if path.name == SINGLE or re.fullmatch(r"model-\d+-of-\d+\.safetensors", path.name):
        return "a checkpoint, and not the base that was given"
    return ""


def _not_of(header: Header, own: FileNames, base: Checkpoint | None, base_has: BaseHas) -> str:
    """Why what a file holds does not take the place of tensors of the base; empty where it does."""
    if base is None:
        return "whether its tensors are the base's is not known without it"
    for key, ref in header.tensors.items():
        if ref.spec.dtype not in COMPUTED:
            return f"{shown(key)} is {ref.spec.dtype}; weights are {', '.join(COMPUTED)}"
        if not base_has(key.removeprefix(own.prefix)):
            return f"{shown(key)} is no tensor of {base.path}"
    return ""


def _take(found: Beside, header: Header, prefix: str, taken: Sequence[Module]) -> None:
    path, held = header.path, {module.target: module for module in (*taken, *found.modules)}
    refs: dict[str, Ref] = {key.removeprefix(prefix): ref for key, ref in header.tensors.items()}
    if len(refs) < len(header.tensors):
        raise InputError(f"{path} holds tensors of the same name with {prefix} before it and without")
    for name, ref in refs.items():
        if name in held:
            other = next(iter(held[name].factors.values()))
            raise InputError(
                f"{path}: {shown(ref.spec.name)} and {shown(other.spec.name)} of {other.path} are both for "
                f"{shown(name)}, and which of them counts is not known: --leave-out {path.name} does without the first"
            )
        found.modules.append(Module(name, name, FULL.name, {TUNED: ref}, 1.0))
    found.files[path] = header.stamp
    if refs:
        names = ", ".join(map(shown, list(refs)[:3])) + (" ..." if len(refs) > 3 else "")
        found.notes.append(f"{path} is read: it replaces {len(refs)} of the base's tensors: {names}")


def _lost(root: Path, lost: dict[str, str]) -> str:
    lines = [f"{root} holds more than its adapter, which may be weights that were trained with it, and would be lost:"]
    lines += [f"  {shown(name)}: {why}" for name, why in list(lost.items())[:_LISTED]]
    if len(lost) > _LISTED:
        lines.append(f"  and {len(lost) - _LISTED} more")
    lines.append(
        f"To do without a file name it, or give a regex for several: --leave-out {shown(shlex.quote(min(lost)))}"
    )
    return "\n".join(lines)
