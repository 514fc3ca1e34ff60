"""Shared by the programs in this folder: errors as one line, processes, threads, and destinations of the log."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from command_line import before_imports


def run_to_status(
    work: Callable[[argparse.Namespace], int],
    args: argparse.Namespace,
    *,
    quiet: bool = False,
    computes: bool = True,
    resume_command: str = "the same command again",
) -> int:
    """Call ``work`` and return its exit status; on an error that a user can fix, print one line and return 1.

    Args:
        quiet, computes: as for `before_imports`.
        resume_command: what to type to resume after an interruption.
    """
    before_imports(quiet, computes)
    # Imported late, so that --help and a wrong command line answer at once.
    import glem_graphgym  # noqa: F401 - registers the plugin
    from glem_graphgym import processes
    from glem_graphgym.build.run_folder import RunError
    from glem_graphgym.config import ConfigError
    from glem_graphgym.data.text_graph import DataError
    from glem_graphgym.memory import naming_out_of_memory

    try:
        # A stage that runs out of memory names itself; this is for the work before and after stages.
        with naming_out_of_memory("the run", "take a smaller dataset.name or lm.model, or a machine with more"):
            return work(args)
    except (ConfigError, DataError, RunError, ValueError, FloatingPointError, OSError, MemoryError) as error:
        if os.environ.get("GLEM_TRACEBACK"):
            raise
        remedy = ""
        if isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            remedy = "; get access to it, or choose another dataset.dir or out_dir"
        print(f"error: {error}{remedy}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if not processes.is_lost(error):
            raise
        print(f"error: another process of this run has ended, or hangs ({error})", file=sys.stderr)
        return processes.LOST
    except KeyboardInterrupt:
        print(f"interrupted; type {resume_command} to resume", file=sys.stderr)
        return 1


def start_or_join(cfg: Any, program: str, argv: list[str]) -> int | None:
    """Join the processes of a run, or start them if ``devices`` asks for several and no launcher has started them.

    Returns the exit status of the started processes (``program`` with ``argv``); None if this process does the run.
    """
    from glem_graphgym import processes
    from glem_graphgym.build.language_model import hardware_for
    from glem_graphgym.config import check_devices
    from glem_graphgym.starting import start

    info = processes.rank_from_environment()
    check_devices(cfg, info.local_size if info else None)
    count = cfg.devices or 1
    if cfg.train.mode == "standard" or (info is None and count == 1):
        return None
    if info is None:
        return start([sys.executable, str(Path(program).resolve()), *argv], count)
    processes.join(info, hardware_for(cfg, "32").accelerator)
    return None


def experiment_name(file: str) -> str:
    name = Path(file).name
    return name.removesuffix(".yaml").removesuffix(".yml")


def set_up_process(cfg: Any) -> None:
    """Set memory limits and threads: at most ``num_threads``, and at most this process's share of the cores."""
    import torch
    from joblib import cpu_count

    from glem_graphgym import processes
    from glem_graphgym.build.language_model import hardware_for
    from glem_graphgym.memory import keep_freed_memory, limit_to_machine

    keep_freed_memory()
    if hardware_for(cfg, "32").accelerator == "cpu":  # CUDA's driver maps far more than it uses
        limit_to_machine()
    share = cpu_count() // processes.rank_info().local_size
    torch.set_num_threads(max(1, min(cfg.num_threads, share)))
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")


def set_up_logging(cfg: Any) -> None:
    """Log to the terminal, to the run's logging.log, or to both, as ``print`` says; only the first process logs."""
    from glem_graphgym import processes

    if processes.rank() > 0:
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)
        return
    handlers: list[logging.Handler] = []
    if cfg.print in ("stdout", "both"):
        handlers.append(logging.StreamHandler(sys.stdout))
    if cfg.print in ("file", "both"):
        handlers.append(logging.FileHandler(Path(cfg.run_dir) / "logging.log"))
    if not handlers:
        raise ValueError(f"print is '{cfg.print}', expected one of: stdout, file, both")
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=handlers, force=True)
    logging.raiseExceptions = False  # no traceback per line that a full disk has no room for
    for name in ("httpx", "httpcore", "filelock", "fsspec", "urllib3"):
        logging.getLogger(name).setLevel(logging.WARNING)
