"""The leaves of a tensor's autograd graph."""

from __future__ import annotations

from torch import Tensor


def leaves_of(output: Tensor) -> set[Tensor]:
    """Parameters, and other leaves that require a gradient, on which ``output`` depends."""
    waiting, seen, leaves = [output.grad_fn], set(), set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return leaves
