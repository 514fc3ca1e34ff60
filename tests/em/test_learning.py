"""GLEM learns more than its parts: on a graph where neither the texts nor the edges suffice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch_geometric.graphgym.config import cfg

from glem_graphgym.build import run as build_run
from glem_graphgym.build.graph import GRAPHS
from glem_graphgym.config import load_config
from glem_graphgym.data.synthetic import make_synthetic
from glem_graphgym.data.text_graph import TextGraph, Texts
from glem_graphgym.files import read_json
from glem_graphgym.modes import run_em, run_gnn

pytestmark = pytest.mark.slow

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SETTINGS: dict[str, Any] = {
    **{"accelerator": "cpu", "lm.precision": 32, "gnn.precision": 32},
    **{"lm.max_length": 16, "lm.epochs": 15, "lm.batch_size": 32, "lm.lr": 2e-3, "lm.warmup_epochs": 1},
    **{"model.type": "glem_sage", "gnn.layers_mp": 2, "gnn.layers_post_mp": 1, "gnn.dim_inner": 64},
    **{"gnn.dropout": 0.3, "optim.optimizer": "adam", "optim.base_lr": 0.01, "optim.weight_decay": 5e-4},
    **{"optim.max_epoch": 60, "train.eval_period": 2, "glem.em_iterations": 2, "glem.temperature": 0.7},
    **{"glem.alpha": 0.7, "glem.beta": 0.3, "glem.lm_pseudo_ratio": 100, "glem.gnn_pseudo_ratio": 100},
}


def hard_graph(seed: int) -> TextGraph:
    """600 nodes, 30 of them labelled. Words are single letters, one token of the tiny language model each."""
    graph = make_synthetic(
        num_nodes=600,
        num_classes=4,
        avg_degree=5,
        text_signal=0.35,
        structure_signal=0.6,
        words_per_text=8,
        vocabulary=len(LETTERS),
        shares=(0.05, 0.1, 0.85),
        seed=seed,
    )
    words = sorted({word for text in graph.texts for word in text.split()})
    letter = dict(zip(words, LETTERS, strict=True))
    return replace(graph, texts=Texts.of([" ".join(letter[word] for word in text.split()) for text in graph.texts]))


def test_glem_beats_lm_gnn_and_cascade_on_the_mean_of_three_seeds(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test accuracy at the best validation accuracy, by the means of each method.

    Over eight seeds GLEM-GNN was 0.067 ± 0.016 above the best of LM, GNN on static embeddings and cascade, and GLEM-LM
    0.162 ± 0.047 above LM; the margins asked for are about three standard errors of a mean of three below that.
    """
    test: dict[str, list[float]] = {}
    for seed in range(3):
        monkeypatch.setitem(GRAPHS, "letters", lambda cfg: hard_graph(cfg.seed))
        for mode, features, run_mode in (("glem_gnn", "static", run_gnn), ("glem", "text", run_em)):
            file = tmp_path / "config.yaml"
            file.write_text(f"dataset: {{format: TAG, name: letters}}\ntrain: {{mode: {mode}}}\nseed: {seed}\n")
            own = {"lm.model": tiny_lm, "dataset.dir": tmp_path / "datasets", "glem.node_features": features}
            load_config(cfg, file, [str(word) for pair in {**SETTINGS, **own}.items() for word in pair])
            cfg.run_dir = str(tmp_path / f"{mode} {seed}" / str(seed))  # each graph is an experiment of its own
            _, run = build_run.prepare(cfg)
            run_mode(run)
            for method in ("LM", "GNN", "Cascade", "GLEM-LM", "GLEM-GNN"):
                best = run.journal.best(method)
                if best is not None:
                    scores = read_json(best.folder / "stage.json")["scores"]
                    test.setdefault(method, []).append(scores["test"]["accuracy"])
    assert all(len(values) == 3 for values in test.values())
    mean = {method: float(np.mean(values)) for method, values in test.items()}
    assert mean["GLEM-GNN"] > max(mean["LM"], mean["GNN"], mean["Cascade"]) + 0.04, test
    assert mean["GLEM-LM"] > mean["LM"] + 0.08, test
