"""Recipes as they are run: the bytes of the command line, what is left when one is cut off, and manifests replayed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import adaptertool, snapshot
from manifests import MANIFEST, checkpoint, lora, manifest
from safetensors.torch import load_file, save_file

import adaptertool as package
from adaptertool.errors import AdapterToolError, InputError, MismatchError, OutputError, UsageError
from adaptertool.recipes.workshop import Workshop

TWO = """
steps:
  - name: both
    sum: {adapters: [one, two], weights: [0.5, 2]}
  - name: half
    wise: {base: base, tuned: tuned, alpha: 0.5}
  - merge: {base: "${half}", adapters: ["${both}", one], weights: [1, 0.1], out: merged}
  - verify: {merged: merged, base: "${half}", sources: ["${both}", one], weights: [1, 0.1]}
"""

OF_MERGEKIT = """
models:
  - model: tuned
    parameters: {weight: 0.5, density: 0.4}
  - {model: base+one, parameters: {weight: -1}}
merge_method: dare_ties
base_model: base
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    checkpoint(tmp_path / "base")
    checkpoint(tmp_path / "tuned", seed=1)
    lora(tmp_path / "one")
    lora(tmp_path / "two")
    (tmp_path / "r.yaml").write_text(TWO)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# A step of each command that writes, as a recipe and as it is typed
STEPS: list[tuple[dict[str, Any], str]] = [
    ({"merge": {"base": "base", "adapters": ["one", "two"], "weights": [0.3, -1]}}, "merge base one two -w 0.3 -w -1"),
    (
        {"merge": {"base": "base", "adapters": ["one", "tuned"], "method": "ties", "density": 0.4, "dtype": "f32",
                   "max_shard_size": "10KB", "sha256": True}},
        "merge base one tuned --method ties --density 0.4 --dtype f32 --max-shard-size 10KB --sha256",
    ),
    (
        {"merge": {"base": "base", "adapters": ["one", "two"], "method": "dare_ties", "density": 0.5, "seed": 7,
                   "weights": [0.1, 0.7]}},
        "merge base one two --method dare_ties --density 0.5 --seed 7 -w 0.1 -w 0.7",
    ),
    ({"merge": {"base": "base", "adapters": ["one", "tuned"], "method": "slerp", "weights": [0.1, 0.7]}}, ""),
    (
        {"merge": {"base": "base", "adapters": ["one"], "compose": "mixed", "precision": "fast"}},
        "merge base one --compose mixed --precision fast",
    ),
    ({"wise": {"base": "base", "tuned": "tuned", "alpha": [0, 0.3, 1]}}, "wise base tuned --alpha 0,0.3,1"),
    (
        {"wise": {"base": "base", "tuned": "one", "alpha": 0.3, "as_adapter": True}},
        "wise base one --alpha 0.3 --as-adapter",
    ),
    (
        {"wise": {"base": "base", "tuned": "tuned", "alpha": 0.3, "fisher": ["f", "f"], "weights": [0.25]}},
        "wise base tuned --alpha 0.3 --fisher f f -w 0.25",
    ),
    ({"sum": {"adapters": ["one", "two"], "weights": [1, -1], "rank": 3}}, "sum one two -w 1 -w -1 --rank 3"),
    (
        {"sum": {"adapters": ["one", "two"], "method": "ties_svd", "density": 0.5, "base": "base", "to": "mlx"}},
        "",
    ),
    ({"truncate": {"adapter": "one", "energy": "0.9", "balance": True}}, "truncate one --energy 0.9 --balance"),
    (
        {"extract": {"base": "base", "tuned": "tuned", "rank": 2, "dtype": "bf16", "leave_out": ["norm|steps"]}},
        "extract base tuned --rank 2 --dtype bf16 --leave-out norm|steps",
    ),
    ({"convert": {"adapter": "one", "to": "mlx", "base": "base"}}, "convert one --to mlx --base base"),
    (
        {"merge": {"base": "base", "adapters": ["one", "two"], "weights": [0.3, 1, "*0.*=2,-1"], "only": ["layers.0-7"],
                   "exclude": ["*norm*"]}},
        "merge base one two -w 0.3 -w 1 -w *0.*=2,-1 --only layers.0-7 --exclude *norm*",
    ),
    (
        {"wise": {"base": "base", "tuned": "tuned", "alpha": [0.1, 0.7], "weights": [0.5, "*0.*=0.5"]}},
        "wise base tuned --alpha 0.1,0.7 -w 0.5 -w *0.*=0.5",
    ),
    ({"sum": {"adapters": ["one", "two"], "weights": [1, -1, "*0.*=2"]}}, "sum one two -w 1 -w -1 -w *0.*=2"),
    ({"layers": {"base": "base", "layers": "0,0"}}, "layers base 0,0"),
    ({"mergekit": {"config": "mk.yaml", "seed": 3}}, "mergekit mk.yaml --seed 3"),
]  # fmt: skip


@pytest.mark.parametrize(("step", "typed"), STEPS, ids=lambda one: next(iter(one)) if isinstance(one, dict) else "")
def test_a_step_is_its_command_and_its_manifest_makes_it_again(here: Path, step: dict[str, Any], typed: str) -> None:
    if "fisher" in next(iter(step.values())):
        _squared(here)
    (here / "mk.yaml").write_text(OF_MERGEKIT)
    if "layers" in step:
        config = json.loads((here / "base" / "config.json").read_text())
        (here / "base" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 5}))
    if next(iter(step.values())).get("method") == "slerp":
        step["merge"] |= {"adapters": ["one"], "weights": [0.25]}
        typed = "merge base one --method slerp -w 0.25"
    done = package.apply(step, "out")
    assert done.ok and [one.state for one in done.steps] == ["done"]
    if typed:
        assert adaptertool(*typed.split(), "-o", "cli", cwd=here).returncode == 0
        assert snapshot(here / "cli") == snapshot(here / "out")
    again = package.apply(f"out/{MANIFEST}", "again")
    assert again.same is True and again.ok and again.differing == ()
    assert snapshot(here / "again") == snapshot(here / "out")


def test_a_configuration_of_mergekit_is_a_recipe(here: Path) -> None:
    (here / "mk.yaml").write_text(OF_MERGEKIT)
    assert package.apply("mk.yaml", "out").ok
    package.mergekit("mk.yaml", "other")
    assert snapshot(here / "out") == snapshot(here / "other")
    (here / "out" / "mergekit_config.yml").write_text(OF_MERGEKIT.replace("0.5", "0.6"))
    with pytest.raises(MismatchError, match=r"mergekit_config\.yml has"):
        package.apply(f"out/{MANIFEST}", "again")
    tuned = next((here / "tuned").glob("*.safetensors"))
    tuned.write_bytes(tuned.read_bytes()[:-1] + b"\x01")
    for how in ({"check": True}, {"out": "again"}):  # the models that a configuration names are inputs as well
        with pytest.raises(MismatchError, match=rf"{tuned.name} has the BLAKE3 hash"):
            package.apply(f"other/{MANIFEST}", **how)
    assert not (here / "again").exists()


def _squared(here: Path) -> None:
    shutil.copytree(here / "base", here / "f")
    for path in (here / "f").glob("*.safetensors"):
        save_file({k: v.abs() if v.is_floating_point() else v for k, v in load_file(path).items()}, path)


def test_steps_take_what_others_make(here: Path) -> None:
    done = adaptertool("apply", "r.yaml", "--report", "report.json", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "-> ${both}" in done.stdout and "verify merged: right" in done.stdout and ".steps" not in done.stdout
    assert {path.name for path in here.iterdir()} == {"base", "tuned", "one", "two", "r.yaml", "merged", "report.json"}
    for typed in (
        "sum one two -w 0.5 -w 2 -o both",
        "wise base tuned --alpha 0.5 -o half",
        "merge half both one -w 1 -w 0.1 -o by-hand",
    ):
        assert adaptertool(*typed.split(), cwd=here).returncode == 0
    ours, theirs = snapshot(here / "merged"), snapshot(here / "by-hand")
    found = json.loads(ours.pop(MANIFEST))
    steps = found.pop("steps")
    assert found == json.loads(theirs.pop(MANIFEST)) and ours == theirs  # also what it calls its inputs
    assert [one.get("manifest") for one in steps] == [manifest(here / "both"), manifest(here / "half"), None, None]
    assert str(here) not in (here / "merged" / MANIFEST).read_text()
    report = json.loads((here / "report.json").read_text())
    assert (report["schema"], report["ok"], report["out"]) == ("apply/1", True, "merged")
    assert [(one["command"], one["state"]) for one in report["steps"]] == [
        ("sum", "done"), ("wise", "done"), ("merge", "done"), ("verify", "done"),
    ]  # fmt: skip
    again = package.apply(f"merged/{MANIFEST}", "again")
    assert again.same and snapshot(here / "again") == snapshot(here / "merged")


def test_paths_are_relative_to_the_recipe(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")
    assert package.apply("../r.yaml").ok and (here / "merged").is_dir()
    assert package.apply("../r.yaml", "own").ok
    assert snapshot(here / "merged") == snapshot(here / "below" / "own")  # nothing tells where it was made


def test_a_dry_run_plans_what_is_planned(here: Path) -> None:
    text = TWO.replace('"${both}", one', "one, two").replace("    sum: {", "    merge: {base: base, ")
    (here / "r.yaml").write_text(text.replace("tuned: tuned", 'tuned: "${both}"'))
    before = set(here.iterdir())
    done = package.apply("r.yaml", dry_run=True)
    assert [one.state for one in done.steps] == ["planned", "planned", "planned", "to plan"] and done.ok
    assert [one.why for one in done.steps] == [None, None, None, "it looks at numbers, and a dry run makes none"]
    planned = done.steps[2].report
    assert planned is not None and (planned["schema"], planned["base"]) == ("plan/1", "${half}")
    assert set(here.iterdir()) == before
    made = package.apply("r.yaml")
    ran = made.steps[2].report
    assert ran is not None and ran["bytes_written"] == planned["bytes_written"]
    (here / "r.yaml").write_text(TWO)  # with a sum, whose output is not known before
    text = adaptertool("apply", "r.yaml", "--dry-run", "--force", cwd=here).stdout
    told = "  step 3   merge -> merged: to plan\n           what step 1 (sum) makes is known once it is computed\n"
    assert told.replace(" -> merged", "") in text and max(map(len, text.splitlines())) <= 120


@pytest.mark.long
@pytest.mark.parametrize("point", range(20, 80, 6))
def test_a_killed_run_goes_on(here: Path, point: int) -> None:
    """SIGKILL at the call of the system number `point` of those that change the disk."""
    code = (
        "import os, signal, sys; from adaptertool.cli import cli; left = [int(sys.argv.pop(1))]\n"
        "def hook(name, args):\n"
        "    if name in ('os.rename', 'os.mkdir', 'os.link', 'os.remove', 'os.rmdir') or "
        "(name == 'open' and isinstance(args[2], int) and args[2] & os.O_CREAT):\n"
        "        left[0] -= 1\n"
        "        left[0] or os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(hook)\n"
        "cli.main(['apply', 'r.yaml', '-q', '--threads', '1'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(point)], cwd=here, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = (here / "merged").exists()
    done_after = package.apply("r.yaml", force=finished)
    assert done_after.ok
    assert not [path for path in here.iterdir() if path.name.startswith(".")]
    assert package.apply("r.yaml", "fresh").ok
    assert snapshot(here / "fresh") == snapshot(here / "merged")


@pytest.mark.parametrize(("out", "step"), [("s", ""), ("s.safetensors", ", to: kohya, base: base")])
def test_an_output_that_stays_is_known_again(here: Path, out: str, step: str) -> None:
    """Killed as soon as a step has its OUT, before anything else is written: also where OUT is one file."""
    name, adapters = ("convert", "adapter: one") if step else ("sum", "adapters: [one, two]")
    steps = f"- {name}: {{{adapters}{step}, out: {out}}}\n- merge: {{base: base, adapters: [two], out: o}}"
    (here / "r.yaml").write_text(f"steps:\n{steps}\n")
    code = (
        "import os, signal; from adaptertool.cli import cli; from adaptertool.files import publish\n"
        f"publish.sync_directory = lambda _: os.path.exists({out!r}) and os.kill(os.getpid(), signal.SIGKILL) or True\n"
        "cli.main(['apply', 'r.yaml', '-q'], standalone_mode=False)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL and (here / out).exists() and not (here / "o").exists()
    assert [one.state for one in package.apply("r.yaml").steps] == ["there", "done"]


def test_what_is_made_is_not_made_again(here: Path) -> None:
    spoiled = TWO.replace("[1, 0.1], out", "[1, 0.1, 3], out")
    (here / "r.yaml").write_text(spoiled)
    with pytest.raises(UsageError, match=r"step 3/4 r\.yaml:7:5: merge: 3 weights for 2 adapters.*the same command"):
        package.apply("r.yaml")
    assert [path.name for path in here.iterdir() if path.name.startswith(".merged.steps.adaptertool-")]
    (here / "r.yaml").write_text(TWO)
    assert [one.state for one in package.apply("r.yaml").steps] == ["there", "there", "done", "done"]
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


KEPT = """
steps:
  - sum: {adapters: [one, two], out: both}
  - merge: {base: base, adapters: [both], out: merged}
"""


def killed_once_it_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workshop, "tell", killed)
        with pytest.raises(KeyboardInterrupt):
            package.apply("r.yaml")


def test_killed_between_publishing_and_its_report(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An OUT that is kept, of an early step: it is known again by what was noted before."""
    (here / "r.yaml").write_text(KEPT)
    killed_once_it_has_its_place(monkeypatch)
    made = snapshot(here / "both")
    done = package.apply("r.yaml")
    assert [one.state for one in done.steps] == ["there", "done"] and snapshot(here / "both") == made
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("change", ["file", "adapter of another"])
def test_what_only_looks_like_it_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    (here / "r.yaml").write_text(KEPT)
    killed_once_it_has_its_place(monkeypatch)
    if change == "file":
        file = here / "both" / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-1] + b"\1")
    else:
        shutil.rmtree(here / "both")
        package.sum_adapters(["one", "two"], "both", weights=[1, 2])
    before = snapshot(here / "both")
    with pytest.raises(OutputError, match="both exists"):
        package.apply("r.yaml")
    assert snapshot(here / "both") == before


def test_a_single_file_that_is_made_is_not_made_again(here: Path) -> None:
    recipe = """
steps:
  - convert: {adapter: one, to: kohya, base: base, out: one.safetensors}
  - merge: {base: base, adapters: [one.safetensors], weights: [1, 3], out: merged}
"""
    (here / "r.yaml").write_text(recipe)
    with pytest.raises(UsageError, match="2 weights"):
        package.apply("r.yaml")
    (here / "r.yaml").write_text(recipe.replace("[1, 3]", "[1]"))
    assert [one.state for one in package.apply("r.yaml").steps] == ["there", "done"]


def test_what_was_made_and_removed_is_made_again(here: Path) -> None:
    (here / "r.yaml").write_text(KEPT.replace("[both], out", "[both], weights: [1, 3], out"))
    with pytest.raises(UsageError, match="2 weights"):
        package.apply("r.yaml")
    shutil.rmtree(here / "both")
    (here / "r.yaml").write_text(KEPT)
    assert [one.state for one in package.apply("r.yaml").steps] == ["done", "done"]


def test_what_is_made_of_other_inputs_is_made_again(here: Path) -> None:
    (here / "r.yaml").write_text(TWO.replace("[1, 0.1], out", "[1, 0.1, 3], out"))
    with pytest.raises(UsageError):
        package.apply("r.yaml")
    os.utime(here / "two" / "adapter_model.safetensors")
    (here / "r.yaml").write_text(TWO)
    assert [one.state for one in package.apply("r.yaml").steps] == ["done", "there", "done", "done"]


def test_an_output_on_the_way_that_is_gone_is_made_again(here: Path) -> None:
    text = TWO.replace("weights: [0.5, 2]}", "weights: [0.5, 2], out: sum}").replace("${both}", "sum")
    (here / "r.yaml").write_text(text.replace("[1, 0.1], out", "[1, 0.1, 3], out"))
    with pytest.raises(UsageError):
        package.apply("r.yaml")
    shutil.rmtree(here / "sum")
    (here / "r.yaml").write_text(text)
    assert [one.state for one in package.apply("r.yaml").steps] == ["done", "there", "done", "done"]


def test_clean_removes_what_steps_left(here: Path) -> None:
    (here / "r.yaml").write_text(TWO.replace("[1, 0.1], out", "[1, 0.1, 3], out"))
    assert adaptertool("apply", "r.yaml", "-q", cwd=here).returncode == 2
    assert "removed" in adaptertool("clean", "merged", cwd=here).stdout
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_faults_are_found_before_a_byte_is_written(here: Path) -> None:
    before = set(here.iterdir())
    shutil.copytree(here / "base", here / "taken")
    for text, error, what in (
        (TWO.replace("out: merged", "out: taken"), OutputError, "r.yaml:7:5: merge: taken exists"),
        (TWO.replace("tuned: tuned", "tuned: nowhere"), InputError, "step 2/4 r.yaml:6:5: wise .half.: nowhere"),
        (TWO.replace("weights: [1, 0.1], out", 'weights: ["1,2", 1], out'), UsageError, "r.yaml:7:5: .*1,2"),
        (TWO.replace(", out: merged", ""), InputError, "r.yaml:7:5: the last step that writes needs an `out`"),
    ):
        (here / "r.yaml").write_text(text)
        with pytest.raises(error, match=what):
            package.apply("r.yaml")
    assert set(here.iterdir()) == before | {here / "taken"}


def test_a_check_that_fails_ends_it(here: Path) -> None:
    (here / "r.yaml").write_text("steps:\n- diff: {a: base, b: tuned}\n- sum: {adapters: [one], out: s}\n")
    done = adaptertool("apply", "r.yaml", "--json", cwd=here)
    report = json.loads(done.stdout)
    assert (done.returncode, report["ok"], [one["ok"] for one in report["steps"]]) == (1, False, [False])
    assert report["steps"][0]["report"]["schema"] == "diff/1" and not (here / "s").exists()


def test_a_replay_names_what_has_changed(here: Path) -> None:
    package.apply("r.yaml")
    path = here / "merged" / MANIFEST
    elsewhere = here / "elsewhere"
    (here / "two").rename(elsewhere)
    with pytest.raises(InputError, match=r"two is neither here nor in .*: --input 1.adapters.1=PATH"):
        package.apply(path, "again")
    done = package.apply(path, "again", inputs={"both.adapters.1": elsewhere})
    assert done.ok and done.same
    shutil.rmtree(here / "again")
    weights = elsewhere / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MismatchError, match=r"elsewhere/adapter_model.safetensors has the BLAKE3 hash \w+, and had \w"):
        package.apply(path, "again", inputs={"both.adapters.1": elsewhere})
    with pytest.raises(MismatchError, match="is missing"):
        weights.unlink()
        package.apply(path, "again", inputs={"both.adapters.1": elsewhere}, check=True)
    with pytest.raises(UsageError, match=r"--input both\.adaptors"):
        package.apply(path, "again", inputs={"both.adapters.1": elsewhere, "both.adaptors": elsewhere})
    assert not (here / "again").exists()


def test_a_replay_leaves_out_what_other_outputs_are(here: Path) -> None:
    (here / "r.yaml").write_text(TWO.replace("steps:", "steps:\n  - sum: {adapters: [two], out: besides}", 1))
    assert package.apply("r.yaml").ok
    done = package.apply(f"merged/{MANIFEST}", "again")
    assert done.ok and done.same and [one.command for one in done.steps] == ["sum", "wise", "merge", "verify"]
    assert done.notes == ("step 1, step1, is left out: it made another output, of which this one is not made",)


def test_damaged_manifests_are_refused(here: Path) -> None:
    package.apply({"merge": {"base": "base", "adapters": ["one"]}}, "out")
    path = here / "out" / MANIFEST
    content = json.loads(path.read_text())
    for name, value in (
        ("recipe", {"command": "merge"}), ("recipe", 3), ("files", []), ("schema", "manifest/2"), ("inputs", {}),
        ("steps", [{}]), ("steps", [{"merge": {"base": "b"}, "rm": {}}]), ("recipe", content["recipe"] | {"rm": "-rf"}),
    ):  # fmt: skip
        path.write_text(json.dumps(content | {name: value}))
        with pytest.raises(AdapterToolError) as caught:
            package.apply(path, "again")
        assert caught.value.exit_code == 3, (name, value)
    assert not (here / "again").exists()
