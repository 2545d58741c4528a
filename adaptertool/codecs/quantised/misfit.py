"""What is said of a tensor that does not belong to the codes that it stands beside."""

from __future__ import annotations

from typing import NoReturn

from adaptertool.errors import MismatchError, shown
from adaptertool.spec.tensors import Ref


def misfit(ref: Ref, what: str) -> NoReturn:
    """Raise MismatchError for such a tensor."""
    raise MismatchError(f"{ref.path}: {shown(ref.spec.name)} is {ref.spec}, {what}")
