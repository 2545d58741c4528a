"""Every command of the README and of the pages in docs/ is run as it stands, all of a page in order and in one
directory, and prints what the page says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import warm
from conftest import FIXTURES, ROOT

from adaptertool import errors
from adaptertool.kinds import SPELLED

PAGES = {path.stem: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
TEXT = "\n".join(PAGES.values())
COMMAND = re.compile(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", re.M)  # and what it prints
COMMANDS = {
    name: [
        match.groups()
        for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL)
        for match in COMMAND.finditer(block)
    ]
    for name, text in PAGES.items()
}
PYTHON = re.findall(r"```python\n(.*?)```(?:\n\n```\n(.*?)```)?", PAGES["python"], re.DOTALL)  # and what it prints

# Figures that differ from run to run: seconds, rates, memory, threads, free space; and from one processor to another:
# how many elements the error bound of the floats leaves open
VARIES = (
    (r'"(seconds|bytes_per_second|threads|peak_memory|settled)": [\d.e+]+', r'"\1": #'),
    (r"[\d.]+ s, [\d.]+ [kMG]?B/s, \d+ threads?", "#"),
    (r"[\d.]+ s, \d+ threads?", "#"),
    (r"[\d.]+ [kMG]B at the peak", "#"),
    (r"[\d.]+ [kMGT]B free", "#"),
    (r"at most [\d.]+ [kMG]B \(\d+ threads?\)", "#"),
    (r"[\d,]+ elements near the middle", "# elements near the middle"),
)
FIGURE = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]\d+)?%?")
BY_MODELS = re.compile("evaluate|--score|torch")  # commands whose figures a model has computed


def stable(text: str) -> tuple[list[str], list[str]]:
    """A text as its layout and its figures. Figures of another width move what stands beside them, so blanks and rules
    count as one each."""
    for pattern, replacement in VARIES:
        text = re.sub(pattern, replacement, text)
    return re.sub(r"[ \t]+", " ", FIGURE.sub("@", text)).strip().splitlines(), FIGURE.findall(text)


def near(printed: str, shown: str, *, by_model: bool) -> bool:
    """Whether two figures are the same but for the last digit that is shown. What a model computes in bfloat16 differs
    by more between processors: a share by as much as one of four prompts is, a small distance by a factor."""
    one, other = (float(figure.rstrip("%").replace(",", "")) for figure in (printed, shown))
    if by_model and "%" in shown:
        return abs(one - other) <= 30
    if by_model:
        return abs(one - other) <= (0.67 if "e" in shown else 0.02) * max(abs(one), abs(other))
    if not re.search(r"[.e]", shown):
        return printed == shown
    mantissa, _, exponent = shown.rstrip("%").partition("e")
    last_digit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(one - other) <= 1.5 * last_digit


def require_alike(printed: str, shown: str, source: str) -> None:
    (layout, figures), (layout_shown, figures_shown) = stable(printed), stable(shown)
    assert layout == layout_shown, source
    by_model = bool(BY_MODELS.search(source))
    apart = [pair for pair in zip(figures, figures_shown, strict=True) if not near(pair[0], pair[1], by_model=by_model)]
    assert not apart, (source, printed)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    shutil.copytree(FIXTURES, tmp_path / "fixtures")
    return tmp_path


@pytest.fixture(scope="module")
def warm_programs() -> Path:
    return warm.programs()


def environment(programs: Path) -> dict[str, str]:
    """`adaptertool` and `python` are found in this folder, as after `. .venv/bin/activate`. Models take one thread:
    beside other tests, those of small products wait for each other most of the time."""
    return os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


def test_there_are_commands() -> None:
    assert sum(map(bool, COMMANDS.values())) >= 10 and sum(map(len, COMMANDS.values())) >= 40 and len(PYTHON) == 2


@pytest.mark.parametrize("page", [name for name, commands in COMMANDS.items() if commands])
def test_commands(workplace: Path, warm_programs: Path, page: str) -> None:
    """Those of the README are the programs as they were installed; those of the other pages fork (`tests/warm.py`)."""
    environ = environment(Path(sys.executable).parent if page == "README" else warm_programs)
    for command, shown in COMMANDS[page]:
        done = subprocess.run(
            shlex.split(command), cwd=workplace, capture_output=True, text=True, env=environ, check=False
        )
        printed = done.stdout + done.stderr + (f"[exit code {done.returncode}]" if done.returncode else "")
        require_alike(printed, shown, command)


@pytest.mark.parametrize(("code", "shown"), PYTHON)
def test_python(workplace: Path, warm_programs: Path, code: str, shown: str) -> None:
    done = subprocess.run(
        [warm_programs / "python", "-c", code], cwd=workplace, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    require_alike(done.stdout, shown or "", code)


def test_figures_are_compared() -> None:
    """The comparison finds what is wrong, and lets pass what processors do."""
    require_alike("loss  2.805 100.0%", "loss 2.806  98.4%", "torch")
    require_alike("error 0.842", "error 0.841", "extract")
    for printed, shown, source in (
        ("27 edited", "28 edited", "merge"),
        ("error 0.86", "error 0.841", "extract"),
        ("loss 2.9", "loss 2.8", "torch"),
        ("KL 9e-04", "KL 1.31e-04", "evaluate"),
        ("wrong 2", "right 2", "verify"),
    ):
        with pytest.raises(AssertionError):
            require_alike(printed, shown, source)


def test_make_targets_and_commands_are_documented() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)", TEXT, re.M):
        assert re.search(rf"^{''.join(target)}:", makefile, re.M), target
    help_text = subprocess.run(
        [sys.executable, "-m", "adaptertool", "--help"], capture_output=True, text=True, check=True
    )
    for command in re.findall(r"^  (\w+)  ", help_text.stdout.split("Commands:")[1].split("Exit")[0], re.M):
        assert f"adaptertool {command} " in TEXT, command


def test_exit_codes_are_those_of_the_errors() -> None:

    codes = {
        e.exit_code for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.AdapterToolError)
    }
    assert codes | {1} == {int(code) for code in re.findall(r"^\| (\d+) \|", PAGES["pipelines"], re.M)} - {0}


def test_the_table_of_kinds_has_all_that_is_read_of_peft() -> None:
    told = re.sub(r"[^A-Z0-9]", "", PAGES["kinds"].upper().replace("³", "3"))
    tags = [tag for name, tag in SPELLED if name == "peft"]
    assert len(tags) > 20
    assert not [tag for tag in tags if re.sub(r"[^A-Z0-9]", "", tag) not in told]


def test_links_lead_somewhere() -> None:
    for name, text in PAGES.items():
        folder = ROOT if name == "README" else ROOT / "docs"
        links = re.findall(r"\]\(((?!https?:)[^)#]+)", text)
        assert not [link for link in links if not (folder / link).exists()], name


def test_the_readme_is_read_in_a_few_minutes() -> None:
    assert len(PAGES["README"].splitlines()) <= 150
    assert "docs/index.md" in PAGES["README"]


def test_every_page_has_its_place_on_the_site() -> None:
    listed = re.findall(
        r"^([\w-]+)$", "\n".join(re.findall(r"```{toctree}\n(.*?)```", PAGES["index"], re.DOTALL)), re.M
    )
    assert sorted(listed) == sorted(set(PAGES) - {"README", "index"})
