"""Merge an all-linear rank-16 adapter into a 1.1 B-parameter bf16 checkpoint: adaptertool, PEFT, and a plain copy.

    python benchmarks/merge_1b.py [RUNS]

Whole processes, start-up included, in turn, with the page cache warm; the copy is fsynced, as adaptertool's output
is and PEFT's is not. Then all outputs are loaded with transformers and their logits compared.
"""

from __future__ import annotations

import shutil
import subprocess
import sys

from measure import WORK, Timing, into_readme, machine, median, spread, timed

HERE = WORK.parent
BASE, ADAPTER = WORK / "base", WORK / "adapter"
PYTHON = sys.executable

CONTESTANTS = {
    "`adaptertool merge`": [PYTHON, "-m", "adaptertool", "merge", BASE, ADAPTER, "-o", WORK / "ours"],
    "PEFT load, `merge_and_unload`, `save_pretrained`": [PYTHON, HERE / "peft_merge.py", BASE, ADAPTER, WORK / "peft"],
    "`cp -r` and fsync": ["bash", "-c", "cp -r $0 $1 && sync $1/*", BASE, WORK / "copy"],
}


def main(runs: int) -> None:
    if not (ADAPTER / "adapter_model.safetensors").exists():
        WORK.mkdir(exist_ok=True)
        subprocess.run([PYTHON, HERE / "make_1b.py", WORK], check=True)
    timings: dict[str, list[Timing]] = {name: [] for name in CONTESTANTS}
    for number in range(runs + 1):
        for name, command in CONTESTANTS.items():
            shutil.rmtree(command[-1], ignore_errors=True)
            result = timed(command)
            if number:  # the first round warms the page cache
                timings[name].append(result)
    ours = timings["`adaptertool merge`"]
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        "| 1.1 B bf16, 3 shards, all-linear rank 16 | wall s | CPU s | peak memory | wall, adaptertool = 1 |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, results in timings.items():
        ratios = [other.wall / own.wall for other, own in zip(results, ours, strict=True)]
        peak = max(result.peak for result in results) / 1e6
        cpu = median([result.cpu for result in results])
        lines.append(
            f"| {name} | {spread([r.wall for r in results])} | {cpu:.1f} | {peak:,.0f} MB | {median(ratios):.2f} |"
        )
    check = [PYTHON, "-W", "ignore", HERE / "check_1b.py", BASE, ADAPTER, WORK / "ours", WORK / "peft"]
    logits = subprocess.run(check, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout
    logits = logits.replace(f"{WORK / 'ours'}", "merged by adaptertool").replace(f"{WORK / 'peft'}", "merged by PEFT")
    text = "\n".join(lines) + "\n\nLogits against PEFT's unmerged model, in float32:\n\n"
    into_readme("merge_1b", text + "\n".join(f"- {line}" for line in logits.splitlines()))
    for name in ("ours", "peft", "copy"):
        shutil.rmtree(WORK / name)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
