"""Nothing lost, nothing let in: every malformed file, checkpoint and adapter through the command line.

Each is refused with exit code 3 and a message that names it; no traceback, nothing left behind, inputs untouched. What
is odd but valid is merged, and read by the reference reader with the same bytes.
"""

from __future__ import annotations

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import zoo
import zoo_adapters
from conftest import adaptertool, main_here, write_adapter
from headers import FIELD, VALID, entry, packed
from long_tests import ALL
from safetensors import deserialize

Run = Callable[..., tuple[object, str]]


@pytest.fixture
def ground(tmp_path: Path) -> zoo.Ground:
    return zoo.Ground(tmp_path)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code, and what it said on stderr."""

    def call(*arguments: object) -> tuple[object, str]:
        code = main_here([*map(str, arguments)], monkeypatch)
        out, err = capsys.readouterr()
        assert code == 0 or out == ""
        return code, err

    return call


def everything(folder: Path) -> dict[str, object]:
    """All below a folder, and what tells whether it was touched. A large file by its size and times."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        info = path.lstat()
        plain = stat.S_ISREG(info.st_mode) and info.st_size < 1 << 20
        found[str(path.relative_to(folder))] = (
            info.st_mode, info.st_size, info.st_mtime_ns, info.st_ino, path.read_bytes() if plain else None
        )  # fmt: skip
    return found


def refused(run: Run, ground: zoo.Ground, base: Path, adapter: Path) -> str:
    """The message with which a merge is refused."""
    before, descriptors = everything(ground.folder), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    code, message = run("merge", base, adapter, "-o", ground.out)
    check(code, message)
    assert everything(ground.folder) == before
    assert len(os.listdir("/proc/self/fd")) == descriptors  # noqa: PTH208
    return message


def check(code: object, message: str) -> None:
    assert code == 3, message
    assert message.startswith("adaptertool: ")
    assert all(line.isprintable() for line in message.splitlines())
    assert "Traceback" not in message
    assert "should not happen" not in message
    assert len(message) < 20_000


def test_the_zoo_is_as_large_as_promised() -> None:
    assert len(zoo.FILES) >= 90
    assert len({content for content, _ in zoo.FILES.values()}) >= 90
    assert len(zoo.CHECKPOINTS) >= 24
    assert len(zoo_adapters.ADAPTERS) >= 30


def test_what_is_spoilt_was_good(ground: zoo.Ground, run: Run) -> None:
    code, message = run("merge", ground.base, ground.adapter, "-o", ground.out)
    assert (code, message) == (0, "")


@pytest.mark.parametrize("case", zoo.FILES)
def test_malformed_file(ground: zoo.Ground, run: Run, case: str) -> None:
    """As a shard, as a base of one file, and as the factors of an adapter; in a sample, as one of them in turn."""
    content, words = zoo.FILES[case]
    single = ground.folder / "single.safetensors"
    shard, factors = ground.base / zoo.SECOND, ground.adapter / zoo.ADAPTER_WEIGHTS
    good = {path: path.read_bytes() for path in (shard, factors)}
    places = (shard, ground.base), (single, single), (factors, ground.base)
    for path, base in places if ALL else (places[[*zoo.FILES].index(case) % 3],):
        path.write_bytes(content)
        message = refused(run, ground, base, ground.adapter)
        assert str(path) in message
        assert words in message.replace(str(path), "")
        if path in good:
            path.write_bytes(good[path])


@pytest.mark.parametrize("case", zoo.CHECKPOINTS)
def test_malformed_checkpoint(ground: zoo.Ground, run: Run, case: str) -> None:
    spoil, words = zoo.CHECKPOINTS[case]
    spoil(ground.base)
    message = refused(run, ground, ground.base, ground.adapter)
    assert str(ground.base) in message
    assert words in message


@pytest.mark.parametrize("case", zoo_adapters.ADAPTERS)
def test_bad_adapter(ground: zoo.Ground, run: Run, case: str) -> None:
    spoil, words = zoo_adapters.ADAPTERS[case]
    spoil(ground.adapter)
    message = refused(run, ground, ground.base, ground.adapter)
    # what the base has at a name is told of the base's file
    assert str(ground.adapter) in message or (f"{ground.base}/" in message and words.startswith("model."))
    assert words in message


@pytest.mark.parametrize("file", ["base/config.json", f"base/{zoo.FIRST}", f"adapter/{zoo.ADAPTER_WEIGHTS}"])
def test_no_permission(ground: zoo.Ground, run: Run, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
    """As it is said to who is not root."""
    real, before = os.open, everything(ground.folder)

    def guarded(path: object, *more: int, **options: int) -> int:
        if path == ground.folder / file:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *more, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(os, "open", guarded)
    code, message = run("merge", ground.base, ground.adapter, "-o", ground.out)
    assert code == 4
    assert f"{ground.folder / file} cannot be opened: Permission denied" in message
    assert everything(ground.folder) == before


# --- in a process of its own, with 1 GB ---

MEGABYTES = 99
LARGE: dict[str, tuple[bytes, bytes, bytes]] = {  # begins, goes on, ends
    "lists": (b'{"odd":[', b"[],", b"0]}"),
    "objects": (b'{"odd":[', b'{"":0},', b"0]}"),
    "tensors": (b'{"odd":{},', b'"a":{},', b'"b":{}}'),
    "one name": (b'{"', b"nnnnnnnn", b'":1}'),
    "one name, wide": ('{"\U0001f600'.encode(), b"nnnnnnnn", b'\\ud83d\\ude00":1}'),
    "backslashes": (b'{"', b"\\\\", b'\\ud800":1}'),
    "metadata": (b'{"__metadata__":{', b'"a":"b",', b'"c":"d"}}'),
    "digits": (b'{"odd":', b"99999999", b"}"),
}  # fmt: skip


def one_gigabyte() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 30, 1 << 30))
    resource.setrlimit(resource.RLIMIT_CPU, (20, 20))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("case", LARGE)
def test_header_as_large_as_may_be_needs_no_gigabyte(ground: zoo.Ground, case: str) -> None:
    begins, goes_on, ends = LARGE[case]
    content = packed(begins + goes_on * (MEGABYTES * 1_000_000 // len(goes_on)) + ends)
    path = ground.base / zoo.SECOND
    path.write_bytes(content)
    before = everything(ground.folder)
    done = adaptertool("merge", ground.base, ground.adapter, "-o", ground.out, preexec_fn=one_gigabyte)
    check(done.returncode, done.stderr)
    assert str(path) in done.stderr
    assert everything(ground.folder) == before


@pytest.mark.parametrize("case", ["factors are a pickle", "config of the base is nested", "pattern"])
def test_one_of_each_in_a_process_of_its_own(ground: zoo.Ground, case: str) -> None:
    spoil, words = {
        "factors are a pickle": (zoo.written("../adapter/adapter_model.safetensors", b"\x80\x04" * 50), "pickle"),
        "config of the base is nested": zoo.CHECKPOINTS["config: nested deep"],
        "pattern": (
            lambda root: zoo_adapters.ADAPTERS["rank_pattern: alternatives in turn"][0](root.parent / "adapter"),
            "for ever",
        ),
    }[case]  # fmt: skip
    spoil(ground.base)
    before = everything(ground.folder)
    done = adaptertool("merge", ground.base, ground.adapter, "-o", ground.out, preexec_fn=one_gigabyte)
    check(done.returncode, done.stderr)
    assert words in done.stderr
    assert everything(ground.folder) == before


# --- odd, and valid ---

ODD = VALID | {
    "backslashes before what looks like half a pair": packed(b'{"\\\\ud83d":{%s}}' % FIELD, bytes(4)),
    "pair in capitals": packed(b'{"\\uD83D\\uDE00\\\\":{%s}}' % FIELD, bytes(4)),
    "name of 4 KB": packed({"n" * 4096: entry()}, bytes(4)),
    "2000 tensors": packed({f"t{n}": entry("U8", [1], n, n + 1) for n in range(2000)}, bytes(2000)),
    "metadata of 1 MB": packed({"__metadata__": {"x": "m" * 1_000_000}, "odd": entry()}, bytes(4)),
    "name of a path": packed({"/etc/passwd": entry()}, bytes(4)),
    "names that differ by their normal form": packed({"\u00e9": entry(), "e\u0301": entry(begin=4, end=8)}, bytes(8)),
    "name in Hebrew, turned": packed({"\u202eabc\u05d0": entry()}, bytes(4)),
}


@pytest.mark.parametrize("case", ODD)
def test_valid_oddity_is_carried_over(ground: zoo.Ground, run: Run, case: str) -> None:
    """Beside a tensor that an adapter changes; and by itself as a shard, byte for byte."""
    content = ODD[case]
    path = ground.folder / "odd.safetensors"
    path.write_bytes(zoo.with_lora(content))
    out = ground.folder / "out.safetensors"
    code, message = run("merge", path, ground.adapter, "-o", out)
    assert code == 0, message
    before, after = dict(deserialize(path.read_bytes())), dict(deserialize(out.read_bytes()))
    target = f"{zoo.Q}.weight"
    assert bytes(after[target]["data"]) != bytes(before.pop(target)["data"])
    del after[target]
    assert after == before == {name: before[name] for name, _ in deserialize(content)}
    (ground.base / zoo.INDEX).unlink()
    for shard in (zoo.FIRST, zoo.SECOND):
        (ground.base / shard).unlink()
    zoo.shard_with("a.safetensors", zoo.BASE)(ground.base)
    names = [name for name, _ in deserialize(content)]
    if names:  # a shard that holds nothing is named by no index
        weight_map = dict.fromkeys(zoo.BASE, "a.safetensors") | dict.fromkeys(names, "odd.safetensors")
        zoo.write_index(ground.base, weight_map)
        (ground.base / "odd.safetensors").write_bytes(content)
        code, message = run("merge", ground.base, ground.adapter, "-o", ground.out)
        assert code == 0, message
        assert (ground.out / "odd.safetensors").read_bytes() == content


@pytest.mark.parametrize(
    "fields",
    [
        {"target_modules": "(a*)*b" * 20}, {"target_modules": ["q_proj"] * 10_000}, {"exclude_modules": "(a|a)*b"},
        {"rank_pattern": {}, "alpha_pattern": None}, {"task_type": "\x1b[2J"}, {"new_field": None},
        {"base_model_name_or_path": "../" * 1000}, {"peft_version": "not a version"}, {"lora_alpha": 8.0},
        {"rank_pattern": {r".*layers\.(0|1|2|3|4|5|6|7|8|9)\..*\.(q|k|v|o)_proj": 4}},
    ],
    ids=lambda fields: str(fields)[:40],
)  # fmt: skip
def test_odd_config_passes(ground: zoo.Ground, run: Run, fields: dict[str, object]) -> None:
    zoo_adapters.config(**fields)(ground.adapter)
    code, message = run("merge", ground.base, ground.adapter, "-o", ground.out)
    assert code == 0, message


def test_adapter_of_2000_modules(ground: zoo.Ground, run: Run) -> None:
    """More than fit into a list that a person would read are refused in a message of a few lines, and soon."""
    tensors = {f"x{n}.{'n' * 200}.lora_{role}.weight": torch.ones(1, 1) for n in range(2000) for role in "AB"}
    write_adapter(ground.adapter, tensors, r=1)
    message = refused(run, ground, ground.base, ground.adapter)
    assert "2000 of 2000 modules" in message
    assert len(message.splitlines()) < 30
