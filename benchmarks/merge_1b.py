"""Merge an all-linear rank-16 adapter into a 1.1 B-parameter bf16 checkpoint: adaptertool, its peers, and a copy.

    python benchmarks/merge_1b.py [RUNS]

Whole processes, start-up included, in turn, with the page cache warm; what is written is fsynced by all. Then all
outputs are compared: their weights with adaptertool's, and, loaded with transformers, their logits with those of
PEFT's unmerged model. tinker-cookbook has an environment of its own (`make bench-peers`), and is skipped without it.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from measure import COPY, PYTHON, SYNCED, TOOL, WORK, copying, figures, in_turn, into_page, machine, ratio

HERE = WORK.parent
BASE, ADAPTER = WORK / "base", WORK / "adapter"
TINKER = HERE / ".venv-tinker" / "bin" / "python"

OURS, PEFT = "`adaptertool merge`", "PEFT load, `merge_and_unload`, `save_pretrained`"


def contestants() -> dict[str, list[object]]:
    found = {
        OURS: [*TOOL, "merge", BASE, ADAPTER, "-o", WORK / "ours"],
        PEFT: [*SYNCED, PYTHON, HERE / "peft_merge.py", BASE, ADAPTER, WORK / "peft"],
    }
    if TINKER.exists():
        ask = "import importlib.metadata as m; print(m.version('tinker-cookbook'))"
        version = subprocess.run([TINKER, "-c", ask], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        name = f"tinker-cookbook {version} `build_hf_model`, shard by shard"
        found[name] = [*SYNCED, TINKER, HERE / "tinker_merge.py", BASE, ADAPTER, WORK / "tinker"]
    else:
        print("tinker-cookbook is skipped: `make bench-peers` installs it", file=sys.stderr)
    return found | {COPY: copying(BASE, WORK / "copy")}


def output(script: str, *arguments: object) -> list[str]:
    """Lines that a script prints, as a list in Markdown in which folders are called after those who wrote them."""
    command = [PYTHON, "-W", "ignore", HERE / script, *arguments]
    text = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    for folder, author in {"ours": "adaptertool", "peft": "PEFT", "tinker": "tinker-cookbook"}.items():
        text = text.replace(f"{WORK / folder}", f"merged by {author}")
    return [f"- {line}" for line in text.splitlines()]


def main(runs: int) -> None:
    if not (ADAPTER / "adapter_model.safetensors").exists():
        WORK.mkdir(exist_ok=True)
        subprocess.run([PYTHON, HERE / "make_1b.py", WORK], check=True)
    commands = contestants()
    timings = in_turn(commands, runs)
    merged = [command[-1] for name, command in commands.items() if name != COPY]
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        "| 1.1 B bf16, 3 shards, all-linear rank 16 | wall s | CPU s | peak memory | wall, adaptertool = 1 |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {name} | {figures(done)} | {ratio(done, timings[OURS]):.2f} |" for name, done in timings.items()),
        "",
        "Logits against PEFT's unmerged model, in float32:",
        "",
        *output("check_1b.py", BASE, ADAPTER, *merged),
        "",
        "Weights against those merged by adaptertool, which are the correct roundings:",
        "",
        *output("differ_1b.py", *merged),
    ]
    into_page("merge_1b", "\n".join(lines))
    for command in commands.values():
        shutil.rmtree(str(command[-1]))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
