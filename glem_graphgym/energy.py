"""Energy of the processor packages, from the counters of RAPL where they can be read (Linux, /sys/class/powercap)."""

from __future__ import annotations

import re
import threading
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
READ_SECONDS = 60.0  # short enough to miss no overflow: counters wrap around after some hundred kilojoules


class EnergyMeter:
    """Energy since construction, of all processor packages and all processes on them.

    Args:
        folder: contains ``intel-rapl:<package>/energy_uj`` and ``max_energy_range_uj``; Linux has these for other
            makers' processors too. If a counter cannot be read (on many machines only root may), energy is unknown.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        packages = [path for path in folder.glob("*-rapl:*") if re.fullmatch(r"\w+-rapl:\d+", path.name)]
        self._microjoules, self._lock, self._ended = 0, threading.Lock(), threading.Event()
        try:
            self._ranges = {path: int((path / "max_energy_range_uj").read_text()) for path in packages}
            self._last = {path: self._counter(path) for path in packages}
        except (OSError, ValueError):
            self._ranges = {}
        if self._ranges:
            threading.Thread(target=self._read_until_stopped, daemon=True).start()

    @staticmethod
    def _counter(package: Path) -> int:
        return int((package / "energy_uj").read_text())

    def _read_until_stopped(self) -> None:
        try:
            while not self._ended.wait(READ_SECONDS):
                self._read()
        except (OSError, ValueError):  # a counter may wrap around unseen from now on
            self._ranges = {}

    def _read(self) -> None:
        with self._lock:
            for package, max_value in self._ranges.items():
                value = self._counter(package)
                self._microjoules += (value - self._last[package]) % (max_value + 1)
                self._last[package] = value

    def stop(self) -> float | None:
        """Stop the meter; returns joules since construction, None if unknown."""
        self._ended.set()
        if not self._ranges:
            return None
        try:
            self._read()
        except (OSError, ValueError):
            return None
        return self._microjoules / 1e6
