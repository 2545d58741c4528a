"""The real command line, in processes of its own: exit codes, the two streams, JSON, and never a traceback."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FIXTURES, adaptertool, load, lora_factors, same_bits, snapshot, write_adapter, write_checkpoint
from safetensors.torch import save_file

from adaptertool import __version__, prepare_merge
from adaptertool.errors import InputError

BASE, LORA, TUNED = FIXTURES / "base", FIXTURES / "lora", FIXTURES / "tuned"
MODULE = "model.layers.0.mlp.up_proj"
HOSTILE = "\x1b]0;owned\x07"  # sets a terminal's title; click strips colours only, so this one is for us to escape
Result = subprocess.CompletedProcess[str]
COMMAND = [sys.executable, "-m", "adaptertool"]


def clean(result: Result, code: int) -> Result:
    """The exit code is `code`, and nothing looks like a traceback or acts on a terminal."""
    assert result.returncode == code, result.stderr
    for stream in (result.stdout, result.stderr):
        assert "Traceback" not in stream
        assert "Exception ignored" not in stream
        assert not any(ord(c) < 32 and c != "\n" for c in stream)
    return result


def refused(result: Result, code: int, *words: str) -> None:
    """An error: its message on stderr, nothing on stdout."""
    clean(result, code)
    assert result.stdout == ""
    assert result.stderr.strip()
    for word in words:
        assert word in result.stderr


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint of two shards and its adapter."""
    tensors = {f"{MODULE}.weight": torch.randn(8, 6).bfloat16(), "model.norm.weight": torch.ones(6)}
    base = write_checkpoint(tmp_path / "base", tensors, shards=2)
    return base, write_adapter(tmp_path / "adapter", lora_factors(MODULE, (8, 6)))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """A good run, with JSON, that others look at."""
    out = tmp_path_factory.mktemp("merged") / "out"
    return out, adaptertool("merge", BASE, LORA, "-o", out, "--json")


# --- exit 0: what goes where ---


def test_json_is_one_object_and_true(merged: tuple[Path, Result]) -> None:
    out, result = merged
    clean(result, 0)
    report = json.loads(result.stdout)
    assert result.stderr == ""  # no bar where stderr is no terminal
    assert report["schema"] == "run/1"
    files = {name: len(data) for name, data in snapshot(out).items() if name != "adaptertool.manifest.json"}
    assert report["bytes_written"] == sum(files.values()) == sum(map(len, snapshot(BASE).values()))
    before, after = load(BASE), load(out)
    assert before.keys() == after.keys()
    changed = [name for name in before if not same_bits(before[name], after[name])]
    assert report["tensors_edited"] == len(changed)
    assert report["tensors_copied"] == len(before) - len(changed)


@pytest.mark.parametrize("arguments", [("merge", BASE, LORA), ("wise", BASE, TUNED, "--alpha", "0:1:0.25")])
def test_dry_run_writes_nothing_and_predicts(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    out = tmp_path / "out"
    plan = json.loads(clean(adaptertool(*arguments, "-o", out, "--dry-run", "--json"), 0).stdout)
    assert list(tmp_path.iterdir()) == []
    assert plan["schema"] == "plan/1"
    run = json.loads(clean(adaptertool(*arguments, "-o", out, "--json"), 0).stdout)
    for planned, done in (
        ("bytes_read", "bytes_read"),
        ("bytes_written", "bytes_written"),
        ("tensors_edited", "tensors_edited"),
        ("tensors_copied", "tensors_copied"),
        ("outputs", "outputs"),
        ("alphas", "alphas"),
        ("threads", "threads"),
    ):
        assert plan[planned] == run[done]
    assert plan["disk_needed"] <= plan["disk_free"]
    assert run["peak_memory"] <= plan["memory_predicted"]
    written = sum(len(data) for name, data in snapshot(out).items() if not name.endswith("adaptertool.manifest.json"))
    assert run["bytes_written"] == written
    assert sorted(map(str, out.glob("alpha-*"))) == (sorted(run["outputs"]) if len(run["outputs"]) > 1 else [])


def test_quiet_says_nothing(small: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = small
    result = clean(adaptertool("merge", base, adapter, "-o", tmp_path / "out", "-q", "-w", "-0.5"), 0)
    assert (result.stdout, result.stderr) == ("", "")
    name = f"{MODULE}.weight"
    assert not same_bits(load(tmp_path / "out")[name], load(base)[name])


def test_text_report_is_on_stdout(small: tuple[Path, Path], tmp_path: Path) -> None:
    base, adapter = small
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"metadata": {"total_size": 1}}))
    result = clean(adaptertool("merge", base, adapter, "-o", tmp_path / "out"), 0)
    assert "1 edited, 1 copied" in result.stdout
    assert "total_size" in result.stderr  # a message, not data


def test_help_and_version() -> None:
    assert clean(adaptertool("--version"), 0).stdout.strip().endswith(__version__)
    text = clean(adaptertool("--help"), 0).stdout
    assert all(word in text for word in ("merge", "wise", "130"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("--version",),
        ("merge", "--help"),
        ("merge", BASE, LORA, "--dry-run"),
        ("wise", BASE, TUNED, "--alpha", "0,1", "--dry-run", "--json"),
    ],
)
def test_torch_is_loaded_only_to_compute(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    options = ["-o", str(tmp_path / "out")] if "--dry-run" in arguments else []
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "adaptertool", *map(str, arguments), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert "click" in imported  # the listing is what we think it is
    assert imported.isdisjoint({"torch", "safetensors"})
    if "--dry-run" in arguments:
        assert imported.isdisjoint({"tqdm", "adaptertool.engine.execute", "adaptertool.verification"})


# --- a base that is one file ---


def test_single_file(tmp_path: Path, small: tuple[Path, Path]) -> None:
    tensors = load(small[0])
    single = tmp_path / "single.safetensors"
    save_file(tensors, single)
    clean(adaptertool("merge", single, small[1], "-o", tmp_path / "out.safetensors"), 0)
    clean(adaptertool("merge", single, small[1], "-o", tmp_path / "out"), 0)
    assert (tmp_path / "out.safetensors").is_file()
    assert sorted(snapshot(tmp_path / "out")) == ["adaptertool.manifest.json", "single.safetensors"]
    assert (tmp_path / "out/single.safetensors").read_bytes() == (tmp_path / "out.safetensors").read_bytes()
    assert load(tmp_path / "out.safetensors").keys() == tensors.keys()
    assert {path.name for path in tmp_path.iterdir() if path.name.startswith(".")} == set()


# --- exit 2: usage ---


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("bogus",), "bogus"),
        (("merge", BASE), "ADAPTER"),
        (("merge", BASE, LORA), "--out"),
        (("merge", BASE, LORA, "-o", "x", "--bogus"), "--bogus"),
        (("merge", BASE, LORA, "-o", "x", "--threads", "0"), "--threads"),
        (("merge", BASE, LORA, "-o", "x", "-w", "1", "-w", "2"), "2 weights for 1 adapters"),
        (("merge", BASE, LORA, LORA, "-o", "x", "-w", "1"), "1 weights for 2 adapters"),
        (("merge", BASE, LORA, "-o", "x", "-w", "nan"), "nan"),
        (("merge", BASE, LORA, "-o", "x", "-w", "1e999"), "1e999"),
        (("merge", BASE, LORA, "-o", "x", "-w", "half"), "half"),
        (("merge", BASE, LORA, "-o", "missing/x"), "does not exist"),
        (("merge", BASE, LORA, "-o", "file/x"), "file is a file, so OUT file/x cannot be made in it"),
        (("merge", BASE, LORA, "-o", "file/x/y"), "file is a file"),
        (("wise", BASE, TUNED, "-o", "x"), "--alpha"),
    ],
)
def test_usage_errors(tmp_path: Path, arguments: tuple[object, ...], word: str) -> None:
    (tmp_path / "file").touch()
    refused(adaptertool(*arguments, cwd=tmp_path), 2, word)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["equal", "inside", "around", "link", "adapter"])
def test_out_overlaps_an_input(small: tuple[Path, Path], tmp_path: Path, where: str) -> None:
    base, adapter = small
    (tmp_path / "link").symlink_to(base)
    out = {
        "equal": base,
        "inside": base / "out",
        "around": tmp_path,
        "link": tmp_path / "link/out",
        "adapter": adapter,
    }[where]
    before = snapshot(tmp_path)
    refused(adaptertool("merge", base, adapter, "-o", out, "--force", "--dry-run"), 2, "overlap")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("alpha", ["1:0:0.1", "0:1:0", "abc", "0,0", "0,-0.0", "0:1", "0:1:0.0001", "", "0:nan:1"])
def test_bad_alphas(tmp_path: Path, alpha: str) -> None:
    refused(adaptertool("wise", BASE, TUNED, "-o", tmp_path / "out", f"--alpha={alpha}"), 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("alpha", "folders"),
    [
        ("0:1:0.3", ["alpha-0.000", "alpha-0.300", "alpha-0.600", "alpha-0.900"]),
        ("0:0.3:0.1", ["alpha-0.000", "alpha-0.100", "alpha-0.200", "alpha-0.300"]),
        ("1:0:-0.5", ["alpha-1.000", "alpha-0.500", "alpha-0.000"]),
        ("-0.5,1", ["alpha--0.500", "alpha-1.000"]),
        ("0.00025,1", ["alpha-0.00025", "alpha-1.00000"]),
        ("0.5", [""]),
    ],
)
def test_good_alphas(tmp_path: Path, alpha: str, folders: list[str]) -> None:
    arguments = ("wise", BASE, TUNED, "-o", tmp_path, "--alpha", alpha, "--dry-run", "--json")
    plan = json.loads(clean(adaptertool(*arguments), 0).stdout)
    assert plan["outputs"] == [str(tmp_path / folder) for folder in folders]


# --- exit 3: input ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("merge", "missing", LORA), ["missing", "does not exist"]),
        (("merge", BASE, "missing"), ["missing", "does not exist"]),
        (("merge", LORA, BASE), ["is an adapter", "comes first"]),
        (("merge", BASE, TUNED), ["is not an adapter", "wise"]),
        (("merge", BASE, BASE / "config.json"), ["config.json", "not a directory"]),
        (("merge", BASE / "config.json", LORA), ["config.json", ".safetensors"]),
        (("merge", "meta-llama/Llama-3.2-1B", LORA), ["hf download"]),
        (("wise", BASE, FIXTURES, "--alpha", "1"), ["neither model.safetensors"]),
    ],
)
def test_input_errors(tmp_path: Path, arguments: tuple[object, ...], words: list[str]) -> None:
    refused(adaptertool(*arguments, "-o", tmp_path / "out", cwd=tmp_path), 3, *words)
    assert list(tmp_path.iterdir()) == []


def test_adapter_of_another_model(small: tuple[Path, Path], tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other", lora_factors(MODULE, (8, 7)))
    refused(adaptertool("merge", small[0], other, "-o", tmp_path / "out"), 3, f"{MODULE}.weight", "8×6", "7")
    named = write_adapter(tmp_path / "named", lora_factors(MODULE.replace("up", "gate"), (8, 6)))
    refused(adaptertool("merge", small[0], named, "-o", tmp_path / "out"), 3, "gate_proj", f"nearest: {MODULE}.weight")


def test_error_found_while_computing(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Too large for the dtype: seen only when all is on its way; then OUT must not be there."""
    factors = {name: torch.full_like(factor, 1e30) for name, factor in lora_factors(MODULE, (8, 6)).items()}
    before = snapshot(tmp_path)
    adapter = write_adapter(tmp_path / "large", factors)
    refused(adaptertool("merge", small[0], adapter, "-o", tmp_path / "out"), 3, f"{MODULE}.weight", "BF16")
    shutil.rmtree(adapter)
    assert snapshot(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


# --- exit 4 and 5: storage, and an OUT that is taken ---


def test_exit_4_without_write_permission(small: tuple[Path, Path], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    refused(adaptertool("merge", *small, "-o", closed / "out"), 4, str(closed))


@pytest.mark.parametrize("force", [(), ("--force",)])
@pytest.mark.parametrize("what", ["directory", "file", "safetensors", "dangling link"])
def test_out_is_not_ours(small: tuple[Path, Path], tmp_path: Path, what: str, force: tuple[str, ...]) -> None:
    out = tmp_path / ("out.safetensors" if what == "safetensors" else "out")
    if what == "directory":
        out.mkdir()
        (out / "thesis.txt").write_text("dear")
    elif what == "dangling link":
        out.symlink_to("nowhere")
    else:
        out.write_text("dear")
    before = snapshot(tmp_path)
    refused(adaptertool("merge", *small, "-o", out, *force, "--dry-run"), 5, str(out))
    assert snapshot(tmp_path) == before


def test_force_replaces_ours(merged: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(merged[0], out)
    refused(adaptertool("merge", BASE, LORA, "-o", out, "--dry-run"), 5, "--force")
    assert snapshot(out) == snapshot(merged[0])
    clean(adaptertool("merge", BASE, LORA, "-o", out, "--force", "-w", "2"), 0)
    assert snapshot(out).keys() == snapshot(merged[0]).keys()
    assert snapshot(out) != snapshot(merged[0])
    assert list(tmp_path.iterdir()) == [out]


def test_out_in_a_loop_of_links(small: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    for out in (tmp_path / "loop", tmp_path / "loop/out"):
        result = adaptertool("merge", *small, "-o", out, "--dry-run")
        refused(result, result.returncode)
        assert result.returncode in (2, 5)


# --- errors as JSON ---


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("merge", BASE, LORA, "-o", "x", "--bogus"), 2),
        (("merge", BASE, "-o", "x"), 2),
        (("merge", BASE, LORA, "-o", "x", "--threads", "0"), 2),
        (("merge", BASE, LORA, "-o", "x", "-w", "nan"), 2),
        (("merge", BASE, "missing", "-o", "x", "-q"), 3),
        (("merge", BASE, LORA, "-o", "taken", "--dry-run"), 5),
    ],
)
def test_errors_as_json(tmp_path: Path, arguments: tuple[object, ...], code: int) -> None:
    (tmp_path / "taken").touch()
    result = clean(adaptertool(*arguments, "--json", cwd=tmp_path), code)
    body = json.loads(result.stdout)
    assert body["schema"] == "error/1"
    assert body["error"]["exit_code"] == code
    assert body["error"]["message"] in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    result = adaptertool("merge", BASE, "missing", "-o", tmp_path / "out", "--debug", cwd=tmp_path)
    assert result.returncode != 0
    assert "Traceback" in result.stderr


# --- names that come from files ---


def _index(base: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = base / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def _shard_lacks_tensor(base: Path, _: Path) -> None:
    shard = f"x{HOSTILE}.safetensors"
    (base / "model-00002-of-00002.safetensors").rename(base / shard)
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": shard, "absent": shard}))


def _shard_missing(base: Path, _: Path) -> None:
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": f"x{HOSTILE}.safetensors"}))


def _shard_elsewhere(base: Path, _: Path) -> None:
    shard = base / f"x{HOSTILE}.safetensors"
    shard.symlink_to("../adapter/adapter_model.safetensors")
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": shard.name}))


def _shard_broken(base: Path, _: Path) -> None:
    (base / f"x{HOSTILE}.safetensors").write_text("short")
    _index(base, lambda index: index["weight_map"].update({"model.norm.weight": f"x{HOSTILE}.safetensors"}))


def _asset_is_a_pipe(base: Path, _: Path) -> None:
    os.mkfifo(base / f"x{HOSTILE}")


def _factor(_: Path, adapter: Path) -> None:
    write_adapter(adapter, lora_factors(f"model{HOSTILE}", (8, 6)))


def _config(**fields: object) -> Callable[[Path, Path], None]:
    def change(_: Path, adapter: Path) -> None:
        write_adapter(adapter, lora_factors(MODULE, (8, 6)), **fields)

    return change


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(_shard_lacks_tensor, id="shard-lacks-tensor"),
        pytest.param(_shard_missing, id="shard-missing"),
        pytest.param(_shard_elsewhere, id="shard-is-a-link"),
        pytest.param(_shard_broken, id="shard-broken"),
        pytest.param(_asset_is_a_pipe, id="asset"),
        pytest.param(_factor, id="factor"),
        pytest.param(_config(**{HOSTILE: 1}), id="field"),
        pytest.param(_config(peft_type=HOSTILE), id="peft-type"),
        pytest.param(_config(bias=HOSTILE), id="bias"),
        pytest.param(_config(rank_pattern={"[z\x1b-\x07]": 4}), id="pattern"),
        pytest.param(_config(alpha_pattern={HOSTILE: "x"}), id="pattern-value"),
    ],
)
def test_names_from_files_are_escaped(small: tuple[Path, Path], spoil: Callable[[Path, Path], None]) -> None:
    spoil(*small)
    with pytest.raises(InputError) as caught:
        prepare_merge(small[0], [small[1]])
    assert not any(ord(c) < 32 and c != "\n" for c in str(caught.value))


def test_escaped_on_stderr(small: tuple[Path, Path], tmp_path: Path) -> None:
    _factor(*small)
    refused(adaptertool("merge", *small, "-o", tmp_path / "out"), 3, r"model\x1b]0;owned\x07.weight")


@pytest.mark.parametrize("verbose", [(), ("-v",)])
def test_names_are_escaped_in_the_plan_too(tmp_path: Path, verbose: tuple[str, ...]) -> None:
    """Valid names, so no error; they are printed on stdout, where a terminal may be."""
    name = f"model{HOSTILE}.up_proj"
    base = write_checkpoint(tmp_path / "base", {f"{name}.weight": torch.randn(8, 6), "bell\x07": torch.ones(1)})
    adapter = write_adapter(tmp_path / "adapter", lora_factors(name, (8, 6)))
    text = clean(adaptertool("merge", base, adapter, "-o", tmp_path / "out", "--dry-run", *verbose), 0).stdout
    assert r"\x07" in text


def test_lone_surrogate_in_a_name(tmp_path: Path) -> None:
    """JSON can spell a name that UTF-8 cannot: refused or escaped, but no traceback when it is printed."""
    header = rb'{"a\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    base = tmp_path / "odd.safetensors"
    base.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    adapter = write_adapter(tmp_path / "saved", {"b": torch.ones(1)})
    for arguments in (("merge", base, adapter), ("wise", base, base, "--alpha", "1")):
        result = adaptertool(*arguments, "-o", tmp_path / "out", "--dry-run")
        assert result.returncode in (0, 3)
        clean(result, result.returncode)


# --- stdout that goes away, terminals ---


@pytest.mark.parametrize("stdout", ["no reader", "closed"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("merge", BASE, LORA, "--dry-run"), 0), (("merge", BASE, "missing", "--json"), 3), (("--help",), 0)],
)
def test_stdout_goes_away(tmp_path: Path, arguments: tuple[object, ...], code: int, stdout: str) -> None:
    """The result is the same as with a reader; there is just nobody to tell."""
    out = [] if arguments == ("--help",) else ["-o", str(tmp_path / "out")]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [*COMMAND, *map(str, arguments), *out],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        check=False,
        preexec_fn=(lambda: os.close(1)) if stdout == "closed" else None,
    )
    os.close(writer)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
    assert result.returncode == code


def test_stdout_goes_away_after_the_work(small: tuple[Path, Path], tmp_path: Path) -> None:
    """OUT is published when the report finds no reader: that is no failure."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [*COMMAND, "merge", *map(str, small), "-o", str(tmp_path / "out")]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "out/adaptertool.manifest.json").is_file()


@pytest.mark.parametrize("arguments", [("merge", BASE, LORA, "--dry-run"), ("merge", BASE, "missing", "--json")])
def test_stdout_is_full(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*COMMAND, *map(str, arguments), "-o", str(tmp_path / "out")]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False)
    assert result.returncode in (3, 4)
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr


def _on_a_terminal(arguments: list[str], **environment: str) -> tuple[int, str]:
    """Exit code, and what a terminal shows of stderr."""
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 80))
    env = os.environ | {"TERM": "xterm-256color"} | environment
    process = subprocess.Popen([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=child, env=env)
    os.close(child)
    seen = b""
    try:
        while part := os.read(parent, 65536):
            seen += part
    except OSError as error:
        assert error.errno == errno.EIO  # Linux: the other side is closed
    os.close(parent)
    return process.wait(60), seen.decode()


def test_terminal(small: tuple[Path, Path], tmp_path: Path) -> None:
    """A bar on a terminal, none with -q; no colours with NO_COLOR; escapes in a path do not reach it raw."""
    base, adapter = map(str, small)
    code, seen = _on_a_terminal(["merge", base, adapter, "-o", str(tmp_path / "out")], NO_COLOR="1")
    assert code == 0
    assert "100%" in seen
    assert "\x1b" not in seen
    odd = tmp_path / "odd\x1b[2J"
    odd.mkdir()
    code, seen = _on_a_terminal(["merge", str(odd), adapter, "-o", str(tmp_path / "x"), "-q"])
    assert code == 3
    assert "\x1b" not in seen


# --- exit 130 ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_planning(small: tuple[Path, Path], tmp_path: Path, number: signal.Signals) -> None:
    """The signal comes while the headers are read. (test_faults.py: while weights are written.)"""
    snippet = (
        "import os, sys\nfrom adaptertool import cli\nfrom adaptertool.cli import merge\n"
        f"merge.prepare_merge = lambda *_, **__: os.kill(os.getpid(), {int(number)})\n"
        f"sys.argv[1:] = {['merge', *map(str, small), '-o', str(tmp_path / 'out'), '--json']!r}\n"
        "cli.main()"
    )
    result = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=False)
    clean(result, 130)
    assert json.loads(result.stdout)["error"]["exit_code"] == 130
    assert not (tmp_path / "out").exists()


# --- found in review ---


@pytest.mark.parametrize(("base", "adapter"), [("", LORA), (BASE, "")])
def test_an_empty_path_is_not_here(tmp_path: Path, base: object, adapter: object) -> None:
    """As an unset variable leaves it behind: the current directory may be another checkpoint."""
    refused(adaptertool("merge", base, adapter, "-o", tmp_path / "out"), 2, "is an empty path")
    refused(adaptertool("merge", BASE, LORA, "-o", ""), 2, "OUT is an empty path")


def test_a_terminal_without_utf8(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    plan = adaptertool("merge", BASE, LORA, "-o", tmp_path / "out", "--dry-run", env=environment)
    clean(plan, 0)
    wrong = adaptertool("merge", BASE / "model-00001-of-00003.safetensors", TUNED, "-o", "x", env=environment)
    refused(wrong, 3, "is not an adapter")


@pytest.mark.parametrize("alpha", ["0:10:1e-999999", "0,1e-300", "1e300,1e308", "0:1e300:1e-300"])
def test_alphas_that_name_no_folder(tmp_path: Path, alpha: str) -> None:
    refused(adaptertool("wise", BASE, TUNED, "-o", tmp_path / "out", "--alpha", alpha), 2)


def test_too_many_threads(tmp_path: Path) -> None:
    arguments = ("merge", BASE, LORA, "-o", tmp_path / "out", "--threads", "9" * 20)
    assert adaptertool(*arguments).returncode == 2


def test_force_spares_what_was_added_to_ours(merged: tuple[Path, Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(merged[0], out)
    (out / "eval").mkdir()
    (out / "eval/notes.txt").write_text("dear")
    refused(adaptertool("merge", BASE, LORA, "-o", out, "--force"), 5, "eval/notes.txt", "did not put there")
    assert (out / "eval/notes.txt").read_text() == "dear"


def test_base_beside_an_adapter(tmp_path: Path) -> None:
    """Trainers save both in one folder; OUT must not load as base plus adapter. As TUNED it is ambiguous."""
    both = tmp_path / "both"
    shutil.copytree(BASE, both)
    for path in LORA.iterdir():
        shutil.copy(path, both)
    done = clean(adaptertool("merge", both, LORA, "-o", tmp_path / "out"), 0)
    assert "left out" in done.stderr and "adapter_config.json" in done.stderr
    assert not any(path.name.startswith("adapter_") for path in (tmp_path / "out").iterdir())
    (both / "model.safetensors").write_bytes((TUNED / "model.safetensors").read_bytes())
    (both / "model.safetensors.index.json").unlink()
    refused(adaptertool("wise", BASE, both, "-o", tmp_path / "o2", "--alpha", "1"), 3, "an adapter and a checkpoint")


def test_one_shard_of_many_as_base(tmp_path: Path) -> None:
    done = adaptertool("wise", *[BASE / "model-00003-of-00003.safetensors"] * 2, "-o", tmp_path / "o", "--alpha", "0")
    assert "one shard of many" in clean(done, 0).stderr
