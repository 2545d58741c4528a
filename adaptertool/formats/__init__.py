"""Names on disk <-> (module, role). One folder or file for each format of adapters.

To add one: write its record (formats.format.Format), one line in FORMATS, and a sample in tests/samples.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from adaptertool.architectures.gguf import ARCHITECTURE
from adaptertool.errors import InputError, UnsupportedError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.files.parsed import Parsed
from adaptertool.formats import thirds
from adaptertool.formats.explained import explain
from adaptertool.formats.format import BaseHas, Format, Writing
from adaptertool.formats.gguf.format import GGUF
from adaptertool.formats.kohya.format import COMFY, DIFFUSERS, KOHYA
from adaptertool.formats.mlx.format import MLX
from adaptertool.formats.peft.format import PEFT
from adaptertool.formats.saving import Saving
from adaptertool.spec.adapter import Adapter
from adaptertool.spec.layers import Layered
from adaptertool.spec.plan import Edit

FORMATS: tuple[Format, ...] = (PEFT, KOHYA, COMFY, DIFFUSERS, MLX, GGUF)
DEFAULT = FORMATS[0]  # what is written where no adapter among the inputs says a format
BY_NAME: Mapping[str, Format] = {one.name: one for one in FORMATS}
# By name, those that adapters of other formats can be written in
SAVINGS: Mapping[str, Saving] = {one.name: one.save for one in FORMATS if one.save is not None}


def recognised(path: Path) -> Format | None:
    """The format of the adapter at `path`; None where there is none. Raises InputError where two take it for theirs."""
    found = [one for one in FORMATS if one.recognise(path)]
    if len(found) > 1:
        raise InputError(
            f"{path} may be an adapter of {' or of '.join(one.name for one in found)}: its files, or its keys, are of "
            "both; give one with those of one of them"
        )
    return found[0] if found else None


def is_adapter(path: Path) -> bool:
    return recognised(path) is not None


def format_at(path: Path) -> Format:
    """The format of the adapter at `path`; where there is none the default, which says what is missing when it
    reads. Raises InputError where there is more to say of it."""
    if (own := recognised(path)) is None:
        explain(path, is_adapter)
    return own or DEFAULT


def read_alone(
    files: Parsed,
    leave_out: Sequence[str] | None = (),
    expert_layout: str | None = None,
    base_has: BaseHas = lambda _: True,
) -> Layered:
    """An adapter as layers; no factor is read. Without its base, that is taken to have all that is targeted.

    The arguments are those of `formats.format.Read`. Raises InputError.
    """
    own = format_at(files.path)
    return own.layered(own.read(files, base_has, leave_out=leave_out, expert_layout=expert_layout))


def writing(own: Format) -> Writing:
    """How adapters of a format are written. Raises UnsupportedError where they are read only."""
    if own.write is None:
        raise UnsupportedError(f"adapters of the format {own.name} are read, and not written")
    return own.write


def require_one_naming(adapters: Sequence[Adapter]) -> None:
    """Raises UnsupportedError where adapters that are to be one have the names of GGUF beside others, or of several
    architectures there."""
    spoken = {(one.format == GGUF.name, one.fields.get(ARCHITECTURE)): one.path for one in adapters}
    if len(spoken) > 1 and any(of_gguf for of_gguf, _ in spoken):
        raise UnsupportedError(
            f"{' and '.join(map(str, spoken.values()))} have the names of GGUF and others, or of two architectures: "
            "convert them into one format first (`adaptertool convert --base`)"
        )


def misreadings(sources: Sequence[Adapter | Checkpoint]) -> Mapping[str, Callable[[Edit], Edit]]:
    """Other ways to read the adapters among the sources of a plan, which some tools take: by the name of the fault,
    what becomes of an edit."""
    own = [
        {**BY_NAME[one.format].misreadings(one), **thirds.misreadings(one)} if isinstance(one, Adapter) else {}
        for one in sources
    ]

    def misread(fault: str) -> Callable[[Edit], Edit]:
        return lambda edit: reads(edit) if (reads := own[edit.adapter].get(fault)) else edit

    return {fault: misread(fault) for some in own for fault in some}
