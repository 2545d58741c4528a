"""Each command parses each config, index and header once: whoever opens an input keeps what was parsed."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import FIXTURES

import adaptertool
from adaptertool.files import checkpoint, header, jsonfile
from adaptertool.resolution import resolve

BASE, LORA, TUNED, RSLORA = (FIXTURES / name for name in ("base", "lora", "tuned", "rslora"))

COMMANDS: dict[str, Callable[[Path], object]] = {
    "merge": lambda _: adaptertool.prepare_merge(BASE, [LORA, RSLORA]),
    "method": lambda _: adaptertool.prepare_merge(BASE, [LORA, TUNED], method="linear"),
    "wise": lambda _: adaptertool.prepare_wise(BASE, TUNED, "0:1:0.5"),
    "as adapter": lambda _: adaptertool.prepare_wise(BASE, LORA, "0.5", as_adapter=True),
    "truncate": lambda out: adaptertool.truncate(LORA, out, rank=1, dry_run=True),
    "truncate for a base": lambda out: adaptertool.truncate(LORA, out, rank=1, base=BASE, dry_run=True),
    "sum": lambda out: adaptertool.sum_adapters([LORA, RSLORA], out, dry_run=True),
    "sum for a base": lambda out: adaptertool.sum_adapters([LORA, RSLORA], out, base=BASE, dry_run=True),
    "extract": lambda out: adaptertool.extract(BASE, TUNED, out, rank=1, dry_run=True),
    "inspect": lambda _: adaptertool.inspect(LORA),
    "inspect for a base": lambda _: adaptertool.inspect(LORA, BASE),
    "inspect a checkpoint": lambda _: adaptertool.inspect(TUNED, BASE),
    "diff": lambda _: adaptertool.diff(LORA, RSLORA),
    "drift": lambda _: adaptertool.drift(BASE, [LORA], merged=TUNED, probe=1),
    "verify": lambda _: adaptertool.verify(TUNED, BASE, [RSLORA]),
    "verify an interpolation": lambda _: adaptertool.verify(TUNED, BASE, [LORA], alpha=0.5),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_each_file_is_parsed_once(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: Counter[Path] = Counter()
    for name, real in (("load_json", jsonfile.load_json), ("read_header", header.read_header)):

        def counted(path: Path, _real: Callable[..., object] = real, **options: bool) -> object:
            seen[path.resolve()] += 1
            return _real(path, **options)

        for module in list(sys.modules.values()):
            if module.__name__.startswith("adaptertool") and getattr(module, name, None) is real:
                monkeypatch.setattr(module, name, counted)
    COMMANDS[command](tmp_path / "out")
    assert seen, "nothing was counted"
    assert {path: count for path, count in seen.items() if count > 1} == {}


def test_verify_makes_the_table_of_the_names_of_the_base_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, opened = resolve.open_base, list[object]()

    def counted(base: checkpoint.Checkpoint) -> resolve.Base:
        opened.append(base)
        return real(base)

    for module in list(sys.modules.values()):
        if module.__name__.startswith("adaptertool") and getattr(module, "open_base", None) is real:
            monkeypatch.setattr(module, "open_base", counted)
    adaptertool.verify(TUNED, BASE, [LORA])
    assert len(opened) == 1
