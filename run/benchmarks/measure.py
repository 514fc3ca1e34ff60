"""Measuring: rows of figures, medians of candidates that take turns, and the bounds of this machine's hardware."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glem_graphgym.hardware import processor

WARM_UP = 2


@dataclass(frozen=True)
class Row:
    """One figure."""

    what: str  # the quantity that is measured
    value: float  # the median, in `unit`
    unit: str
    low: float | None = None  # lowest and highest of the repetitions
    high: float | None = None
    bound: float | None = None  # limit of the hardware, in the same unit
    rival: float | None = None  # the same figure of `rival_name`, measured in turns with ours
    rival_name: str = ""
    part: str = ""  # of the benchmark, which run/benchmark.py adds

    @property
    def faster_is_less(self) -> bool:
        return not self.unit.endswith("/s")

    @property
    def share(self) -> float | None:
        """Share 0-1 of the bound that is reached."""
        if self.bound is None:
            return None
        return self.bound / self.value if self.faster_is_less else self.value / self.bound

    @property
    def times(self) -> float | None:
        """How many times as fast as the rival."""
        if self.rival is None:
            return None
        return self.rival / self.value if self.faster_is_less else self.value / self.rival

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "share_of_bound": self.share, "times_rival": self.times}


def seconds_of(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each candidate, a GPU's work included; they take turns, so a machine that slows down slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + WARM_UP):
        for name, run in candidates.items():
            start = now()
            run()
            if turn >= WARM_UP:
                seconds[name].append(now() - start)
    return seconds


def now() -> float:
    """Time in seconds, read after a GPU that is in use has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_ms(seconds: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: [1e3 * value for value in values] for name, values in seconds.items()}


def medians(candidates: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    return {name: float(np.median(values)) for name, values in seconds_of(candidates, repeats).items()}


def row_of(
    what: str,
    values: Iterable[float],
    unit: str,
    *,
    bound: float | None = None,
    rival: Sequence[float] = (),
    rival_name: str = "",
) -> Row:
    """The row of repeated ``values``: their median with the lowest and the highest, and the median of the rival's."""
    ordered = sorted(values)
    compared: dict[str, Any] = {"rival": float(np.median(rival)), "rival_name": rival_name} if rival else {}
    return Row(what, float(np.median(ordered)), unit, low=ordered[0], high=ordered[-1], bound=bound, **compared)


@cache
def flops(dtype: torch.dtype, device: str) -> float:
    """Floating point operations per second of a large matrix product on a device."""
    size = matrix_size(device)
    a, b = torch.randn(2, size, size).to(device, dtype).unbind()
    return 2 * size**3 / min(seconds_of({"": lambda: a @ b}, 7)[""])


def matrix_size(device: str) -> int:
    return 2048 if device == "cpu" else 8192  # a smaller one does not fill a GPU


@cache
def bandwidth(device: str) -> float:
    """Bytes per second, read and written together, of a large copy on a device."""
    source = torch.randn(1 << 26, device=device)  # 256 MB: beyond every cache
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(seconds_of({"": lambda: target.copy_(source)}, 7)[""])


def machine(repeats: int, device: str) -> Iterable[Row]:
    """Limits of the hardware, from which the bounds of the other parts are computed."""
    product = "matrix product " + "x".join([str(matrix_size(device))] * 3)
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        yield Row(f"{product}, {kind}", flops(dtype, device) / 1e9, "GFLOP/s")
    yield Row("copy of 256 MB, read and written", bandwidth(device) / 1e9, "GB/s")


def describe_machine(device: str = "auto") -> str:
    """Processor, threads, version of torch, and the GPU if torch sees one and ``device`` is not ``cpu``."""
    gpu = f", {torch.cuda.get_device_name()}" if device != "cpu" and torch.cuda.is_available() else ", no GPU"
    return f"{processor()[0]}, {torch.get_num_threads()} threads, torch {torch.__version__}{gpu}"


IMPORT = """
import time, torch_geometric.graphgym
start = time.perf_counter()
import glem_graphgym
print(time.perf_counter() - start)
"""


def startup(repeats: int, device: str) -> Iterable[Row]:
    """Seconds of ``run/main.py --help``, and of importing the plugin once GraphGym is imported."""
    command = [sys.executable, str(Path(__file__).resolve().parents[1] / "main.py"), "--help"]
    seconds = seconds_of({"": lambda: subprocess.run(command, check=True, capture_output=True)}, repeats)[""]
    yield row_of("run/main.py --help", seconds, "s")
    command = [sys.executable, "-c", IMPORT]
    added = [float(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(min(repeats, 3))]
    yield row_of("import glem_graphgym, beyond GraphGym's own import", added, "s")
