"""Live tracking of a run by TensorBoard, Weights & Biases, MLflow or trackio.

A thread per tracker passes on what the stages report, so that a slow tracker does not slow the run; a failing tracker
stops with a warning. Each tracker's own environment variables choose server, credentials and folder.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.config import ConfigError
from glem_graphgym.em.plan import Track
from glem_graphgym.files import read_json, write_json

End = Callable[[bool], object]  # ends tracking; called with whether the run has finished
PATIENCE = 30.0  # seconds that the end of a run waits for a tracker


@contextmanager
def tracking(cfg: CfgNode) -> Iterator[Track]:
    """Context with a function that passes numbers to the trackers in ``cfg``, which start with the first numbers.

    Raises:
        ConfigError: the tracker of ``glem.track`` is not installed.
    """
    kinds = ["tensorboard"] if cfg.tensorboard_each_run else []
    if (kind := cfg.glem.track) != "none":
        spec = importlib.util.find_spec(kind)
        if spec is None or spec.origin is None:  # origin None: just a folder of that name, such as W&B creates
            raise ConfigError(
                f"glem.track is '{kind}', which is not installed: pip install 'glem-graphgym[{kind}]', or set "
                "it to none"
            )
        kinds.append(kind)
    trackers = [_Tracker(kind, Path(cfg.run_dir)) for kind in kinds if processes.rank() == 0]
    finished = False

    def track(numbers: Mapping[str, float], step: int) -> None:
        for tracker in trackers:
            tracker.track(numbers, step)

    try:
        yield track
        finished = True
    finally:
        for tracker in trackers:
            tracker.end(finished)


class TrackedRun:
    """Facts about a run for a tracker.

    Attributes:
        project: name of the folder that holds all experiments, or those of a grid.
        group: name of the experiment (a point of a grid), whose runs are its seeds.
        settings: all that the run depends on.
        resumed_id: the tracker's id of a resumed run; None for a new one.
    """

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder, self._file = folder.resolve(), folder / f"{kind}.json"
        self.project, self.group = (self.folder.parents[level].name for level in (1, 0))
        self.name = f"{self.group}/{self.folder.name}"
        record = read_json(folder / "run.json")
        facts = {name: record.get(name) for name in ("mode", "dataset", "fingerprint", "metric", "em_iterations")}
        self.settings: dict[str, Any] = {**record["settings"], **facts}
        self.resumed_id = read_json(self._file)["id"] if self._file.exists() else None

    def remember(self, id: str) -> None:
        if id != self.resumed_id:
            write_json(self._file, {"id": id})


class _Tracker(threading.Thread):
    """The thread that passes numbers to one tracker."""

    def __init__(self, kind: str, run_dir: Path) -> None:
        super().__init__(name=kind, daemon=True)
        self.kind, self.run_dir, self.queue = kind, run_dir, SimpleQueue[Any]()

    def track(self, numbers: Mapping[str, float], step: int) -> None:
        if self.ident is None:
            self.start()
        self.queue.put((numbers, step))

    def end(self, finished: bool) -> None:
        if self.ident is None:
            return
        self.queue.put(finished)
        self.join(PATIENCE)
        if self.is_alive():
            logging.warning(f"{self.kind} has not taken all numbers within {PATIENCE:g} s; the last may be lost")

    def run(self) -> None:
        try:
            track, end = OPEN[self.kind](TrackedRun(self.kind, self.run_dir))
            while not isinstance(item := self.queue.get(), bool):
                track(*item)
            end(item)
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            logging.warning(f"{self.run_dir} is no longer tracked by {self.kind} ({type(error).__name__}: {reason})")


# ---- trackers -----------------------------------------------------------------------------------------------------


def _tensorboard(run: TrackedRun) -> tuple[Track, End]:
    from lightning_fabric.loggers import TensorBoardLogger

    logger = TensorBoardLogger(run.folder, name="tensorboard", version="", flush_secs=10)
    logger.log_hyperparams(run.settings)
    return logger.log_metrics, lambda finished: logger.finalize("")


def _wandb(run: TrackedRun) -> tuple[Track, End]:
    import wandb

    wandb.setup(wandb.Settings(silent=True))  # no prompt for an API key on the terminal
    tracked = wandb.init(
        project=run.project,
        group=run.group,
        name=run.name,
        id=run.resumed_id,
        config=run.settings,
        dir=run.folder,
        resume="allow",
        reinit="create_new",
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.remember(tracked.id)
    tracked.define_metric("*", step_metric="step")  # wandb's own step must increase; ours restarts with each stage
    return (
        lambda numbers, step: tracked.log({**numbers, "step": step}),
        lambda finished: tracked.finish(exit_code=int(not finished)),
    )


def _trackio(run: TrackedRun) -> tuple[Track, End]:
    import trackio

    resume = "allow" if run.resumed_id else "never"  # trackio resumes the latest run of that name
    tracked = trackio.init(run.project, run.name, run.group, config=run.settings, resume=resume)
    run.remember(tracked.id)
    return lambda numbers, step: tracked.log(dict(numbers), step), lambda finished: tracked.finish()


def _mlflow(run: TrackedRun) -> tuple[Track, End]:
    import mlflow

    if run.resumed_id:
        mlflow.start_run(run.resumed_id)
    else:
        mlflow.set_experiment(run.project)
        run.remember(mlflow.start_run(run_name=run.name, tags={"group": run.group}).info.run_id)
        mlflow.log_params(run.settings)
    return (
        lambda numbers, step: mlflow.log_metrics(dict(numbers), step),
        lambda finished: mlflow.end_run("FINISHED" if finished else "FAILED"),
    )


OPEN: dict[str, Callable[[TrackedRun], tuple[Track, End]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "trackio": _trackio,
}
