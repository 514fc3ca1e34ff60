"""The heartbeat: who is accused, who is not, and what is left of it in the end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from torch.distributed import HashStore

from glem_graphgym.heartbeat import TICKS, Heartbeat

TIMEOUT = 0.2


class Hearts:
    """Three that share a store; who accused whom."""

    def __init__(self, store: HashStore) -> None:
        self.accused: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        self.hearts = [Heartbeat(store, rank, 3, TIMEOUT, self._note(rank)) for rank in range(3)]
        time.sleep(TIMEOUT / 2)  # all have begun

    def _note(self, rank: int) -> Callable[[int], None]:
        return lambda lost: self.accused.put((rank, lost))

    def stop(self) -> None:
        for heart in self.hearts:
            heart.stop()


class Switched(HashStore):
    """A store that fails, or gives no answer, from when it is told to."""

    state = "well"

    def multi_get(self, keys: list[str]) -> list[bytes]:
        if self.state == "gone":
            raise RuntimeError("connection closed")
        while self.state == "stuck":
            time.sleep(0.01)
        return super().multi_get(keys)


@pytest.fixture
def store() -> Iterator[Switched]:
    store = Switched()
    yield store
    store.state = "well"


def test_nobody_is_accused_while_all_beat_and_nothing_is_left(store: Switched) -> None:
    before = threading.active_count()
    hearts = Hearts(store)
    assert threading.active_count() == before + 6
    time.sleep(3 * TIMEOUT)
    hearts.stop()
    assert hearts.accused.empty()
    assert threading.active_count() == before


def test_the_one_that_beats_no_more_is_accused_by_the_others_once(store: Switched) -> None:
    hearts = Hearts(store)
    began = time.monotonic()
    hearts.hearts[1].stop()
    found = {hearts.accused.get(timeout=30), hearts.accused.get(timeout=30)}
    assert time.monotonic() - began >= TIMEOUT * (TICKS - 1) / TICKS
    hearts.stop()
    assert found == {(0, 1), (2, 1)}
    assert hearts.accused.empty()


@pytest.mark.parametrize("state", ["gone", "stuck"])
def test_a_store_out_of_reach_is_told_from_the_others(store: Switched, state: str) -> None:
    hearts = Hearts(store)
    store.state = state
    assert {hearts.accused.get(timeout=30) for _ in range(3)} == {(0, 0), (1, 1), (2, 2)}
    store.state = "well"
    hearts.stop()


def test_a_heartbeat_that_is_stopped_accuses_nobody(store: Switched) -> None:
    hearts = Hearts(store)
    store.state = "gone"
    hearts.stop()
    time.sleep(2 * TIMEOUT)
    assert hearts.accused.empty()
