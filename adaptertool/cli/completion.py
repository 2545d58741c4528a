"""`completion`."""

from __future__ import annotations

import sys

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from adaptertool.cli.boundary import say

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice([*SHELLS]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print what makes SHELL complete commands, options and paths.

    \b
    bash: source <(adaptertool completion bash)    in ~/.bashrc
    zsh:  source <(adaptertool completion zsh)     in ~/.zshrc
    fish: adaptertool completion fish | source     in ~/.config/fish/config.fish
    """
    script = SHELLS[shell](context.find_root().command, {}, "adaptertool", "_ADAPTERTOOL_COMPLETE")
    say(script.source().rstrip(), sys.stdout)
