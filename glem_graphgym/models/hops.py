"""Hop features: the input of a decoupled network, propagated over the graph once before training.

The layout is hop-major, (K+1, N, D) and (K+1, B, D) for batches, so that a hop is written and memory-mapped as one
piece. For batches of random nodes in memory, and in a forward and backward pass, node-major is as fast (within 3%);
for sorted nodes of a memory-mapped file that is not cached, hop-major took half the time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glem_graphgym.models.propagation import SparseOperator, described

BLOCK_BYTES = 1 << 30  # most working memory of a propagation, result aside; at least that of one column


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast floats to the ``dtype`` in which they are stored, clamping them to the range of float16."""
    if dtype == torch.float16 and values.dtype != dtype:
        limit = torch.finfo(dtype).max
        values = values.clamp(-limit, limit)
    return values.to(dtype)


@torch.no_grad()
def propagate(
    operator: SparseOperator,
    x: Tensor,
    hops: int,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Hop features [x, Ax, A²x, ...], (K+1, N, D), without gradient (SIGN, Frasca et al. 2020).

    Products are in float32 (float64 for such an ``x``) from first to last hop; each hop is `rounded` once, when stored.

    Args:
        operator: A; products run on its device, one block of columns at a time.
        x: (N, D) floats, on any device.
        hops: K, at least 0.
        dtype, device: of the result; None = those of ``x``.
    """
    if x.dim() != 2 or len(x) != operator.num_nodes or not x.is_floating_point():
        raise ValueError(f"x is {described(x)}, expected floats of shape ({operator.num_nodes}, columns)")
    out = torch.empty((hops + 1, *x.shape), dtype=dtype or x.dtype, device=device or x.device)
    for columns, current in _blocks(operator, x):
        for hop in range(hops + 1):
            current = operator @ current if hop else current
            out[hop, :, columns] = rounded(current, out.dtype).to(out.device)
    return out


def draw_folds(is_labelled: Tensor, num_folds: int, generator: torch.Generator | None = None) -> Tensor:
    """Random folds, int64 (N,): 0 to ``num_folds`` - 1, of equal size, where ``is_labelled`` (N,); -1 elsewhere."""
    nodes = is_labelled.nonzero().flatten()
    order = torch.randperm(len(nodes), generator=generator).to(nodes.device)
    folds = torch.full(is_labelled.shape, -1, device=is_labelled.device)
    folds[nodes[order]] = torch.arange(len(nodes), device=nodes.device) % num_folds
    return folds


@torch.no_grad()
def fold_label_hops(
    operator: SparseOperator,
    labels: Tensor,
    folds: Tensor,
    hops: int,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """Last label hop A^K Y, (1, N, C), in which no node sees its own label: p(y_n | ..., y_{V∖n}).

    Walks of two steps or more can return to their start, so one propagation of all labels would leak each node its own
    (the published code of GAMLP and SAGN does so, and dilutes the leak by taking a late hop). Here each fold's nodes
    get a propagation without the fold's labels, and unlabelled nodes one of all labels. A node's own label thus enters
    no sum; subtracting it from one propagation of all labels would leave rounding errors that reveal it.

    With F folds a labelled node sees (F-1)/F of the labels, an unlabelled one all: few folds make their scales differ.

    Args:
        labels: float (N, C), one distribution per node; rows without a fold (hidden labels, NaN) have no effect.
        folds: signed integers (N,): the fold, 0 or more, of each node whose label is given; -1 for other nodes.
        hops: K, at least 1; hop 0 would be the node's own label.
        dtype, device: as in `propagate`.
    """
    folds = folds.to(operator.device)
    out = torch.empty((1, *labels.shape), dtype=dtype or labels.dtype, device=device or labels.device)
    for columns, block in _blocks(operator, labels):
        for fold in folds.unique().tolist():
            visible = (folds >= 0) & (folds != fold)
            current = block.where(visible[:, None], 0.0)
            for _ in range(hops):
                current = operator @ current
            nodes = (folds == fold).nonzero().flatten()
            out[0, nodes.to(out.device), columns] = rounded(current[nodes], out.dtype).to(out.device)
    return out


def _blocks(operator: SparseOperator, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Column ranges of ``x`` (N, D), as wide as `BLOCK_BYTES` allows, each with its columns on the device of A."""
    rows, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    # Three copies of a block at a time: the columns as read or as stored, a product's operand, its result.
    step = max(1, BLOCK_BYTES // max(1, 3 * rows * dtype.itemsize))
    for columns in (slice(start, start + step) for start in range(0, width, step)):
        yield columns, x[:, columns].detach().to(operator.device, dtype).contiguous()
