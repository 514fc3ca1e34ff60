"""Writes ``predictions.csv.gz``: each method's class of every node, from the weights that a finished run kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.build.choices import choose, with_choices
from glem_graphgym.build.graph import load_text_graph_of, metrics_of
from glem_graphgym.build.run import build_run, predicted_nodes, scores_of
from glem_graphgym.build.run_folder import check_run_folder, identity_of, require_finished
from glem_graphgym.config import ConfigError, check_config
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.em.journal import Scores
from glem_graphgym.em.predict import predict_methods
from glem_graphgym.em.run import Run
from glem_graphgym.files import atomic_write, read_json, write_json
from glem_graphgym.modes import MODES

FILE = "predictions.csv.gz"


def finished_run(cfg: CfgNode) -> tuple[TextGraph, Run]:
    """The graph and the finished run in ``cfg.run_dir``, with all its stages.

    Raises:
        ConfigError: ``train.mode`` is none of ours.
        RunError: the folder holds no finished run, or one with other settings.
    """
    check_config(cfg)
    if cfg.train.mode not in MODES:
        raise ConfigError(f"train.mode is '{cfg.train.mode}', expected the mode of the run: {', '.join(MODES)}")
    run_dir = Path(cfg.run_dir)
    require_finished(run_dir)
    graph = load_text_graph_of(cfg)
    check_run_folder(run_dir, identity_of(cfg, graph), to_predict=True)
    run = build_run(with_choices(cfg, choose(cfg)), graph)
    run.journal.read_all(read_json(run_dir / "run.json").get("stages"))
    return graph, run


def names_of(graph: TextGraph, nodes: np.ndarray) -> np.ndarray | list[Any]:
    """Ids of ``nodes``, int64, in the data; row numbers if the data has no ids."""
    return nodes if graph.node_ids is None else [graph.node_ids[int(node)] for node in nodes]


def classes_of(graph: TextGraph, method: str, logits: np.ndarray) -> dict[str, np.ndarray]:
    """Two table columns (n,) from logits (n, C): names of the classes that ``method`` predicts, and probabilities."""
    logits_float32 = logits.astype(np.float32)
    probability = torch.softmax(torch.from_numpy(logits_float32), -1).amax(-1).numpy()
    classes = np.array(graph.class_names, dtype=object)[logits_float32.argmax(-1)]
    return {method: classes, f"{method} probability": probability.round(4)}


def predict_run(cfg: CfgNode) -> dict[str, Scores]:
    """Predict all nodes with the finished run in ``cfg.run_dir``; write `FILE`, and the scores as predictions.json.

    Returns:
        Method -> scores on every split; empty on ranks above 0.

    Raises:
        FileNotFoundError: the run has not kept the weights of a stage; see also `finished_run`.
    """
    graph, run = finished_run(cfg)
    run_dir = Path(cfg.run_dir)
    nodes = predicted_nodes(cfg, graph, run.candidates)
    nodes = np.arange(graph.num_nodes) if nodes is None else nodes
    table: dict[str, Any] = {"node": names_of(graph, nodes)}
    scores: dict[str, Scores] = {}
    for method, logits in predict_methods(run):
        if processes.rank() > 0:
            continue
        table |= classes_of(graph, method, logits[nodes])
        scores[method] = scores_of(graph, logits, metrics_of(graph))
    if processes.rank() > 0:
        return {}
    with atomic_write(run_dir / FILE) as file:
        pd.DataFrame(table).to_csv(file, index=False, compression="gzip")
    write_json(run_dir / "predictions.json", scores)
    shutil.rmtree(run.journal.working, ignore_errors=True)
    return scores
