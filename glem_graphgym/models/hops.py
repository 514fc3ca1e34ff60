"""Hop features: what a decoupled network sees of the graph, propagated once before training.

Layout: hop by hop, (K+1, N, D), and so are batches, (K+1, B, D). A hop is then written and mapped into memory as one
piece. For batches of random nodes neither layout is faster in memory, nor in a forward and backward pass (within 3%);
read cold from a memory-mapped file by sorted nodes, hop-major took half the time of node-major.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from glem_graphgym.models.propagation import SparseOperator, described

BLOCK_BYTES = 1 << 30  # working memory of a propagation at most, results aside; a column at least


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats as they are stored, in ``dtype``; what float16 cannot hold is cut off at its limits."""
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
    """Hop features [x, Ax, A²x, ...] (K+1, N, D) without gradient, beside ``x`` (SIGN, Frasca et al. 2020).

    Products are float32, or float64 for such an ``x``, from first to last hop; each hop is `rounded` once, when stored.

    Args:
        operator: A; the products run on its device, a block of columns at a time.
        x: (N, D) floats, on any device.
        hops: K, at least 0.
        dtype, device: of the result; None = that of ``x``.
    """
    _check("x", x, operator, hops, least=0)
    out = torch.empty((hops + 1, *x.shape), dtype=dtype or x.dtype, device=device or x.device)
    for columns, current in _blocks(operator, x):
        for hop in range(hops + 1):
            current = operator @ current if hop else current
            out[hop, :, columns] = rounded(current, out.dtype).to(out.device)
    return out


def draw_folds(is_given: Tensor, num_folds: int, generator: torch.Generator | None = None) -> Tensor:
    """int64 (N,): random folds 0 to ``num_folds`` - 1 of equal size where ``is_given``, -1 elsewhere."""
    if num_folds < 2:
        raise ValueError(f"num_folds is {num_folds}, expected at least 2: a node sees the labels of other folds only")
    if is_given.dtype != torch.bool or is_given.dim() != 1:
        raise ValueError(f"is_given is {described(is_given)}, expected torch.bool of shape (N,)")
    nodes = is_given.nonzero().flatten()
    order = torch.randperm(len(nodes), generator=generator).to(nodes.device)
    folds = torch.full(is_given.shape, -1, device=is_given.device)
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
    """The last label hop A^K Y, (1, N, C), in which no node sees its own label: p(y_n | ..., y_{V∖n}).

    A walk of two steps or more leads back to where it began, so propagating all labels at once would hand every node
    its own (the published code of GAMLP and SAGN does, and dilutes it by taking a late hop). Here the labels of each
    fold are left out of what its nodes see. That is exact, as the own label enters no sum: subtracting it from one
    propagation of all labels would leave rounding errors that tell of it. One propagation a fold, and one for the rest.

    A node of one of F folds sees (F-1)/F of the labels and an unlabelled node all of them, so few folds shift the
    scale between the two.

    Args:
        labels: float (N, C), a distribution a node. Read only where a fold is given; whatever stands elsewhere (labels
            not to be seen, NaN) is without effect.
        folds: integers (N,): the fold, 0 or more, of a node whose label is given; -1 for a node without.
        hops: K, at least 1. Hop 0 would be the node's own label.
        dtype, device: as in `propagate`.
    """
    _check("labels", labels, operator, hops, least=1)
    if folds.shape != (len(labels),) or folds.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"folds is {described(folds)}, expected signed integers of shape ({len(labels)},)")
    if len(folds) and folds.min() < -1:
        raise ValueError(
            f"folds has {int(folds.min())}, expected folds from 0, and -1 for nodes whose label is not given"
        )
    folds = folds.to(operator.device)
    out = torch.empty((1, *labels.shape), dtype=dtype or labels.dtype, device=device or labels.device)
    for columns, block in _blocks(operator, labels):
        for fold in folds.unique().tolist():
            seen = (folds >= 0) & (folds != fold)
            current = block.where(seen[:, None], 0.0)
            for _ in range(hops):
                current = operator @ current
            nodes = (folds == fold).nonzero().flatten()
            out[0, nodes.to(out.device), columns] = rounded(current[nodes], out.dtype).to(out.device)
    return out


def _blocks(operator: SparseOperator, x: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Column ranges of ``x`` (N, D), as wide as `BLOCK_BYTES` allow, each with its columns ready for products."""
    rows, width = x.shape
    dtype = torch.promote_types(x.dtype, torch.float32)
    # Three copies of a block at a time: as it is read, or what is stored of it; a product's operand; its result.
    step = max(1, BLOCK_BYTES // max(1, 3 * rows * dtype.itemsize))
    for columns in (slice(start, start + step) for start in range(0, width, step)):
        yield columns, x[:, columns].detach().to(operator.device, dtype).contiguous()


def _check(name: str, x: Tensor, operator: SparseOperator, hops: int, least: int) -> None:
    if x.dim() != 2 or len(x) != operator.num_nodes or not x.is_floating_point():
        raise ValueError(f"{name} is {described(x)}, expected floats of shape ({operator.num_nodes}, columns)")
    if hops < least:
        raise ValueError(f"hops is {hops}, expected at least {least}")
