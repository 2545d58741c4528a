"""Fused layers of an adapter whose rows a tool cuts at thirds, where q, k and v are not of one size: for verify."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from adaptertool.kinds import kind_of
from adaptertool.spec.adapter import Adapter, Module
from adaptertool.spec.plan import Edit
from adaptertool.spec.tensors import Ref

CODE = "cut-in-thirds"


def misreadings(adapter: Adapter) -> Mapping[str, Callable[[Edit], Edit]]:
    """What an edit of q, k or v is where its rows of the factors are taken to begin at a third of them all."""
    modules = {module.name: module for module in adapter.modules}

    def read(edit: Edit) -> Edit:
        return _cut(edit, modules[edit.module]) if edit.module in modules else edit

    return {CODE: read}


def _cut(edit: Edit, module: Module) -> Edit:
    """The edit with other rows of the module's factors, where it has some of them."""
    factors = dict(edit.factors)
    for role in kind_of(edit).by_row & factors.keys() & module.factors.keys():
        part, whole = factors[role], module.factors[role]
        alike = part.spec.name == whole.spec.name and part.shape[1:] == whole.shape[1:] and whole.spec.nbytes > 0
        if alike and part.made is None and whole.made is None:
            factors[role] = _at_third(part, whole)
    return edit._replace(factors=factors)


def _at_third(part: Ref, whole: Ref) -> Ref:
    """As many rows, from where the third begins that these are in the order of: the first, the second or the last."""
    count, rows = part.shape[0], whole.shape[0]
    first = (part.offset - whole.offset) * rows // whole.spec.nbytes
    is_last = first + count == rows or (first == 2 * count and first + 2 * count != rows)
    begin = 0 if first == 0 else rows // 3 * (2 if is_last else 1)
    return whole.rows(begin, begin + count) if count < rows and begin + count <= rows else part
