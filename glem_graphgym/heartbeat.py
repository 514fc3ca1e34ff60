"""A heartbeat among processes: each shows the others that it lives, and notices one that no longer does.

Imports nothing of ours.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any

TICKS = 20  # in a timeout
GRACE = 1.0  # seconds that a thread gets to end


class Heartbeat:
    """Two threads beside a process's work, which go on while it waits for the others.

    One exchanges beats, growing numbers, through a store that all processes share, and counts the rounds for which
    another's has stood still. The other counts the ticks in which no round was done: a store out of reach may leave the
    first without an answer forever. Neither asks a clock: a process that was itself suspended has counted nothing
    meanwhile, and accuses nobody when it wakes up. Torch's own timeouts cannot do this: while rank 0 works alone, the
    others wait in a collective for as long as that takes.

    Args:
        store: torch's, on a connection that nothing else in this process uses, for it may block.
        timeout: seconds without a beat after which a process counts as lost. Longer than any call into C that holds
            Python's lock all along, which stops the threads too.
        on_loss: called once, in a thread, with the rank that is lost, or this process's own where the store is.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float, on_loss: Callable[[int], None]) -> None:
        self.store, self.rank, self.size, self.on_loss = store, rank, size, on_loss
        self.tick = timeout / TICKS
        self.round = 0
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._watch)]
        atexit.register(self.stop)  # a thread inside of the store would break the interpreter's end
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; nobody is accused any more."""
        self.stopped.set()
        for thread in self.threads:
            thread.join(GRACE)
        atexit.unregister(self.stop)

    def _exchange(self) -> None:
        keys = [str(rank) for rank in range(self.size)]
        before: list[bytes] = [b""] * self.size
        still = [0] * self.size
        while not self.stopped.is_set():
            try:
                self.store.set(keys[self.rank], str(self.round))
                now = self.store.multi_get(keys)  # in the first round waits until all have begun
            except RuntimeError:  # the store has gone, maybe because all are done: `_watch` gives them the time
                return
            self.round += 1
            still = [rounds + 1 if new == old else 0 for new, old, rounds in zip(now, before, still, strict=True)]
            before = now
            if max(still) > TICKS:
                self._lose(still.index(max(still)))
            self.stopped.wait(self.tick)

    def _watch(self) -> None:
        before = still = 0
        while not self.stopped.wait(self.tick):
            still = still + 1 if self.round == before else 0
            before = self.round
            if still > TICKS:
                self._lose(self.rank)

    def _lose(self, rank: int) -> None:
        if not self.stopped.is_set():
            self.stopped.set()
            self.on_loss(rank)
