"""What is said of work that is done in parts, as text for a person."""

from __future__ import annotations

from adaptertool.render.text import size
from adaptertool.reports.parts import PartReport, PartsReport, PublishedReport

_THERE = "it is published already, as this plan makes it: there is nothing to do"


def parts_text(report: PartsReport) -> str:
    count, done = f"{report.shards:,} shard{'s' if report.shards != 1 else ''}", report.finished
    return "\n".join(
        [
            f"{report.command} {report.base} + {' + '.join(report.sources)} -> {report.out}   (planned: {report.plan})",
            f"  shards   {count}, the largest {size(report.largest)}" + (f"; {done:,} made already" if done else ""),
            f"  bytes    {size(report.bytes_read)} to read, {size(report.bytes_written)} to write",
            f"  then     adaptertool run {report.plan} --part I/N   for I from 0 to N - 1, N at most {report.shards:,}",
            f"  last     adaptertool finish {report.plan}",
        ]
    )


def part_text(report: PartReport) -> str:
    if report.published:
        return f"part {report.part}/{report.parts} -> {report.out}\n  finished {_THERE}"
    made, there = len(report.made), len(report.shards) - len(report.made)
    lines = [
        f"part {report.part}/{report.parts} -> {report.out}",
        f"  shards   {made:,} made" + (f", {there:,} there already" if there else ""),
        f"  bytes    {size(report.bytes_written)} written",
    ]
    if report.verified:
        lines.append("  verified read back from the disk, and as computed")
    threads = f"{report.threads} thread{'s' if report.threads > 1 else ''}"
    lines += [f"  time     {report.seconds:.2f} s, {threads}", f"  memory   {size(report.peak_memory)} at the peak"]
    return "\n".join(lines)


def published_text(report: PublishedReport) -> str:
    lines = [f"{report.command} {report.base} + {' + '.join(report.sources)} -> {report.out}", f"  finished {_THERE}"]
    lines += ["  verified read back from the disk, and as computed"] if report.verified else []
    return "\n".join([*lines, f"  bytes    {size(report.bytes)}"])
