"""The memory that torch's operations take, counted tensor by tensor, and extrapolated to larger inputs.

Imports nothing of ours.
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
    """Counts the bytes of all tensors that operations read or give while it is entered, as long as they live.

    Attributes:
        now: bytes that live.
        history: int, bytes that live after each new tensor.
        marks: name -> bytes that lived when `mark` was called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.history: list[int] = []
        self.marks: dict[str, int] = {}
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def peak(self) -> int:
        return max(self.history, default=0)

    def mark(self, name: str) -> None:
        self.marks[name] = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, out)):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            weakref.finalize(storage, self._free, storage.nbytes())
            self.now += storage.nbytes()
            self.history.append(self.now)

    def _free(self, size: int) -> None:
        self.now -= size


@contextmanager
def counted() -> Iterator[LiveBytes]:
    """A block whose tensors are counted; cycles of objects are not collected in it, so that it repeats exactly."""
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
    """Peak of bytes, and bytes at each mark, of ``measure`` at ``size``, out of two smaller sizes.

    The same operations run at either size, so each tensor of one has its like in the other, and what lives beside it
    is linear in the size. Extrapolated tensor by tensor, a peak is found that lies elsewhere in the small ones: there
    weights and gradients may be most of it. Where numbers of tensors differ the two peaks are all there is to go by.

    Args:
        measure: size -> what was counted there.
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
