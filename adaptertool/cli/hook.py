"""The hook for pre-commit: `python -m adaptertool.cli.hook FILE...` checks the files of every output of adaptertool, of
which one is committed, against its manifest. `adaptertool verify OUT` does it; only what is wrong is said."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from adaptertool.files.checkpoint import MANIFEST


def outputs_of(names: Iterable[str]) -> list[Path]:
    """The folders with a manifest that hold the files: a sweep has one of its own, beside those in it."""
    folders = {parent for name in names for parent in Path(name).parents if not parent.is_absolute() or parent.name}
    return sorted(folder for folder in folders if (folder / MANIFEST).is_file())


def main(names: Iterable[str]) -> int:
    """The largest exit code of any."""
    commands = ([sys.executable, "-m", "adaptertool", "verify", str(folder), "-q"] for folder in outputs_of(names))
    return max((subprocess.run(command, check=False).returncode for command in commands), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
