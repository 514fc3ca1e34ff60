"""Checkpoints of a stage, from which a killed run resumes."""

from __future__ import annotations

import logging
import random
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glem_graphgym import processes
from glem_graphgym.disk import DiskFullError
from glem_graphgym.files import atomic_write, making

FOLDER = "checkpoint"
MINUTES = 10.0


class Checkpoint:
    """The checkpoints of a stage, ``<folder>/checkpoint/<name>.pt``, on a disk that all ranks read; rank 0 writes.

    With sharded weights each rank first writes its shard to ``<name>-<writing>-<rank>.pt``; then the file of rank 0
    refers to it by the id ``writing``. ``seconds_before``: time that killed processes spent on the state that was read.
    """

    def __init__(self, folder: Path, minutes: float = MINUTES) -> None:
        self.folder, self.minutes = folder / FOLDER, minutes
        self.begun = self.written = time.monotonic()
        self.seconds_before = 0.0

    def due(self) -> bool:
        """Whether the next checkpoint is due; the same answer on all ranks."""
        return processes.broadcast(lambda: time.monotonic() - self.written >= 60 * self.minutes)

    def write(self, name: str, state: dict[str, Any], sharded: bool = False) -> None:
        """Replace checkpoint ``name`` by ``state``: tensors, numbers, text and containers of these.

        On a full disk the stage continues without a checkpoint, with a warning. ``sharded``: the ranks' states differ.
        """
        seconds = self.seconds_before + time.monotonic() - self.begun
        common: dict[str, Any] = {"seconds": seconds, "random": processes.gather(random_state())}
        file = self.folder / f"{name}.pt"
        if sharded:
            common |= {"writing": processes.broadcast(lambda: uuid.uuid4().hex), "parts": processes.world_size()}
            shards_saved = all(processes.gather(_save(self._shard_file(name, common), state)))
            saved = processes.broadcast(lambda: shards_saved and _save(file, common))
            for shard_file in self.folder.glob(f"{name}-*-{processes.rank()}.pt"):
                if (shard_file == self._shard_file(name, common)) != saved:
                    shard_file.unlink()
        else:
            # All wait for rank 0 here: in the next training step they would do so for `processes.STEP_TIMEOUT` at most.
            processes.broadcast(lambda: _save(file, {**state, **common}))
        self.written = time.monotonic()

    def _shard_file(self, name: str, common: dict[str, Any]) -> Path:
        return self.folder / f"{name}-{common['writing']}-{processes.rank()}.pt"

    def read(self, name: str, sharded: bool = False) -> dict[str, Any] | None:
        """Read the latest state and restore the random generators; None if there is none, or none that can be read.

        Raises:
            ValueError: the state was sharded among another number of ranks than now, or only then or only now.
        """
        file = self.folder / f"{name}.pt"
        if not processes.broadcast(file.exists):
            return None
        state = _load(file)
        if not all(processes.gather(state is not None)):
            return None
        assert state is not None
        num_shards, expected = state.pop("parts", 0), processes.world_size() if sharded else 0
        if num_shards != expected:
            raise ValueError(
                f"{file} was written by {_writers_text(num_shards)}, but this run has {_writers_text(expected)}; "
                f"start it as before, or delete {self.folder} and the stage begins anew"
            )
        if sharded:
            shard = _load(self._shard_file(name, state))
            if not all(processes.gather(shard is not None)):
                return None
            state = {**state, **(shard or {})}
            del state["writing"]
        self.seconds_before = max(self.seconds_before, state.pop("seconds"))
        random_states = state.pop("random")
        if len(random_states) == processes.world_size():
            set_random_state(random_states[processes.rank()])
        return state


def _writers_text(num_shards: int) -> str:
    return (
        f"{num_shards} processes that split the weights (lm.strategy fsdp)"
        if num_shards
        else "processes with whole weights"
    )


def _save(file: Path, state: dict[str, Any]) -> bool:
    """Write a state; returns whether it fitted on the disk."""
    try:
        with atomic_write(file) as opened:
            torch.save(state, opened)
    except DiskFullError as error:
        logging.warning(f"no checkpoint could be kept: {error}")
        return False
    return True


def _load(file: Path) -> dict[str, Any] | None:
    try:
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # unpickling can fail in any way
        logging.warning(f"{file} cannot be read ({error!r:.100}); the stage begins anew")
        return None


def random_state() -> dict[str, Any]:
    """State of every generator that a library may draw from, including the GPU's if this process uses one.

    Contains no tensors, so that ranks can send it to each other.
    """
    numpy: Any = np.random.get_state()  # noqa: NPY002 - libraries below us draw from the global state
    name, keys, *rest = numpy
    return {
        "python": random.getstate(),
        "numpy": (name, keys.tolist(), *rest),
        "torch": torch.get_rng_state().tolist(),
        "cuda": torch.cuda.get_rng_state().tolist() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["cuda"] is not None and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


@contextmanager
def filling(folder: Path, data_parallel: bool) -> Iterator[Path | None]:
    """A block that fills ``folder`` once, entered by every rank: `files.making` on rank 0, and a barrier at its end.

    Yields the temporary folder, with the content that a killed run left if that includes a checkpoint; it is renamed
    when all ranks have left the block. Yields None if ``folder`` exists, and on ranks above 0 unless ``data_parallel``:
    rank 0 then works alone.
    """
    if processes.rank() > 0:
        temporary = processes.broadcast(lambda: None)
        yield temporary if data_parallel else None
        processes.barrier()
    else:
        with making(folder, resume=True) as temporary:
            if temporary is not None:
                useless = (temporary / FOLDER).glob(".*") if (temporary / FOLDER).is_dir() else temporary.iterdir()
                for path in useless:  # half-written checkpoints or, without a checkpoint, all
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            processes.broadcast(lambda: temporary)
            with processes.as_only_rank(not data_parallel):
                yield temporary
            processes.barrier()
            if temporary is not None:
                shutil.rmtree(temporary / FOLDER, ignore_errors=True)
    processes.barrier()
