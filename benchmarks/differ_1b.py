"""Compare the weights of merged checkpoints, however they are sharded, with those of the first.

    python benchmarks/differ_1b.py MERGED OTHER...

Prints, for each OTHER: how many elements differ, and by how much at most.
"""

import sys
from pathlib import Path

from safetensors import safe_open


def opened(folder: str) -> dict[str, safe_open]:
    files = [safe_open(path, framework="pt") for path in sorted(Path(folder).glob("*.safetensors"))]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118


def main(merged: str, *others: str) -> None:
    ours = opened(merged)
    for folder in others:
        theirs = opened(folder)
        if theirs.keys() != ours.keys():
            raise SystemExit(f"{folder} has other tensors than {merged}")
        total = differing = 0
        largest = 0.0
        for name, file in ours.items():
            mine, other = file.get_tensor(name), theirs[name].get_tensor(name)
            total += mine.numel()
            differing += int((mine != other).sum())
            largest = max(largest, float((mine.float() - other.float()).abs().max()))
        print(f"{folder}: {differing:,} of {total:,} elements differ, by {largest:.1e} at most")


if __name__ == "__main__":
    main(*sys.argv[1:])
