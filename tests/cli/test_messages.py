"""What the command line says: options by their own names, why an option is not there, one line where a check fails."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from conftest import FIXTURES, adaptertool

from adaptertool import diff, merge, truncate, verify
from adaptertool.errors import UsageError, argument

BASE, LORA, TUNED = (str(FIXTURES / name) for name in ("base", "lora", "tuned"))


# --- options ---

NAMED: dict[str, tuple[list[str], str]] = {
    "truncate": (["truncate", LORA, "-o", "out"], "give one of --rank, --energy, --max-error and --ratio"),
    "extract": (["extract", BASE, TUNED, "-o", "out"], "give one of --rank, --energy and --max-error"),
    "both": (["sum", LORA, "-o", "out", "--rank", "2", "--energy", "0.5"], "give one of --rank and --energy"),
    "max_error": (["truncate", LORA, "-o", "out", "--max-error", "2"], "--max-error is relative"),
    "energy": (["truncate", LORA, "-o", "out", "--energy", "x"], "--energy 'x' is not a number"),
    "weight": (["merge", BASE, LORA, "-o", "out", "-w", "x"], "-w 'x' is not a number"),
    "alpha": (["wise", BASE, LORA, "-o", "out", "--alpha", "0,x"], "--alpha 'x' is not a number"),
    "density": (["merge", BASE, LORA, "-o", "out", "--density", "0.5"], "--density belongs to a method"),
    "share": (["merge", BASE, LORA, "-o", "o", "--method", "ties", "--density", "2"], "--density is a share"),
    "seed": (["merge", BASE, LORA, "-o", "o", "--method", "dare_ties", "--density", "0.5", "--seed", "mlp=3"],
             "Invalid value for '--seed': 'mlp=3': it is one for the whole run, and has no PATTERN="),
    "tokens": (["inspect", LORA, "--tokens", "5"], "--tokens and --nats-per-token go together"),
    "nats": (["inspect", LORA, "--tokens", "5", "--nats-per-token", "-1"], "--nats-per-token must be a number above 0"),
    "probe": (["drift", BASE, LORA, "--probe", "0"], "--probe must be 1 to"),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMED)
def test_options_are_called_by_their_names(tmp_path: Path, case: str) -> None:
    arguments, message = NAMED[case]
    done = adaptertool(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith(f"adaptertool: {message}"), done.stderr
    assert json.loads(done.stdout)["error"]["message"].startswith(message)


def test_in_python_they_are_arguments(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give one of rank, energy, max_error and ratio"):
        truncate(LORA, tmp_path / "out")
    error = UsageError(f"{argument('max_error')} is wrong in a\x1b[0m \ue000x")
    assert str(error) == "max_error is wrong in a\\x1b[0m \\ue000x"
    assert error.on_command_line == "--max-error is wrong in a\\x1b[0m \\ue000x"


@pytest.mark.parametrize("out", ["file/out", "file/deeper/out"])
@pytest.mark.parametrize("command", [["merge", BASE, LORA], ["truncate", LORA, "--rank", "2"]])
def test_a_file_as_the_parent_of_out(tmp_path: Path, command: list[str], out: str) -> None:
    (tmp_path / "file").write_text("dear")
    done = adaptertool(*command, "-o", out, cwd=tmp_path)
    assert done.returncode == 2
    assert f"{tmp_path}/file is a file, so OUT" in done.stderr
    done = adaptertool(*command, "-o", "none/out", cwd=tmp_path)
    assert done.returncode == 2 and f"the directory {tmp_path}/none for OUT does not exist; create it" in done.stderr


# --- quiet ---


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "out"
    merge(BASE, [LORA], out, sha256=True)
    return out


QUIET: dict[str, tuple[list[str], list[str]]] = {
    "verify": (["verify", "OUT", BASE, LORA, "-w", "0.5"], ["verify OUT: WRONG: 28 tensors", "applied-twice"]),
    "verify the files": (["verify", "DAMAGED"], ["DAMAGED: ", "files are as the manifest says"]),
    "diff": (["diff", "OUT", BASE], [f"diff OUT {BASE}: DIFFERENT in 28 tensors"]),
    "drift": (["drift", BASE, LORA, "--fail-above", "1e-9", "--probe", "2"], [f"drift {BASE}: "]),
    "inspect": (["inspect", LORA, "--base", "OTHER", "--no-spectra"], [f"inspect {LORA}: does not fit OTHER: "]),
    "wise": (["wise", BASE, LORA, "--alpha", "0,1", "--score", "false {}"], ["2 of 2 points could not be scored"]),
}


@pytest.mark.parametrize("case", QUIET)
def test_a_check_that_fails_says_so_in_one_line(tmp_path: Path, merged: Path, case: str) -> None:
    (tmp_path / "OUT").symlink_to(merged)
    other = tmp_path / "OTHER"
    other.mkdir()
    (other / "model.safetensors").write_bytes((FIXTURES / "rslora/adapter_model.safetensors").read_bytes())
    damaged = tmp_path / "DAMAGED"
    damaged.mkdir()
    for path in merged.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes() + b"x" * (path.name == "config.json"))
    arguments, said = QUIET[case]
    done = adaptertool(*arguments, "-q", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("adaptertool: ") and all(part in line for part in said), line


def test_a_check_that_passes_says_nothing(merged: Path) -> None:
    for arguments in (["verify", merged, BASE, LORA], ["verify", merged], ["diff", merged, merged]):
        done = adaptertool(*arguments, "-q")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# --- notes, and JUnit ---


def test_sums_of_our_own_are_no_news(tmp_path: Path, merged: Path) -> None:
    assert verify(merged, BASE, [LORA]).notes == ()
    assert diff(merged, BASE).notes == ()
    assert not any("SHA256SUMS" in note for note in merge(merged, [LORA], tmp_path / "again").notes)
    assert not (tmp_path / "again/SHA256SUMS").exists()
    (tmp_path / "again/adaptertool.manifest.json").unlink()
    (tmp_path / "again/SHA256SUMS").write_text("of another tool")
    assert any("SHA256SUMS" in note for note in diff(tmp_path / "again", BASE).notes)


def test_junit_groups_by_module(tmp_path: Path, merged: Path) -> None:
    done = adaptertool("verify", merged, BASE, LORA, "-w", "0.5", "--junit", "junit.xml", cwd=tmp_path)
    assert done.returncode == 1
    suite = ET.parse(tmp_path / "junit.xml").getroot().find("testsuite")
    assert suite is not None and float(suite.attrib["time"]) > 0
    cases = {case.attrib["name"]: case for case in suite.findall("testcase")}
    assert len(cases) == 39 and suite.attrib["tests"] == "39" and suite.attrib["failures"] == "28"
    name = "model.layers.0.self_attn.q_proj.weight"
    assert cases[name].attrib["classname"] == "model.layers.0.self_attn.q_proj"
    assert cases[name].find("failure") is not None


def test_a_dtype_is_one_of_three(tmp_path: Path) -> None:
    done = adaptertool("merge", BASE, LORA, "-o", "out", "--dtype", "fp8", "--json", cwd=tmp_path)
    assert done.returncode == 2 and all(repr(dtype) in done.stderr for dtype in ("bf16", "f16", "f32"))
    assert json.loads(done.stdout)["error"]["type"] == "UsageError"
