"""Steps of a formula (strips.py) that often follow each other, fused into one: the kernel then goes through a strip
once for them. Each operation is rounded as before, so the numbers are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

Form = tuple[tuple[Any, ...], ...]  # for each step, after those it needs: its name, and for each input the place of the
# step that makes it, or None, which is a number

# What is read, less an array; and a number times that added to another
_DIFFERENCE = {f"READ_{dtype}": f"DIFFERENCE_{dtype}" for dtype in ("BF16", "F16", "F32")}
_ADDS = {difference: f"ADD_{difference}" for difference in _DIFFERENCE.values()}


class Given(NamedTuple):
    """A number, by where it stands: among the inputs of which formula."""

    formula: int
    number: int


class Node(NamedTuple):
    """A step, by its place in the order of formulas."""

    name: str
    inputs: tuple[int | Given, ...]  # other steps, by their places, and numbers
    data: int  # the place of the formula that has what the step needs beside them


_NUMBER = Node("", (), 0)  # in the place of one


def joined(form: Form) -> Mapping[int, Node]:
    """The steps of a formula by their places, in order, as few as there may be."""
    nodes = dict[int, Node]()
    uses = Counter(given for _, *inputs in form for given in inputs)
    for place, (name, *inputs) in enumerate(form):
        given = (Given(place, number) if one is None else one for number, one in enumerate(inputs))
        nodes[place] = _in_one(Node(name, tuple(given), place), nodes, uses)
    needed = {place for place in nodes if place not in uses}  # what takes numbers up
    for place in sorted(nodes, reverse=True):
        if place in needed:
            needed.update(one for one in nodes[place].inputs if not isinstance(one, Given))
    return {place: node for place, node in nodes.items() if place in needed}


def _in_one(node: Node, nodes: Mapping[int, Node], uses: Mapping[Any, int]) -> Node:
    """The step, or one that does what it does and what one of its inputs does."""
    given = [_NUMBER if isinstance(one, Given) else nodes[one] for one in node.inputs]
    alone = [uses[one] == 1 for one in node.inputs]  # whether nothing else needs that
    if node.name == "ADD" and _NUMBER not in given:
        for one, other in ((0, 1), (1, 0)):
            if given[other].name == "MULTIPLY" and (factors := _number_last(given[other])):  # a + number·b
                return _in_one(node._replace(name="ADD_TIMES", inputs=(node.inputs[one], *factors)), nodes, uses)
            if given[other].name in _ADDS and alone[other]:  # a + 1·(stored − b)
                return Node(_ADDS[given[other].name], (node.inputs[one], *given[other].inputs), given[other].data)
    if node.name == "SUBTRACT" and _NUMBER not in given and alone[0] and given[0].name in _DIFFERENCE:  # stored − a
        return Node(_DIFFERENCE[given[0].name], node.inputs[1:], given[0].data)
    if node.name == "ADD_TIMES":
        a, b, number = node.inputs
        if alone[1] and given[1].name in _ADDS:  # a + number·(stored − b)
            return Node(_ADDS[given[1].name], (a, *given[1].inputs, number), given[1].data)
        if alone[0] and given[0].name == "MULTIPLY" and (factors := _number_last(given[0])):  # number·a + other·b
            return node._replace(name="TIMES_ADD_TIMES", inputs=(factors[0], b, factors[1], number))
    if node.name == "CHOICE" and given[0].name == "EQUAL" and given[0].inputs == node.inputs[:0:-1]:
        return node._replace(name="SAME", inputs=given[0].inputs)  # b where it equals a, else a
    if node.name == "SUM" and alone[0] and given[0].name == "MULTIPLY" and not _number_last(given[0]):  # Σ a·b
        return node._replace(inputs=given[0].inputs)
    if node.name.startswith("WRITE") and alone[0] and given[0].name == "SAME":
        return node._replace(inputs=given[0].inputs)
    return node


def _number_last(product: Node) -> tuple[int | Given, ...]:
    """What is multiplied, an array and a number; nothing where there is no number."""
    one, other = product.inputs
    return (one, other) if isinstance(other, Given) else (other, one) if isinstance(one, Given) else ()
