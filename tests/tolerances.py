"""How far rounding alone can take two computations of one formula apart, on any processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def rounding_error(dtype: torch.dtype, summands: int, magnitude: float = 1.0) -> float:
    """Bound on the difference of two sums of the same terms, each computed in ``dtype`` in an order of its own.

    Processors differ in the width of their vectors, in fused multiply-adds and in the blocks of a matrix product, so a
    library adds the same terms in other orders. However it does, a sum of n terms is off by at most n·u·Σ|terms|
    (Higham 2002, section 4.2; u = eps / 2 is the unit roundoff), and two such sums lie within n·eps·Σ|terms|.

    Args:
        dtype: the type of the computation, or of what its results are stored in where that is coarser.
        summands: n, the terms that meet in one result on their longest way. Those of layers in succession add up, as
            errors do; a factor, a division or a function such as exp counts as one.
        magnitude: Σ|terms| or a bound on it.
    """
    return summands * torch.finfo(dtype).eps * magnitude


def assert_equal_up_to_rounding(
    actual: Any, expected: Any, summands: int, dtype: torch.dtype | None = None, magnitude: float | None = None
) -> None:
    """Two arrays are the results of one formula, computed in two ways.

    All elements are judged by one bound, because an element that is small by cancellation carries the error of its
    large terms. The largest element stands for Σ|terms| unless ``magnitude`` is given. With mixed signs Σ|terms| is
    some √n times as large, but n roundings come to some √n·u rather than n·u, so that the bound still holds.

    Args:
        actual: tensor or array.
        expected: the same shape; may be of a finer type.
        summands: as in `rounding_error`.
        dtype: that of the computation where it is not that of ``actual``.
        magnitude: as in `rounding_error`.
    """
    actual, expected = _tensor(actual), _tensor(expected)
    expected64 = expected.double()
    if magnitude is None:
        magnitude = float(expected64.abs().max()) if expected.numel() else 0.0
    error = rounding_error(dtype or actual.dtype, summands, magnitude)
    torch.testing.assert_close(actual.double(), expected64, rtol=0, atol=error)


def assert_all_equal_up_to_rounding(pairs: Iterable[tuple[Any, Any]], summands: int) -> None:
    """Outputs and gradients of one network, computed in two ways, are equal.

    The largest element of all stands for Σ|terms|: a gradient may vanish altogether by cancellation, as that of
    attention scores does where all neighbours are alike, and has the error of what it was summed of.
    """
    pairs = list(pairs)
    magnitude = max(float(_tensor(expected).abs().max()) for _, expected in pairs)
    for actual, expected in pairs:
        assert_equal_up_to_rounding(actual, expected, summands, magnitude=magnitude)


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.asarray(values))
