"""Regular expressions that are compiled at their first use: there are a hundred, and a run needs a few of them."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

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
            found = getattr(self._compiled, name)
            setattr(self, name, found)  # from now on it is found at once
            return found

        @functools.cached_property
        def _compiled(self) -> re.Pattern[Any]:
            return re.compile(*self._given)


__all__ = ["regex"]
