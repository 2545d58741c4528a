"""Many small parts of files, read together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adaptertool.errors import InputError
from adaptertool.files import reader
from adaptertool.files.reader import Inputs, stamp_of
from adaptertool.spec.tensors import Ref, TensorSpec


def part(path: Path, offset: int, size: int) -> Ref:
    return Ref(Path(str(path)), offset, TensorSpec("", "U8", (size,), size))  # equal paths need not be one object


def test_parts_side_by_side_are_read_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where they overlap, have no bytes, or are asked for in another order; what is far away is not read."""
    content = np.random.default_rng(0).bytes(50_000)
    paths = [tmp_path / "a", tmp_path / "b"]
    for number, path in enumerate(paths):
        path.write_bytes(content[number:])
    reads: list[tuple[Path, int, int]] = []
    read_into = reader.read_into

    def noted(file: reader.InputFile, offset: int, view: memoryview) -> None:
        reads.append((file.path, offset, len(view)))
        read_into(file, offset, view)

    monkeypatch.setattr(reader, "read_into", noted)
    places = [(20_000, 100), (100, 50), (150, 10), (20_050, 300), (20_010, 5), (9, 0), (40_000, 1), (160 + 4096, 4)]
    parts = [part(path, offset, size) for offset, size in places for path in paths]
    with Inputs({path: stamp_of(path) for path in paths}) as inputs:
        found, begins = inputs.read_parts(parts)
        assert reads == [
            (path, *place) for path in paths for place in ((9, 160 + 4096 + 4 - 9), (20_000, 350), (40_000, 1))
        ]
        for (path, offset, spec, _, _), begin in zip(parts, begins, strict=True):
            assert found[begin : begin + spec.nbytes] == path.read_bytes()[offset : offset + spec.nbytes]
        nothing, places = inputs.read_parts([])
        assert (len(nothing), len(places)) == (0, 0)
        with pytest.raises(InputError, match="ends at byte 50,000"):
            inputs.read_parts([part(paths[0], 49_000, 1_001)])
