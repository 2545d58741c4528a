"""What the tests share. Checkpoints and adapters are written by the reference writer, never by our own code."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import forks
import jinja2
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from threadpoolctl import ThreadpoolController, threadpool_limits

from adaptertool import cli
from adaptertool.numerics import compiled

gc.disable()  # until all tests are collected: what imports make stays
pytest_plugins = ["long_tests", "unserved"]
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Where this is set, each of the hundreds of processes that the tests start compiles the package anew, which takes it
# two thirds of its time
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
forks.at_first()
# The tests run in two processes on two cores. Threads of libraries that wait for work that is too small for them keep a
# core busy: decompositions of 256 x 256 take five times as long
torch.set_num_threads(1)
threadpool_limits(1, "blas")

ROOT = Path(__file__).parent.parent
# What tests share asserts too
pytest.register_assert_rewrite(*({path.stem for path in (ROOT / "tests").glob("*.py")} - sys.modules.keys()))
FIXTURES = ROOT / "fixtures"
PREFIX = "base_model.model."
Tensors = Mapping[str, torch.Tensor]


def write_checkpoint(
    folder: Path, tensors: Tensors, *, shards: int = 1, config: Mapping[str, Any] | None = None
) -> Path:
    """A checkpoint directory; with `shards` > 1 the tensors are dealt out in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map = {}
        for number in range(shards):
            name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
            part = {key: tensors[key] for key in list(tensors)[number::shards]}
            save_file(part, folder / name, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, name)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if config is None:
        config = {"model_type": "llama", "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    """A PEFT adapter directory; keys get PEFT's prefix. The config is LoRA, r = 4, alpha = 8 unless given."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + key: tensor for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    fields = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "use_rslora": False} | config
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder


def lora_factors(module: str, shape: Sequence[int], rank: int = 4, dtype: torch.dtype = torch.float32) -> Tensors:
    out, inner = shape
    return {
        f"{module}.lora_A.weight": (torch.randn(rank, inner) / inner**0.5).to(dtype),
        f"{module}.lora_B.weight": (torch.randn(out, rank) / 8).to(dtype),
    }


def load(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint directory or file, by the reference reader."""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    tensors = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.view(torch.uint8).equal(b.view(torch.uint8))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below `folder` with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def adaptertool(*arguments: object, cwd: Path | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own; in one that is new, where something beside its arguments counts."""
    more = forks.late(options.get("env", os.environ)) if options.keys() <= {"env"} else None
    if more is not None and (done := forks.run(list(map(str, arguments)), cwd, environment=more)) is not None:
        return done
    command = [sys.executable, "-m", "adaptertool", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120, check=False, **options)


def main_here(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run the command line in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["adaptertool", *arguments])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return stop.value.code


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """No test that runs in this process outlasts a power cut: waiting for the disk takes most of the time of a small
    merge. Processes of their own wait, and so do tests of faults, which put something else in its place."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def cards() -> Iterator[None]:
    """PEFT saves a card beside each adapter, and compiles its template for each: that takes longer than the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2.Environment, "compile", functools.lru_cache(maxsize=64)(jinja2.Environment.compile))
        yield


@pytest.fixture(autouse=True, scope="session")
def looked_up_once() -> Iterator[None]:
    """The functions of a level of the kernel are hundreds, looked up in 2 ms, and tests ask for levels thousands of
    times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "functions", functools.cache(compiled.functions))
        yield


@pytest.fixture(autouse=True, scope="session")
def libraries() -> Iterator[None]:
    """Each run limits the threads of BLAS, and looks for it among all libraries of this process, which has those of
    torch and the others as well: a tenth of what a small merge takes. Libraries come with modules."""
    real, known = ThreadpoolController._load_libraries, dict[int, list[Any]]()

    def load_libraries(controller: ThreadpoolController) -> None:
        if (count := len(sys.modules)) not in known:
            real(controller)
            known.clear()
            known[count] = controller.lib_controllers
        controller.lib_controllers = [*known[count]]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ThreadpoolController, "_load_libraries", load_libraries)
        yield


@pytest.fixture(autouse=True)
def seeded() -> None:
    """As torch.manual_seed, but for devices that are not there: for these it keeps a formatted stack of each call."""
    torch.default_generator.manual_seed(0)


def write_sparse(path: Path, tensors: dict[str, tuple[str, list[int], int]], metadata: dict[str, str]) -> None:
    """A safetensors file of zeros that takes no room on disk: any size can be planned on."""
    header: dict[str, object] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The commands of the pages come first: they share a server (`tests/warm.py`), and last they would be dealt out
    among all processes, each of which would start one."""
    items.sort(key=lambda item: item.path.name != "test_readme.py")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """What has been imported stays: the collector need not walk over all of torch and transformers in later tests."""
    gc.freeze()
    gc.enable()
