"""The command line: one file for each group of commands, which parses, calls a task, and prints what it returns."""

from __future__ import annotations

from typing import NoReturn

import click

from adaptertool.cli import boundary
from adaptertool.cli.table import COMMANDS, Unloaded
from adaptertool.version import __version__

EXIT_CODES = """\b
Exit codes:
  0    done, and good
  1    a check failed: verify found a checkpoint wrong, drift more than
       rounding explains, diff that two are not equal, evaluate that one is
       further from the reference than --fail-above, --fail-if-unchanged
       that nothing would change, or a point of a curve could not be scored
  2    wrong usage
  3    bad input: a file is malformed, inputs do not fit together, or
       something is refused by name
  4    storage: space, permission, I/O
  5    OUT exists, or is not ours to replace
  70   a fault of adaptertool itself
  130  interrupted (also by SIGTERM); nothing was published
"""


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, epilog=EXIT_CODES)
@click.version_option(__version__, prog_name="adaptertool")
def cli() -> None:
    """Adapter arithmetic on checkpoints, by streaming. Nothing silent.

    Checkpoints are directories with safetensors (single or sharded), one .safetensors or GGUF file, or a
    pipeline of diffusers. Adapters are those of PEFT, kohya, LyCORIS, ComfyUI, diffusers, MLX and GGUF. Inputs
    are never changed; OUT appears only when it is complete.
    """


for _entry in COMMANDS:
    cli.add_command(Unloaded(_entry))


def main() -> NoReturn:
    """Entry point."""
    boundary.run(cli)
