"""Memory of torch operations, counted tensor by tensor and extrapolated to larger inputs.

Imports nothing of this package.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the live bytes of all tensors that operations read or return while this mode is on.

    Attributes:
        now: live bytes.
        history: live bytes after each new tensor.
        marks: name -> live bytes when `mark` was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.history: list[int] = []
        self.marks: dict[str, int] = {}
        self._counted: weakref.WeakSet[Any] = weakref.WeakSet()

    def mark(self, name: str) -> None:
        self.marks[name] = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._counted:
            self._counted.add(storage)
            weakref.finalize(storage, self._free, storage.nbytes())
            self.now += storage.nbytes()
            self.history.append(self.now)

    def _free(self, size: int) -> None:
        self.now -= size


@contextmanager
def counted() -> Iterator[LiveBytes]:
    """A block whose tensors are counted; without garbage collection of cycles, so that counts are reproducible."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with LiveBytes() as live:
            yield live
    finally:
        if collects:
            gc.enable()


def foreseen(
    measure: Callable[[float], LiveBytes], small: float, large: float, size: float
) -> tuple[int, dict[str, int]]:
    """Peak bytes, and bytes at each mark, of ``measure`` at ``size``, extrapolated from two smaller sizes.

    The same operations run at both sizes, so the tensors correspond, and the live bytes after each tensor are linear in
    the size. They are extrapolated tensor by tensor, because the peak may be at another tensor than in the small
    measurements, where weights and gradients may dominate. If the numbers of tensors differ, the two peaks are
    extrapolated.

    Args:
        measure: size -> counts at that size.
        small, large: two different sizes.
    """
    first, second = measure(small), measure(large)
    scale = (size - large) / (large - small)
    peaks = [np.array(live.history, dtype=np.float64) for live in (first, second)]
    if len(first.history) != len(second.history):
        peaks = [peak.max(keepdims=True) for peak in peaks]
    peak = (peaks[1] + scale * (peaks[1] - peaks[0])).max()
    marks = {name: second.marks[name] + scale * (second.marks[name] - first.marks[name]) for name in first.marks}
    return round(peak), {name: round(value) for name, value in marks.items()}
