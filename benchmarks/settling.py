"""What exactness costs where results lie on the middle of two stored values most often (narrow factors, and wise),
where norms are of what was made before, and where float64 has no bits more than what is stored.

    python benchmarks/settling.py [RUNS]

Each kind exact and with `--precision fast`, in turn, on 0.2 B parameters.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

from checkpoints import Llama, normal, save_adapter, save_base
from measure import COPY, TOOL, WORK, copying, in_turn, into_page, machine, ratio, scratch, short_of, spread

MODEL = Llama(4)
FOLDER = WORK / "settling"
OUT = FOLDER / "out"

NAMES = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}
FACTORS_ON_WEIGHTS = (("BF16", "F32"), ("F16", "F32"), ("F32", "BF16"), ("BF16", "BF16"))


def kinds() -> dict[str, list[object]]:
    found: dict[str, list[object]] = {}
    for factors, weights in FACTORS_ON_WEIGHTS:
        name = f"merge, {NAMES[factors]} factors on {NAMES[weights]} weights"
        found[name] = ["merge", FOLDER / f"base_{weights}", FOLDER / f"lora_{factors}"]
    dora = [FOLDER / f"dora_{number}" for number in (1, 2)]
    found["merge, DoRA on fp32 weights"] = ["merge", FOLDER / "base_F32", dora[0]]
    found["merge, two DoRA on fp32 weights"] = ["merge", FOLDER / "base_F32", *dora]
    found["merge, fp32 factors on fp64 weights"] = ["merge", FOLDER / "base_F64", FOLDER / "lora_F32"]
    for alpha in ("0.1", "0.5"):
        name = f"wise between two bf16 checkpoints at {alpha}"
        found[name] = ["wise", FOLDER / "base_BF16", FOLDER / "tuned", "--alpha", alpha]
    return found


def make() -> None:
    shapes = MODEL.shapes
    for dtype in ("BF16", "F32", "F64"):
        save_base(FOLDER / f"base_{dtype}", [shapes], MODEL.config, dtype, normal(dtype, 0.02))
    for dtype in ("BF16", "F16", "F32"):
        save_adapter(FOLDER / f"lora_{dtype}", shapes, 16, dtype, normal(dtype, 0.0125))
    for number in (1, 2):
        factors = normal("F32", 0.0125, seed=number)
        save_adapter(FOLDER / f"dora_{number}", shapes, 16, "F32", factors, dora=True)
    tuned = normal("F32", 0.02) + normal("F32", 0.001, seed=1)
    save_base(FOLDER / "tuned", [shapes], MODEL.config, "BF16", tuned.bfloat16())


def settled(command: list[object]) -> int:
    """How many elements even float64 leaves open, as the report says."""
    shutil.rmtree(OUT, ignore_errors=True)
    result = subprocess.run([*command, "--json", "-q"], check=True, stdout=subprocess.PIPE)
    return json.loads(result.stdout)["settled"]


def main(runs: int) -> None:
    if why := short_of(50 * MODEL.parameters):
        print(f"settling: {why}", file=sys.stderr)
        return
    lines = [
        f"{machine()}; median of {runs} runs in turn (smallest–largest); `make bench`",
        "",
        f"| {MODEL.parameters / 1e9:.2f} B, rank 16 | settled exactly | exact, wall s | fast, wall s "
        "| exact, fast = 1 | exact, copy = 1 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with scratch(FOLDER):
        make()
        for name, call in kinds().items():
            exact, fast = ([*TOOL, *call, "--precision", precision, "-o", OUT] for precision in ("exact", "fast"))
            count = settled(exact)
            done = in_turn({"exact": exact, "fast": fast, COPY: copying(call[1], OUT)}, runs)
            walls = (spread([run.wall for run in done[precision]]) for precision in ("exact", "fast"))
            ratios = (f"{ratio(done['exact'], done[other]):.2f}" for other in ("fast", COPY))
            lines.append(f"| {name} | {count / MODEL.parameters:.2%} | {' | '.join(walls)} | {' | '.join(ratios)} |")
    into_page("settling", "\n".join(lines))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
