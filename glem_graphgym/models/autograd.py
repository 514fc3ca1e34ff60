"""The leaves of a tensor's autograd graph."""

from __future__ import annotations

from torch import Tensor


def leaves_of(output: Tensor) -> set[Tensor]:
    """Parameters, and other leaves that require a gradient, on which ``output`` depends."""
    queue, visited, leaves = [output.grad_fn], set(), set()
    while queue:
        node = queue.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves.add(node.variable)
        queue += [earlier for earlier, _ in node.next_functions]
    return leaves
