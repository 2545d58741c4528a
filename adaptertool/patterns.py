"""Regular expressions that are compiled at their first use: there are a hundred, and a run needs a few of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

_METHODS = ("match", "fullmatch", "search", "sub", "split", "findall", "finditer")

if TYPE_CHECKING:
    from re import compile as regex
else:

    class regex:  # stands for re.compile
        """What `re.compile` would return of these arguments, once it is used."""

        def __init__(self, *given: Any) -> None:
            self._given, self.pattern = given, given[0]

        def __getattr__(self, name: str) -> Any:
            """An attribute of the pattern. Raises AttributeError for those that it lacks, re.error at its first use."""
            if name.startswith("__"):
                raise AttributeError(name)
            compiled = re.compile(*self._given)
            for method in _METHODS:  # from now on they are found at once
                setattr(self, method, getattr(compiled, method))
            return getattr(compiled, name)


__all__ = ["regex"]
