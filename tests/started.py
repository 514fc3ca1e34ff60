"""Processes that need not import the libraries, as they are forks of one that has: run/main.py, and others."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


def start(target: Callable[..., None], *arguments: object, size: int = 1) -> list[BaseProcess]:
    """``target`` with these arguments, in ``size`` processes that can find each other, as srun starts them."""
    places: list[dict[str, str]] = [{}]
    if size > 1:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            port = server.getsockname()[1]
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
        more = {"LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0"}
        places = [{**meeting, **more, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]
    started: list[BaseProcess] = [CONTEXT.Process(target=_do, args=(target, arguments, place)) for place in places]
    for process in started:
        process.start()
    return started


def start_main(arguments: Sequence[str], size: int = 1) -> list[BaseProcess]:
    """``run/main.py`` with these arguments, in ``size`` processes that do one run together."""
    return start(_main, list(arguments), size=size)


def finish(started: Sequence[BaseProcess], seconds: float = 300) -> None:
    """Wait until all have ended well."""
    for process in started:
        process.join(seconds)
    assert [process.exitcode for process in started] == [0] * len(started)


def kill(started: Sequence[BaseProcess]) -> None:
    for process in started:
        process.kill()
    for process in started:
        process.join()


def _do(target: Callable[..., None], arguments: tuple[object, ...], environment: dict[str, str]) -> None:
    import torch

    os.environ.update(environment)
    torch.set_num_threads(1)
    target(*arguments)


def _main(arguments: list[str]) -> None:
    from glem_graphgym import processes
    from tests.bad_inputs.conftest import load_program

    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    processes.end(load_program("main").main(arguments))
