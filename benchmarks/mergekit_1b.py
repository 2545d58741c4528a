"""Configurations of mergekit on checkpoints with the layers of a 1.1 B-parameter Llama, beside mergekit-yaml itself.

    python benchmarks/mergekit_1b.py MERGEKIT [RUNS] [LAYERS]

MERGEKIT: the program mergekit-yaml, of an environment with mergekit 0.1.5; without it nothing is measured. Its files
are fsynced, as ours are.
"""

from __future__ import annotations

import os
import shutil
import sys

from checkpoints import Llama, by_bytes, normal, save_base
from measure import SYNCED, TOOL, WORK, Timing, figures, in_turn, into_page, machine, ratio, scratch, short_of

FOLDER = WORK / "mergekit"
BASE, A, B, C = (FOLDER / name for name in ("base", "a", "b", "c"))
SHARD = 800e6  # bytes

_SOURCE = "  - model: {model}\n    parameters: {{weight: {weight}, density: 0.5}}\n"
_ALONE = "  - model: {model}\n    parameters: {{weight: {weight}}}\n"


def configurations() -> dict[str, str]:
    three = list(zip((A, B, C), (0.5, 0.3, 0.2), strict=True))
    ties = "".join(_SOURCE.format(model=model, weight=weight) for model, weight in three)
    linear = "".join(_ALONE.format(model=model, weight=weight) for model, weight in three)
    gradient = "parameters: {t: [{filter: self_attn, value: [0, 0.5, 1]}, {value: 0.5}]}\n"
    return {
        "ties of three": f"models:\n{ties}merge_method: ties\nbase_model: {BASE}\ndtype: bfloat16\n",
        "slerp of two": f"models:\n  - model: {A}\n  - model: {B}\nmerge_method: slerp\nbase_model: {A}\n{gradient}"
        "dtype: bfloat16\n",
        "linear of three": f"models:\n{linear}merge_method: linear\ndtype: bfloat16\n",
    }


def main(mergekit: str | None, runs: int, layers: int) -> None:
    found = shutil.which(mergekit) if mergekit else None
    why = "" if found else "mergekit-yaml is not there: name it (make bench-mergekit MERGEKIT=PATH)"
    if why := why or short_of(0.12e9 * layers * 5 + 3e9):
        print(f"mergekit_1b: skipped, {why}", file=sys.stderr)
        return
    assert found is not None
    model = Llama(layers, vocab=32000)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with scratch(FOLDER):
        for seed, folder in enumerate((BASE, A, B, C)):
            shards = by_bytes(model.shapes, int(SHARD))
            save_base(folder, shards, model.config | {"torch_dtype": "bfloat16"}, numbers=normal("BF16", 0.02, seed))
        rows: list[tuple[str, dict[str, list[Timing]]]] = []
        for number, (name, text) in enumerate(configurations().items()):
            config = FOLDER / f"{number}.yml"
            config.write_text(text)
            theirs = [*SYNCED, found, config, "--no-copy-tokenizer", "--quiet", FOLDER / "theirs"]
            ours = [*TOOL, "mergekit", config, "-q", "-o", FOLDER / "ours"]
            # Ties takes minutes, and is run once; of the others both have read before what they read
            long = name.startswith("ties")
            commands = {"adaptertool": ours, "mergekit-yaml": theirs}
            rows.append((name, in_turn(commands, 1 if long else runs, warm=not long)))
            for folder in ("ours", "theirs"):
                shutil.rmtree(FOLDER / folder)
        into_page("mergekit_1b", "\n".join(table(rows, runs, layers)))


def table(rows: list[tuple[str, dict[str, list[Timing]]]], runs: int, layers: int) -> list[str]:
    lines = [
        f"{machine()}; ties once, the others median of {runs} runs in turn (smallest–largest); `make bench-mergekit`",
        "",
        f"| {layers} layers of 1.1 B, bf16 | by | wall s | CPU s | peak memory | times as long |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, timings in rows:
        ours = timings["adaptertool"]
        for tool, done in timings.items():
            lines.append(f"| {name} | {tool} | {figures(done)} | {ratio(done, ours):.1f} |")
    return lines


if __name__ == "__main__":
    given = sys.argv[1:]
    main(
        given[0] if given else None,
        int(given[1]) if len(given) > 1 else 3,
        int(given[2]) if len(given) > 2 else 22,
    )
