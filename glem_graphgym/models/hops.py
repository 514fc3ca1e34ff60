"""Hop features: what a decoupled network sees of the graph, propagated once before training.

Layout: hop by hop, (K+1, N, D), and so are batches, (K+1, B, D). A hop is then written and mapped into memory as one
piece. For batches of random nodes neither layout is faster in memory, nor in a forward and backward pass (within 3%);
read cold from a memory-mapped file by sorted nodes, hop-major took half the time of node-major.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from glem_graphgym.models.propagation import SparseOperator

Array = TypeVar("Array", Tensor, np.ndarray)

BLOCK_BYTES = 1 << 30


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats as they are stored, in ``dtype``; what float16 cannot hold is cut off at its limits."""
    if dtype == torch.float16 and values.dtype != dtype:
        limit = torch.finfo(dtype).max
        values = values.clamp(-limit, limit)
    return values.to(dtype)


@overload
def propagate(
    operator: SparseOperator, x: Tensor | np.ndarray, hops: int, out: None = None, *, block_bytes: int = BLOCK_BYTES
) -> Tensor: ...


@overload
def propagate(
    operator: SparseOperator, x: Tensor | np.ndarray, hops: int, out: Array, *, block_bytes: int = BLOCK_BYTES
) -> Array: ...


def propagate(
    operator: SparseOperator,
    x: Tensor | np.ndarray,
    hops: int,
    out: Tensor | np.ndarray | None = None,
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor | np.ndarray:
    """Hop features [x, Ax, A²x, ...] without gradient, a block of columns at a time (SIGN, Frasca et al. 2020).

    Products are float32, or float64 for such an ``x``, from first to last hop; each hop is `rounded` once, when stored.

    Args:
        operator: A; the products run on its device.
        x: (N, D) floats, on any device; an array may be memory-mapped.
        hops: K, at least 0.
        out: (K+1, N, D) floats to write into: a tensor, or an array that may be memory-mapped. None makes a tensor
            beside ``x``, of its type.
        block_bytes: bytes of working memory at most, ``out`` and the operator's weights aside; a column at least.

    Returns:
        ``out``, of shape (K+1, N, D).

    Raises:
        ValueError: a shape or type is another, or ``out`` cannot be written to.
    """
    _check_rows("x", x, operator.num_nodes)
    if hops < 0:
        raise ValueError(f"hops is {hops}, expected at least 0")
    shape = (hops + 1, *x.shape)
    if out is None:
        source = x if isinstance(x, Tensor) else torch.from_numpy(np.empty(0, dtype=x.dtype))
        out = torch.empty(shape, dtype=source.dtype, device=source.device)
    stored = _writable(out, shape)
    with torch.no_grad():
        for columns in _blocks(x, block_bytes):
            current = _read(x, columns, operator.device)
            stored[0, :, columns] = rounded(current, stored.dtype).to(stored.device)
            for hop in range(1, hops + 1):
                current = operator @ current
                stored[hop, :, columns] = rounded(current, stored.dtype).to(stored.device)
    return out


def draw_folds(is_given: Tensor, num_folds: int, generator: torch.Generator | None = None) -> Tensor:
    """int64 (N,): random folds 0 to ``num_folds`` - 1 of equal size for the nodes of the bool (N,) mask, -1 elsewhere.

    Raises:
        ValueError: fewer than two folds, in which no node would see the label of any other, or no bool mask.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds is {num_folds}, expected at least 2: a node sees the labels of other folds only")
    if is_given.dtype != torch.bool or is_given.dim() != 1:
        raise ValueError(f"is_given is {_described(is_given)}, expected torch.bool of shape (N,)")
    nodes = is_given.nonzero().flatten()
    order = torch.randperm(len(nodes), generator=generator).to(nodes.device)
    folds = torch.full(is_given.shape, -1, device=is_given.device)
    folds[nodes[order]] = torch.arange(len(nodes), device=nodes.device) % num_folds
    return folds


@overload
def fold_label_hops(
    operator: SparseOperator,
    labels: Tensor,
    folds: Tensor,
    hops: int,
    out: None = None,
    *,
    keep: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor: ...


@overload
def fold_label_hops(
    operator: SparseOperator,
    labels: Tensor,
    folds: Tensor,
    hops: int,
    out: Array,
    *,
    keep: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Array: ...


def fold_label_hops(
    operator: SparseOperator,
    labels: Tensor,
    folds: Tensor,
    hops: int,
    out: Tensor | np.ndarray | None = None,
    *,
    keep: int | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Tensor | np.ndarray:
    """Label hops [AY, A²Y, ...] in which no node sees its own label, at any hop: p(y_n | ..., y_{V∖n}).

    A walk of two steps or more leads back to where it began, so propagating all labels at once would hand every node
    its own (the published code of GAMLP and SAGN does, and dilutes it by taking a late hop). Here the labels of each
    fold are left out of what its nodes see. That is exact, as the own label enters no sum: subtracting it from one
    propagation of all labels would leave rounding errors that tell of it. One propagation a fold, and one for the rest.

    A node of one of F folds sees (F-1)/F of the labels and an unlabelled node all of them, so few folds shift the
    scale between the two.

    Args:
        operator: A.
        labels: float (N, C), a distribution a node: one-hot gold labels, or pseudo-labels. Read only where a fold is
            given; whatever stands elsewhere (labels not to be seen, NaN) is without effect.
        folds: integers (N,): the fold, 0 or more, of a node whose label is given; -1 for a node without.
        hops: K, at least 1. There is no hop 0: it would be the node's own label.
        out: (kept hops, N, C), as in `propagate`; None makes a tensor of the labels' type beside them.
        keep: how many hops to return, the last ones; None = all K. The published GAMLP and SAGN take the last alone.
        block_bytes: bytes of working memory at most, as in `propagate`.

    Returns:
        ``out``, of shape (``keep`` or K, N, C).

    Raises:
        ValueError: a shape or type is another, or a number is out of range.
    """
    _check_rows("labels", labels, operator.num_nodes)
    if hops < 1:
        raise ValueError(f"hops is {hops}, expected at least 1")
    keep = hops if keep is None else keep
    if not 1 <= keep <= hops:
        raise ValueError(f"keep is {keep}, expected 1 to {hops}, the number of hops")
    _check_folds(folds, len(labels))
    folds = folds.to(operator.device)
    shape = (keep, *labels.shape)
    if out is None:
        out = torch.empty(shape, dtype=labels.dtype, device=labels.device)
    stored = _writable(out, shape)
    with torch.no_grad():
        for columns in _blocks(labels, block_bytes):
            block = _read(labels, columns, operator.device)
            for fold in folds.unique().tolist():
                seen = (folds >= 0) & (folds != fold)
                current = block.where(seen[:, None], 0.0)
                nodes = (folds == fold).nonzero().flatten()
                for hop in range(hops):
                    current = operator @ current
                    if hop >= hops - keep:
                        found = rounded(current[nodes], stored.dtype).to(stored.device)
                        stored[hop - hops + keep, nodes.to(stored.device), columns] = found
    return out


def _blocks(x: Tensor | np.ndarray, block_bytes: int) -> Iterator[slice]:
    """Column ranges of (N, D): as wide as the bytes allow."""
    rows, width = x.shape
    # Three copies of a block at a time: as it is read, or what is stored of it; a product's operand; its result.
    column = 3 * rows * _working_type(x).itemsize
    step = max(1, block_bytes // max(1, column))
    return (slice(start, min(start + step, width)) for start in range(0, width, step))


def _read(x: Tensor | np.ndarray, columns: slice, device: torch.device) -> Tensor:
    block = x[:, columns]
    if isinstance(block, np.ndarray):
        block = torch.from_numpy(np.array(block))  # copied: torch warns of arrays that are mapped read-only
    return block.detach().to(device, _working_type(x)).contiguous()


def _working_type(x: Tensor | np.ndarray) -> torch.dtype:
    return torch.float64 if x.dtype in (torch.float64, np.float64) else torch.float32


def _writable(out: Tensor | np.ndarray, shape: tuple[int, ...]) -> Tensor:
    """``out`` as a tensor that shares its memory."""
    if tuple(out.shape) != shape or not _is_float(out):
        raise ValueError(f"out is {_described(out)}, expected floats of shape {shape}")
    if isinstance(out, Tensor):
        if out.requires_grad:
            raise ValueError("out requires gradients, but hop features are made without; give out.detach()")
        return out
    if not out.flags.writeable:
        raise ValueError("out is a read-only array; map it with mode 'r+' or 'w+'")
    return torch.from_numpy(out)


def _check_rows(name: str, x: Tensor | np.ndarray, rows: int) -> None:
    if len(x.shape) != 2 or len(x) != rows or not _is_float(x):
        raise ValueError(f"{name} is {_described(x)}, expected floats of shape ({rows}, columns)")


def _check_folds(folds: Tensor, rows: int) -> None:
    if folds.shape != (rows,) or folds.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise ValueError(f"folds is {_described(folds)}, expected signed integers of shape ({rows},)")
    if rows and folds.min() < -1:
        raise ValueError(
            f"folds has {int(folds.min())}, expected folds from 0, and -1 for nodes whose label is not given"
        )


def _is_float(x: Tensor | np.ndarray) -> bool:
    return x.dtype.is_floating_point if isinstance(x, Tensor) else x.dtype in (np.float16, np.float32, np.float64)


def _described(x: Tensor | np.ndarray) -> str:
    return f"{x.dtype} of shape {tuple(x.shape)}"
