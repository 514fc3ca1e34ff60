"""A heartbeat among ranks: each shows the others that it is alive, and notices one that no longer is.

Imports nothing of this package.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any

TICKS = 20  # per timeout
GRACE = 1.0  # seconds to wait for a thread to end


class Heartbeat:
    """Two threads of a rank that run beside its work, and while it waits for other ranks.

    The first exchanges beats (growing numbers) through a store that all ranks share, and counts for how many rounds the
    beat of another rank has not changed. The second counts ticks without a finished round, because an unreachable store
    may block the first forever. Neither uses a clock: a process that was suspended has counted nothing meanwhile, and
    reports nobody when it wakes up. Torch's own timeouts cannot do this: while rank 0 works alone, the others wait in a
    collective for as long as that takes.

    Args:
        store: torch's store, on a connection that nothing else in this process uses, because it may block.
        timeout: seconds without a beat after which a rank counts as lost. Must be longer than any call into C that
            holds Python's global lock throughout, because that stops the threads too.
        on_loss: called once, in a thread, with the lost rank, or with this rank if the store is lost.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float, on_loss: Callable[[int], None]) -> None:
        self.store, self.rank, self.size, self.on_loss = store, rank, size, on_loss
        self.tick = timeout / TICKS
        self.round = 0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._watch)]
        atexit.register(self.stop)  # a thread still inside the store would crash the interpreter's shutdown
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; no loss is reported after this."""
        self.stopped.set()
        for thread in self.threads:
            thread.join(GRACE)
        atexit.unregister(self.stop)

    def _exchange(self) -> None:
        keys = [str(rank) for rank in range(self.size)]
        last_beats: list[bytes] = [b""] * self.size
        unchanged_rounds = [0] * self.size
        while not self.stopped.is_set():
            try:
                self.store.set(keys[self.rank], str(self.round))
                beats = self.store.multi_get(keys)  # in the first round waits until all ranks have begun
            except RuntimeError:  # the store is gone, maybe because all are done: `_watch` reports it after the timeout
                return
            self.round += 1
            unchanged_rounds = [
                rounds + 1 if beat == last_beat else 0
                for beat, last_beat, rounds in zip(beats, last_beats, unchanged_rounds, strict=True)
            ]
            last_beats = beats
            if max(unchanged_rounds) > TICKS:
                self._report_loss(unchanged_rounds.index(max(unchanged_rounds)))
            self.stopped.wait(self.tick)

    def _watch(self) -> None:
        last_round = unchanged_ticks = 0
        while not self.stopped.wait(self.tick):
            unchanged_ticks = unchanged_ticks + 1 if self.round == last_round else 0
            last_round = self.round
            if unchanged_ticks > TICKS:
                self._report_loss(self.rank)

    def _report_loss(self, rank: int) -> None:
        if not self.stopped.is_set():
            self.stopped.set()
            self.on_loss(rank)
