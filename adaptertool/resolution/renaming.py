"""`--rename 'regex=>replacement'`: on the names of adapters, and of checkpoints that are held against the base."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

from adaptertool.errors import UsageError
from adaptertool.files.checkpoint import Checkpoint
from adaptertool.resolution.components import names_of
from adaptertool.resolution.names import Names
from adaptertool.spec.adapter import Adapter


class Renames:
    """Each replaces in turn, as by re.sub. Which of them have changed a name is remembered."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._rules = [_parsed(text) for text in self.texts]
        self._used: set[str] = set()

    def __call__(self, name: str) -> str:
        return self._applied(name, self._used)

    def _applied(self, name: str, used: set[str]) -> str:
        for text, (pattern, replacement) in zip(self.texts, self._rules, strict=True):
            try:
                changed = pattern.sub(replacement, name)
            except (re.error, IndexError) as error:
                raise UsageError(f"the renaming {text!r} has no valid replacement: {error}") from error
            if changed != name:
                used.add(text)
            name = changed
        return name

    def adapter(self, adapter: Adapter) -> Adapter:
        """The adapter with other names for the tensors that it changes."""
        if not self.texts:
            return adapter
        modules = tuple(module._replace(target=self(module.target)) for module in adapter.modules)
        return dataclasses.replace(adapter, modules=modules)

    def checkpoint(self, checkpoint: Checkpoint, base: Checkpoint) -> Checkpoint:
        """The checkpoint with other names for the tensors whose names the base does not have.

        Raises MismatchError where two would have the same.
        """
        names = {name: name if name in base.tensors else self(name) for name in checkpoint.tensors}
        return checkpoint.renamed(names) if self.texts else checkpoint

    def holder(self, base: Checkpoint) -> Callable[[str], bool]:
        """Whether `base` has what an adapter calls by some name. The names are made when one asks: most need not."""
        names: list[Names] = []

        def has(name: str) -> bool:
            if not names:
                names.append(names_of(base))
            return names[0].has(self._applied(name, set()))

        return has

    def require_used(self) -> None:
        """Raises UsageError for a renaming that has changed nothing."""
        for text in self.texts:
            if text not in self._used:
                raise UsageError(
                    f"the renaming {text!r} changes no name of an adapter, nor of a checkpoint that the base has not"
                )


@contextlib.contextmanager
def renaming(texts: Sequence[str] | Renames) -> Iterator[Renames]:
    """While names are read. At the end each renaming must have changed one, unless who gave them looks after that."""
    own = texts if isinstance(texts, Renames) else Renames(texts)
    yield own
    if own is not texts:
        own.require_used()


def _parsed(text: str) -> tuple[re.Pattern[str], str]:
    pattern, arrow, replacement = text.partition("=>")
    if not arrow:
        raise UsageError(f"a renaming is 'regex=>replacement', not {text!r}")
    try:
        return re.compile(pattern), replacement
    except re.error as error:
        raise UsageError(f"the renaming {text!r} has no valid regex: {error}") from error
