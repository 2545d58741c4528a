"""The structure that CONTRIBUTING.md promises: imports go downwards, and heavy ones happen late."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FIXTURES, ROOT

import adaptertool
from adaptertool.kinds import KINDS

PACKAGE = ROOT / "adaptertool"

# Rooms from the lowest level to the highest; a room may import from the levels before its own, and from itself.
LEVELS = [
    ["version", "errors", "process", "records", "patterns"],
    ["interrupts", "spec", "reports"],
    ["late", "numerics"],
    ["files"],
    ["kinds", "methods", "codecs"],
    ["architectures"],
    ["arguments", "render", "formats", "resolution", "arithmetic"],
    ["planning"],
    ["engine", "live", "mergekit_yaml"],
    ["algebra", "verification", "fidelity", "inspection", "evaluation"],
    ["output"],
    ["scoring"],
    ["tasks"],
    ["recipes"],
    ["cli"],
    ["__main__"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
SOURCES = sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    return names_in(parsed(path), path)


def names_in(tree: ast.AST, path: Path) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "late":
            names.add(".".join(map(ast.literal_eval, node.args)))
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


ROOMS = sorted(set(map(room, SOURCES)))


@pytest.mark.parametrize("here", [name for name in ROOMS if name != "__init__"])  # the facade imports what is asked for
def test_imports_go_downwards(here: str) -> None:
    names = {(name, path) for path in SOURCES if room(path) == here for name in imported(path)}
    levels = {(name, path): name.split(".")[1] for name, path in names if name.split(".")[0] == "adaptertool"}
    wrong = [found for found, level in levels.items() if level != here and LEVEL[level] >= LEVEL[here]]
    assert not wrong, f"{here} imports what is not below it"


def test_planning_and_arithmetic_know_only_the_records() -> None:
    for path in SOURCES:
        others = {"planning": "arithmetic", "arithmetic": "planning"}.get(room(path), "")
        assert not others or not any(name.startswith(f"adaptertool.{others}") for name in imported(path)), path


def module_of(path: Path) -> str:
    return ".".join(("adaptertool", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_no_module_imports_itself_by_way_of_others() -> None:
    modules = {module_of(path): path for path in SOURCES}
    graph = {
        name: {one if one in modules else one.rpartition(".")[0] for one in imported(path)} & modules.keys()
        for name, path in modules.items()
        if name != "adaptertool"  # the facade
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


LATE = {"distributed", "torch", "transformers", "peft", "matplotlib", "jinja2", "markupsafe", "junitparser", "obstore"}


def test_imports_stand_at_the_top() -> None:
    """Late are the libraries of extras, and modules of ours that stand on them."""
    heavy, grown = set[str](), True
    tops = {module_of(path): imported_at_the_top(path) for path in SOURCES}
    while grown:
        more = {name for name, own in tops.items() if own & heavy or {one.split(".")[0] for one in own} & LATE}
        grown, heavy = more != heavy, more
    for path in SOURCES:
        if path.name == "__main__.py":
            continue  # a Ctrl-C while the command line is loaded has no traceback
        for name in imported(path) - imported_at_the_top(path):
            assert name.split(".")[0] in LATE or name in heavy or name.rpartition(".")[0] in heavy, (path, name)


def test_nothing_of_an_extra_is_needed_to_start() -> None:
    """Every command and every public function is there after a plain install."""
    missing = f"import sys; sys.modules |= dict.fromkeys({sorted(LATE)!r}); "
    code = missing + (
        "import adaptertool; from adaptertool.cli import curve, run, sweep_told, table; "
        "[getattr(adaptertool, name) for name in adaptertool.__all__]; "
        "[table.load(entry.module, entry.attribute) for entry in table.COMMANDS]"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@functools.cache
def imported_at_the_top(path: Path) -> set[str]:
    outside = (node for node in parsed(path).body if not isinstance(node, Definition))
    names = names_in(ast.Module(list(outside), []), path)
    return names | {name.rpartition(".")[0] for name in names}


def test_nobody_else_compares_the_name_of_a_kind() -> None:
    """What a kind can do is asked of its record: a new one is one file."""
    names = "|".join(f'"{kind.name}"' for kind in KINDS)
    by_name = re.compile(rf"(?:{'|'.join(kind.name.upper() for kind in KINDS)})\.name|kind is (?:not )?[A-Z]|{names}")
    for path in SOURCES:
        for node in ast.walk(parsed(path)) if room(path) != "kinds" else ():
            if isinstance(node, ast.Compare) and "kind" in (source := ast.unparse(node).replace("'", '"')):
                assert not by_name.search(source), f"{path}: {source}"


def test_the_rooms_are_told_as_they_are() -> None:
    """CONTRIBUTING.md lists them, level by level."""
    told: list[list[str]] = []
    for line in (ROOT / "CONTRIBUTING.md").read_text().split("```")[3].splitlines():
        if found := re.match(r"( ?\d+|   ) +([a-z_]+)/? ", line):
            told += [[]] if found[1].strip() else []
            told[-1].append(found[2])
    assert list(map(sorted, told)) == list(map(sorted, LEVELS))


def test_every_room_stands_on_a_level() -> None:
    assert {room(path) for path in SOURCES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("click", {"cli"}),
        ("tqdm", {"cli"}),
        ("torch", {"live", "evaluation", "kinds"}),
        ("transformers", {"evaluation"}),
        ("peft", {"live"}),
        ("distributed", {"tasks"}),
    ],
)
def test_only_one_room_knows(library: str, allowed: set[str]) -> None:
    users = {room(path) for path in SOURCES if any(name.split(".")[0] == library for name in imported(path))}
    assert users == allowed


def test_files_and_functions_stay_small() -> None:
    for path in SOURCES:
        tree = parsed(path)
        assert len(path.read_text().splitlines()) <= 260, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                told = (ast.get_docstring(node, clean=False) or "").count(
                    "\n"
                )  # of a public function with many options
                assert (node.end_lineno or 0) - node.lineno - told < 60, f"{path}: {node.name}"


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def defined(node: ast.AST, name: str, *, public: bool = True) -> Iterator[tuple[str, Definition, bool]]:
    """All functions and classes below a node, with their full names, and whether callers may use them: no name on the
    way begins with an underscore, and nothing is inside a function."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            own = public and not child.name.startswith("_")
            yield f"{name}.{child.name}", child, own
            yield from defined(child, f"{name}.{child.name}", public=own and isinstance(child, ast.ClassDef))
        else:
            yield from defined(child, name, public=public)


def raises(node: ast.AST) -> bool:
    """Whether a function has a `raise` of its own, outside of the functions and classes in it."""
    inside = [child for child in ast.iter_child_nodes(node) if not isinstance(child, Definition | ast.Lambda)]
    return any(isinstance(child, ast.Raise) or raises(child) for child in inside)


@pytest.mark.parametrize("here", ROOMS)
def test_docstrings_have_a_subject_and_their_errors(here: str) -> None:
    wrong = list[str]()
    for path in [path for path in SOURCES if room(path) == here]:
        tree = parsed(path)
        for name, node, public in [("module", tree, False), *defined(tree, "module")]:
            told = ast.get_docstring(node) or ""
            if told.startswith("Of "):
                wrong.append(f"{path}: {name}: of what?")
            if public and not isinstance(node, ast.ClassDef) and raises(node) and not re.search(r"\bRaises?\b", told):
                wrong.append(f"{path}: {name} does not say what it raises")
    assert not wrong


def test_what_raises_is_found() -> None:
    code = "def f():\n    def g(): raise ValueError\nclass C:\n    def h(self):\n        if 1: raise\n    def _i(_): 0"
    found = {name: (public, raises(node)) for name, node, public in defined(ast.parse(code), "m")}
    wanted = {"f": (True, False), "f.g": (False, True), "C": (True, False), "C.h": (True, True), "C._i": (False, False)}
    assert found == {f"m.{name}": what for name, what in wanted.items()}


@pytest.mark.parametrize(
    "call",
    [
        "import adaptertool, adaptertool.cli",
        "import adaptertool; adaptertool.prepare_merge(BASE, [LORA])",
        "import adaptertool; adaptertool.prepare_wise(BASE, TUNED, [0.5])",
    ],
)
def test_planning_needs_no_torch(call: str) -> None:
    paths = f"BASE, LORA, TUNED = {[str(FIXTURES / name) for name in ('base', 'lora', 'tuned')]}; "
    code = f"{paths}{call}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names() -> None:
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in SOURCES}
    assert modules.isdisjoint(adaptertool.__all__)  # an import of the module would hide the function
    for name in adaptertool.__all__:
        thing = getattr(adaptertool, name)
        assert isinstance(thing, str) or thing.__doc__
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = adaptertool.nothing_such  # type: ignore[attr-defined]
