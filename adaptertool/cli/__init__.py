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
ENVIRONMENT = """\b
Environment:
  ADAPTERTOOL_THREADS    threads, where --threads is not given
  NO_COLOR               no colours, where --color is not given
  HF_HUB_CACHE, HF_HOME  where org/name is looked for; nothing is downloaded
  GITHUB_STEP_SUMMARY    a file, to which checks add their summary
"""
EXAMPLE = """\b
Example:
  $ adaptertool merge base lora -o merged
  $ adaptertool verify merged base lora
`adaptertool COMMAND --help` has more for each command.
"""


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=f"{EXIT_CODES}\n{ENVIRONMENT}\n{EXAMPLE}",
)
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
