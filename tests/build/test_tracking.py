"""Live tracking: what trackers are told, in their local modes, and that they can neither stop nor change a run."""

from __future__ import annotations

import importlib
import json
import logging
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym import processes
from glem_graphgym.build import tracking
from glem_graphgym.build.run import train_run
from glem_graphgym.config import ConfigError
from glem_graphgym.em.journal import Journal, Stage

# Of every stage that trains, by optimizer steps; of every stage, by EM iteration.
TRAINED = {f"{stage}/{name}" for stage in ("lm_gold", "gnn_gold", "e_step_1", "m_step_1") for name in ("loss", "lr")}
FINISHED = {f"{stage}/{name}" for stage in ("lm_gold", "m_step") for name in ("valid_accuracy", "test_loss", "seconds")}
TERMS = {"e_step/o_q", "m_step/agreement"}


class Stopped(Exception):
    """Ends a run before its last stage."""


@pytest.fixture
def resumed(configure_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Stops a run before its M-step, and goes on with it; returns its folder."""

    def train(*options: object) -> Path:
        folder = configure_run(*options, run="grid/point/7")
        with monkeypatch.context() as patch:

            def doing(journal: Journal, stage: Stage) -> Any:
                if stage.key.name == "m_step_1":
                    raise Stopped
                return usual(journal, stage)

            usual = Journal._stage_work
            patch.setattr(Journal, "_stage_work", doing)
            with pytest.raises(Stopped):
                train_run(cfg)
        train_run(cfg)
        return folder

    return train


@pytest.mark.slow
def test_mlflow_has_the_run_under_its_grid_and_goes_on_with_it(
    resumed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra 'mlflow' is missing")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    resumed("glem.track", "mlflow", "glem.alpha", 0.3)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("grid").experiment_id])
    assert (run.info.run_name, run.data.tags["group"], run.info.status) == ("point/7", "point", "FINISHED")
    assert run.data.params["glem.alpha"] == "0.3" and run.data.params["mode"] == "glem"
    assert set(run.data.metrics) >= TRAINED | FINISHED | TERMS
    history = client.get_metric_history(run.info.run_id, "gnn_gold/loss")
    assert [metric.step for metric in history] == [1, 2, 3, 4, 5, 6]  # not told again where the run went on
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "m_step/valid_accuracy")] == [1]


@pytest.mark.slow
def test_trackio_has_the_run_under_its_grid_and_goes_on_with_it(
    resumed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio", reason="the extra 'trackio' is missing")
    resumed("glem.track", "trackio", "glem.alpha", 0.3)
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("grid")
    assert (run.name, run.config["_Group"], run.config["glem.alpha"]) == ("point/7", "point", 0.3)
    logs = SQLiteStorage.get_logs("grid", "point/7", run_id=run.id)
    assert {name for row in logs for name in row} >= TRAINED | FINISHED | TERMS
    assert [row["step"] for row in logs if "gnn_gold/loss" in row] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_weights_and_biases_has_the_run_under_its_grid_and_goes_on_with_it(
    resumed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="the extra 'wandb' is missing")
    monkeypatch.setenv("WANDB_MODE", "offline")
    folder = resumed("glem.track", "wandb", "glem.alpha", 0.3)
    id = json.loads((folder / "wandb.json").read_text())["id"]
    first, second = (file.read_bytes() for file in sorted(folder.glob(f"wandb/offline-run-*-{id}/run-{id}.wandb")))
    assert all(name.encode() in first + second for name in TRAINED | FINISHED | TERMS)
    for told in (first, second):
        assert b"point/7" in told and b"grid" in told and b"glem.alpha" in told
    assert b"gnn_gold/loss" in first and b"gnn_gold/loss" not in second and b"m_step_1/loss" in second


def test_tensorboard_has_what_stages_report(configure_run: Callable[..., Path]) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    folder = configure_run("tensorboard_each_run", True)
    train_run(cfg)
    (file,) = (folder / "tensorboard").glob("events.out.tfevents.*")
    data, values = file.read_bytes(), list[tuple[str, int]]()
    while data:  # length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        values += [(value.tag, event.step) for value in event.summary.value]
        data = data[16 + length :]
    assert {name for name, _ in values} >= TRAINED | FINISHED | TERMS
    assert [step for name, step in values if name == "gnn_gold/valid"] == [1, 2, 3, 4, 5, 6]


# ---- what cannot be tracked ---------------------------------------------------------------------------------------


def test_a_tracker_that_fails_or_hangs_changes_nothing_and_is_warned_of_once(
    configure_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    hang = threading.Event()

    def failing(run: tracking.TrackedRun) -> tuple[Any, Any]:
        def track(numbers: Any, step: int) -> None:
            told.extend(numbers)
            if len(told) == 8:
                raise ConnectionError("no\nserver")

        return track, told.append

    def hanging(run: tracking.TrackedRun) -> tuple[Any, Any]:
        hang.wait()
        return failing(run)

    def scores(name: str) -> Any:
        settings = (
            "train.mode",
            "glem_gnn",
            "glem.node_features",
            "static",
            "tensorboard_each_run",
            name != "untracked",
        )
        folder = configure_run(*settings, run=name)
        train_run(cfg)
        return json.loads((folder / "stages/00_gnn_gold/stage.json").read_text())["scores"]

    monkeypatch.setattr(tracking, "PATIENCE", 0.1)
    untracked = scores("untracked")
    assert not caplog.records
    for opened, warning in (
        (failing, "tracked by tensorboard (ConnectionError: no server)"),
        (hanging, "within 0.1 s"),
    ):
        monkeypatch.setitem(tracking.OPEN, "tensorboard", opened)
        with caplog.at_level(logging.WARNING):
            assert scores(opened.__name__) == untracked
        (record,) = caplog.records
        assert warning in record.getMessage()
        caplog.clear()
    assert len(told) == 8  # nothing after the error
    hang.set()


def test_a_tracker_that_is_not_installed_is_refused_before_the_run(
    configure_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlflow" else found(name))
    folder = configure_run("glem.track", "mlflow")
    with pytest.raises(
        ConfigError, match=r"glem\.track is 'mlflow', which is not installed: pip install 'glem-graphgym\[mlflow\]'"
    ):
        train_run(cfg)
    assert not list(folder.iterdir())


def test_the_first_process_alone_tracks(configure_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    configure_run("tensorboard_each_run", True)
    opened: list[Any] = []
    monkeypatch.setitem(tracking.OPEN, "tensorboard", lambda run: (lambda *told: opened.append(told), opened.append))
    monkeypatch.setattr(tracking, "TrackedRun", lambda *given: None)
    for rank in (1, 0):
        assert not opened
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        with tracking.tracking(cfg) as track:
            track({"loss": 1.0}, 3)
    assert opened == [({"loss": 1.0}, 3), True]
