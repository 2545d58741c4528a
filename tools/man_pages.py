"""The man pages: one for adaptertool, and one for each command, of what --help says. `make man` writes them."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from adaptertool.cli import ENVIRONMENT, EXAMPLE, EXIT_CODES, cli
from adaptertool.cli.table import Unloaded
from adaptertool.version import __version__


def escaped(text: str) -> str:
    """Text of roff: no line of it is a request, and hyphens can be copied."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


def block(text: str) -> str:
    """Lines that are kept as they are."""
    lines = [line for line in text.replace("\b\n", "").rstrip().split("\n") if line.strip()]
    return "\n".join([".nf", *map(escaped, lines), ".fi"])


def untitled(text: str) -> str:
    """A block of lines without the first, which the section is called by."""
    return text.replace("\b\n", "").partition("\n")[2]


def paragraphs(help_text: str) -> Iterator[str]:
    for paragraph in help_text.partition("\f")[0].strip().split("\n\n"):
        if paragraph.lstrip().startswith("\b\n"):
            yield ".PP\n" + block(textwrap.dedent(paragraph.partition("\n")[2]))
        else:
            yield f".PP\n{escaped(' '.join(paragraph.split()))}"


def options(context: click.Context) -> Iterator[str]:
    for parameter in context.command.get_params(context):
        if (told := parameter.get_help_record(context)) is not None:
            yield f".TP\n\\fB{escaped(told[0])}\\fR\n{escaped(told[1])}"


def page(context: click.Context, name: str, summary: str) -> str:
    """One page, as roff for man(7)."""
    command = context.command
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [
        f'.TH "{name.upper()}" 1 "" "adaptertool {__version__}" "adaptertool"',
        f".SH NAME\n{escaped(name)} \\- {escaped(summary.rstrip('.'))}",
        f".SH SYNOPSIS\n\\fB{escaped(context.command_path)}\\fR {escaped(usage)}",
        ".SH DESCRIPTION",
        *paragraphs(command.help or ""),
        ".SH OPTIONS",
        *options(context),
    ]
    if isinstance(command, click.Group):
        parts += [".SH COMMANDS"]
        for one in command.commands.values():
            parts += [f".TP\n\\fBadaptertool\\-{escaped(one.name or '')}\\fR(1)\n{escaped(one.short_help or '')}"]
        parts += [".SH EXIT STATUS", block(untitled(EXIT_CODES)), ".SH ENVIRONMENT", block(untitled(ENVIRONMENT))]
        parts += [".SH EXAMPLES", block(untitled(EXAMPLE))]
    else:
        parts += [".SH EXAMPLES", block(untitled(command.epilog or ""))] if "\n" in (command.epilog or "") else []
        parts += [".SH SEE ALSO\n\\fBadaptertool\\fR(1), which has the exit codes and what the environment says"]
    return "\n".join(parts) + "\n"


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with click.Context(cli, info_name="adaptertool", help_option_names=["-h", "--help"]) as context:
        summary = (cli.help or "").strip().split("\n")[0]
        (folder / "adaptertool.1").write_text(page(context, "adaptertool", summary), encoding="utf-8")
        for one in cli.commands.values():
            assert isinstance(one, Unloaded)
            with click.Context(one.command(), info_name=one.name, parent=context) as own:
                name = f"adaptertool-{one.name}"
                (folder / f"{name}.1").write_text(page(own, name, one.entry.summary), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "man"))
