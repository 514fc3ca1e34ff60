"""Predictions of a finished run, recomputed from the weights that it kept."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from glem_graphgym import processes
from glem_graphgym.em.e_step import open_predictions
from glem_graphgym.em.journal import FinishedStage
from glem_graphgym.em.plan import title_of
from glem_graphgym.em.run import Run
from glem_graphgym.modes import METHODS


def predict_methods(run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the run's methods, after EM only those of EM, each with its best stage's logits, float16 (N, C)."""
    em = [method for method in METHODS if method.startswith("GLEM-")]
    best = {method: stage for method in METHODS if (stage := run.journal.best(method))}
    for method, stage in best.items():
        if method in em or not set(em) & set(best):
            yield method, predict_stage(run, stage)


def predict_stage(run: Run, stage: FinishedStage) -> np.ndarray:
    """Recompute the logits of a finished stage, float16 (N, C), from its weights (and its LM's).

    All ranks encode the texts for an LM or a GNN; rank 0 alone runs the GNN or the joint model, and has all logits.
    """
    classes = run.gold.num_classes
    is_lm = stage.key.model == "LM"
    gnn = run.joint or run.gnn
    predicted = run.encoded if is_lm or gnn is None else gnn.predicted
    logits = _scratch(run, f"{stage.key.folder}-logits", classes, predicted)
    if is_lm:
        _encode(run, stage, logits)
        return logits
    lm = run.teacher_of(stage) if run.lm_em else None
    unused_logits = _scratch(run, "teacher-logits", classes, run.encoded) if lm else logits
    embeddings = _encode(run, lm, unused_logits) if lm else None
    views = {name: _encode(run, view, unused_logits) for name, view in run.view_stages().items()}
    if processes.rank() > 0:
        return logits
    if run.joint is not None:
        task = run.joint.start(run.gnn_step_targets(stage.key, None), run.features(None), stage.weights())
        with processes.as_only_rank():
            embeddings = _scratch(run, "embeddings", task.embedding_dim, run.encoded)
            task.predict(logits, embeddings, f"{title_of(stage.key.name)}, encoding", run.encoded)
        return logits
    assert run.gnn is not None
    pseudo = None
    if lm and stage.key.em_iteration > 0:
        is_first_step = run.settings.order == "gnn_first"  # only then is this M-step its iteration's first step
        pseudo = run.pseudo_labels(run.teacher_logits(stage.key.em_iteration, lm) if is_first_step else lm.logits)
    targets = run.gnn_step_targets(stage.key, pseudo)
    run.gnn.start(targets, run.features(embeddings, views), stage.weights()).predict(logits)
    return logits


def _encode(run: Run, stage: FinishedStage, logits: np.ndarray) -> np.ndarray:
    """Recompute the text embeddings of an LM stage, float16 (N, H), and write its logits into ``logits``."""
    task = run.lm_of(stage).start(weights=stage.weights())
    embeddings = _scratch(run, f"{stage.key.model.replace(':', '-')}-embeddings", task.embedding_dim, run.encoded)
    task.predict(logits, embeddings, f"{title_of(stage.key.name)}, encoding", run.encoded)
    return embeddings


def _scratch(run: Run, name: str, columns: int, nodes: np.ndarray | None = None) -> np.ndarray:
    """Open an array of float16 zeros (N, columns) in the run's working folder; see `open_predictions`."""
    if processes.rank() == 0:
        run.journal.working.mkdir(parents=True, exist_ok=True)
    return open_predictions(run.journal.working, name, run.num_nodes, columns, nodes)
