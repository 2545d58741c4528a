"""The real command line, in processes of its own: exit codes, the two streams, JSON, and never a traceback."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import BASE, LORA, MODULE, TUNED, Result, clean, refused
from conftest import adaptertool, load, same_bits, snapshot
from safetensors.torch import save_file

from adaptertool import __version__

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


# --- exit 130 ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_planning(small: tuple[Path, Path], tmp_path: Path, number: signal.Signals) -> None:
    """The signal comes while the headers are read. (test_faults.py: while weights are written.)"""
    snippet = (
        "import os, sys\nfrom adaptertool import cli\nfrom adaptertool.cli import merge\n"
        f"merge.prepare = lambda *_, **__: os.kill(os.getpid(), {int(number)})\n"
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
