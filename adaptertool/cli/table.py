"""The table of commands: what `adaptertool --help` says of each, and where it is. To add one: its file, a line here,
examples of its use (examples.py).

A command is loaded when it is called, or asked for its own help. What it needs only at times, as an engine where it is
no dry run, is loaded through `load` too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import click

from adaptertool import late


class Entry(NamedTuple):
    """A command that is not loaded yet."""

    name: str
    module: str  # in this folder
    attribute: str
    summary: str  # the first sentence of its help


COMMANDS = (
    Entry("merge", "merge", "merge", "Merge ADAPTERs into BASE: W + w·(alpha/r)·B·A, in order, rounded once."),
    Entry(
        "wise", "wise", "wise", "Interpolate BASE towards TUNED: W + alpha·(T - W), for one alpha or many (Wise-FT)."
    ),
    Entry(
        "plan",
        "parts",
        "plan",
        "Write down a merge or an interpolation that is to be made in parts, on any number of machines.",
    ),
    Entry("run", "parts", "run", "Make one part of a plan: those of its shards that are not made yet."),
    Entry("finish", "parts", "finish", "Publish what the parts of a plan have made."),
    Entry(
        "mergekit",
        "mergekit",
        "mergekit",
        "Make what a configuration of mergekit, CONFIG, says: the same merge, streamed, with a manifest.",
    ),
    Entry(
        "layers",
        "mergekit",
        "layers",
        "Write BASE with other layers: some left out, some more than once, in any order.",
    ),
    Entry(
        "sum",
        "algebra",
        "sum_command",
        "Add ADAPTERs into one: Σ w·(alpha/r)·B·A, exact by concatenation; no base is needed.",
    ),
    Entry(
        "truncate",
        "algebra",
        "truncate",
        "Reduce the rank of ADAPTER: of each layer the best approximation of B·A, by QR and a small SVD.",
    ),
    Entry(
        "extract",
        "algebra",
        "extract",
        "Make an adapter of what a fine-tuned checkpoint, TUNED, has changed in BASE.",
    ),
    Entry(
        "convert",
        "algebra",
        "convert",
        "Write ADAPTER in another format: PEFT's, kohya's, diffusers', ComfyUI's, ...",
    ),
    Entry(
        "apply",
        "apply",
        "apply_command",
        "Run the steps of RECIPE: merges, sums, checks and all other commands, as YAML under version control.",
    ),
    Entry(
        "verify",
        "verify",
        "verify",
        "Judge every tensor of MERGED, made by any tool, against the exact merge of ADAPTERs into BASE.",
    ),
    Entry(
        "drift",
        "drift",
        "drift",
        "How far merging ADAPTERS into BASE moves its outputs from those of the unmerged adapters.",
    ),
    Entry(
        "diff",
        "diff",
        "diff",
        "Compare two checkpoints, or two adapters, tensor by tensor: which differ, and by how much.",
    ),
    Entry(
        "evaluate",
        "evaluate",
        "evaluate",
        "Run BASE with its ADAPTERs unmerged, and merged checkpoints, on prompts, and compare their logits and texts.",
    ),
    Entry(
        "inspect",
        "inspect",
        "inspect",
        "Describe an adapter or a checkpoint: what it holds, covers and can hold, and its spectra.",
    ),
    Entry(
        "clean",
        "clean",
        "clean",
        "Remove what killed or failed runs have left beside OUT. OUT itself is not touched.",
    ),
    Entry(
        "schema",
        "schema",
        "schema",
        "Print the JSON Schema of what --json prints, of a manifest or a recipe; without NAME, which there are.",
    ),
    Entry("completion", "completion", "completion", "Print what makes SHELL complete commands, options and paths."),
)


def load(module: str, attribute: str) -> Any:
    """An attribute of a module of this folder. Raises Interrupted when it is loaded, where a signal came meanwhile."""
    return late.load(f"adaptertool.cli.{module}", attribute)


class Unloaded(click.Command):
    """The stand-in of a command in the group: it has its name and its line, and the command does all else."""

    def __init__(self, entry: Entry) -> None:
        super().__init__(entry.name, short_help=entry.summary)
        self.entry = entry

    def command(self) -> click.Command:
        """The command, with its examples."""
        command: click.Command = load(self.entry.module, self.entry.attribute)
        command.epilog = command.epilog or load("examples", "epilog_of")(self.entry.name)
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        return self.command().make_context(*arguments, **options)
