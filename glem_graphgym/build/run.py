"""Builds a run from a configuration: data, models and journal, with all possible checks before any training."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.build.choices import choose, with_choices
from glem_graphgym.build.features import feature_builder, seconds_before
from glem_graphgym.build.first_predictions import first_predictions
from glem_graphgym.build.gnn import sees_hops
from glem_graphgym.build.gnn_check import check_gnn
from glem_graphgym.build.graph import Metric, load_text_graph_of, metrics_of, open_tokens, readout_for
from glem_graphgym.build.language_model import check_lm, encoder_config, hardware_for
from glem_graphgym.build.learners import further_features, gnn_learner, joint_learner, lm_learners, smoother
from glem_graphgym.build.memory_check import stage_remedy
from glem_graphgym.build.run_folder import (
    check_run_folder,
    identity_of,
    seconds_of_other_seeds,
    shared_lm_gold,
    take_run_folder,
)
from glem_graphgym.build.tracking import tracking
from glem_graphgym.config import ConfigError, check_config, feature_kinds, metric_of, unread_keys, view_of
from glem_graphgym.data.csr import nodes_within
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.e_step import LMLearner
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.journal import Journal, Scores
from glem_graphgym.em.plan import Plan, Track, untracked
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels
from glem_graphgym.em.recorder import record
from glem_graphgym.em.run import EMSettings, Run
from glem_graphgym.files import read_json, write_json
from glem_graphgym.modes import MODES, UNTIL_PLATEAU


def train_run(cfg: CfgNode, overwrite: int = 0) -> TextGraph:
    """Do the unfinished stages of the run that ``cfg`` describes, in ``cfg.run_dir``.

    Args:
        overwrite: number of seeds, from this one on, to do anew; 0 = none. Their old content is deleted after all
            checks.

    Returns:
        The graph, for reports on the run.
    """
    with tracking(cfg) as track:
        graph, run = prepare(cfg, overwrite, track)
        MODES[cfg.train.mode].program(run)
    if cfg.train.mode == "glem" and processes.rank() == 0:
        # The folder may hold more EM iterations than asked for; they are kept, but left out of the tables.
        path, stages = Path(cfg.run_dir) / "run.json", [stage.key.folder for stage in run.journal.finished]
        write_json(path, {**read_json(path), "em_iterations": cfg.glem.em_iterations, "stages": stages})
    return graph


def prepare(cfg: CfgNode, overwrite: int = 0, track: Track = untracked) -> tuple[TextGraph, Run]:
    """The graph and the run of ``train.mode``, after all checks; claims the run's folder.

    Args:
        overwrite: see `train_run`.
        track: receives the numbers that stages report, after the folder is claimed.
    """
    check_config(cfg)  # a user's own main loads it with GraphGym's load_cfg, unchecked
    if unread := unread_keys(cfg):
        logging.warning(f"train.mode {cfg.train.mode} does not read {', '.join(unread)}: set without effect")
    graph = load_text_graph_of(cfg)
    identity = identity_of(cfg, graph)
    check_run_folder(Path(cfg.run_dir), identity, overwrite)
    identity["choices"] = choose(cfg, anew=overwrite > 0)
    run = build_run(with_choices(cfg, identity["choices"]), graph, track=track)
    if reader := run.lm_gold or run.joint:
        identity["language_model"] = dict(run.language_model)
        identity["unknown_tokens"] = round(reader.tokens.unknown_share(), 4)
    if processes.rank() == 0:
        take_run_folder(Path(cfg.run_dir), identity, overwrite)
    return graph, run


def build_run(
    cfg: CfgNode,
    graph: TextGraph,
    tokens: TokenStore | None = None,
    features: Callable[..., Any] | None = None,
    track: Track = untracked,
) -> Run:
    """The run of ``train.mode`` on a graph.

    Args:
        tokens, features: stand-ins for the texts' tokens and for the function that makes the GNN's features, if the run
            is only recorded, not trained; None = the real ones.
        track: see `Journal`.

    Raises:
        ValueError: settings, files, models or memory rule the run out; names the keys.
    """
    metric, metrics = metric_of(cfg), metrics_of(graph)
    if metric not in metrics:
        raise ConfigError(
            f"metric_best is '{metric}', which needs two classes, and both of them in train, valid and test; "
            f"{graph.name} has {graph.num_classes} classes; expected one of: {', '.join(metrics)}"
        )
    mode, nodes = MODES[cfg.train.mode], nodes_of(cfg, graph)
    first_logits = first_predictions(cfg.glem.first_predictions, graph)
    by_blocks = (mode.gnn or mode.joint) and check_gnn(cfg, graph, len(nodes.candidates))
    if mode.lm or mode.joint or "static" in feature_kinds(cfg.glem.node_features):
        encoder_config(cfg, hardware_for(cfg, cfg.lm.precision))  # raises before texts are tokenized
        tokens = tokens or open_tokens(cfg, graph)
        readout_for(cfg).log(cfg.lm.model)
    train, valid = graph.split["train"], graph.split["valid"]
    gold = Gold(train, graph.label[train], graph.num_classes)
    gold = gold.balanced() if cfg.glem.class_weights == "balanced" else gold
    valid_labels = graph.label[valid]
    validation = Validation(valid, lambda logits: metrics[metric](valid_labels, logits))
    learners = _learners(cfg, graph, nodes, gold, validation, tokens, features, by_blocks)
    journal = functools.partial(
        Journal,
        Path(cfg.run_dir),
        cfg.seed,
        lambda logits: scores_of(graph, logits, metrics),
        metric=metric,
        save_memory=functools.partial(stage_remedy, cfg),
        checkpoint_minutes=cfg.glem.checkpoint_minutes,
        accelerator=hardware_for(cfg, "32").accelerator,
        track=track,
    )
    run = Run(
        num_nodes=graph.num_nodes,
        gold=gold,
        unlabelled=nodes.unlabelled,
        candidates=nodes.candidates,
        settings=em_settings(cfg),
        journal=journal(),
        pseudo_accuracy=lambda pseudo: pseudo_accuracy(graph, pseudo),
        first_predictions=first_logits,
        features_seconds=seconds_before(cfg, tokens, nodes.encoded) if mode.gnn or mode.joint else 0.0,
        shared_lm_gold=shared_lm_gold(cfg, graph, nodes.encoded) if cfg.glem.share_lm_gold else None,
        encoded=nodes.encoded,
        **learners,
    )
    return replace(run, journal=journal(plan=plan_of(cfg, run)))


def _learners(
    cfg: CfgNode,
    graph: TextGraph,
    nodes: Nodes,
    gold: Gold,
    validation: Validation,
    tokens: TokenStore | None,
    features: Callable[..., Any] | None,
    by_blocks: bool,
) -> dict[str, Any]:
    """The learners of ``train.mode`` and what comes with them, as arguments of `Run`; an LM is tried on a few texts.

    Args:
        tokens, features: see `build_run`; ``tokens`` are given if the mode trains an LM.
        by_blocks: the result of `check_gnn`.
    """
    mode, learners = MODES[cfg.train.mode], dict[str, Any](features=lambda *embeddings: None)
    if mode.lm or mode.joint:
        assert tokens is not None
        lm_gold, lm_em = lm_learners(cfg, tokens, graph.num_classes, validation)
        learners["language_model"] = check_lm(cfg, lm_gold)
        if mode.lm:
            learners |= {"lm_gold": lm_gold, "lm_em": lm_em}
            if cfg.e_step.dropout is not None or cfg.e_step.attention_dropout is not None:
                check_lm(cfg, lm_em)
    if mode.lm and mode.gnn:
        views = learners["views"] = dict[str, LMLearner]()
        for name in filter(None, map(view_of, feature_kinds(cfg.glem.node_features))):
            view_graph = graph.view(name)  # a run that is only recorded uses the stand-in tokens for views too
            view_tokens = open_tokens(cfg, view_graph) if features is None else tokens
            assert view_tokens is not None
            views[name] = lm_learners(cfg, view_tokens, graph.num_classes, validation)[0]
    if mode.gnn:
        learners["features"] = features or feature_builder(cfg, graph, tokens, nodes.encoded)
        gnn = gnn_learner(cfg, graph, validation, nodes.candidates, nodes.predicted, by_blocks)
        learners |= {"gnn": gnn, "correct_and_smooth": smoother(cfg, gnn.graphs, gold)}
    if mode.joint:
        assert tokens is not None
        learners["features"] = features or further_features(cfg, graph, tokens, nodes.encoded)
        joint = joint_learner(cfg, graph, tokens, validation, nodes.predicted, by_blocks)
        learners |= {"joint": joint, "correct_and_smooth": smoother(cfg, joint.graphs, gold)}
    return learners


def plan_of(cfg: CfgNode, run: Run) -> Plan:
    """The stages of the run, with what is known of their duration."""
    stages = record(run, MODES[cfg.train.mode].program).planned(run.num_nodes)
    encoded = slice(None) if run.encoded is None else run.encoded
    reader = run.lm_gold or run.joint
    prior = {}
    if run.features_seconds and reader is not None:
        prior = {"LM": run.features_seconds / int(reader.tokens.lengths[encoded].sum())}
    return Plan(stages, cfg.glem.em_iterations == UNTIL_PLATEAU, seconds_of_other_seeds(Path(cfg.run_dir)), prior)


@dataclass(frozen=True)
class Nodes:
    """Nodes of a run by their use; int64, increasing."""

    unlabelled: np.ndarray  # see `Run`
    candidates: np.ndarray  # see `Run`
    predicted: np.ndarray | None  # trained on, scored or pseudo-labelled; None = all
    encoded: np.ndarray | None  # within the GNN's reach of ``predicted``, so that their texts matter; None = all


def nodes_of(cfg: CfgNode, graph: TextGraph) -> Nodes:
    unlabelled, candidates = unlabelled_nodes(cfg, graph)
    predicted = predicted_nodes(cfg, graph, candidates)
    if predicted is None:
        return Nodes(unlabelled, candidates, None, None)
    unlabelled = np.intersect1d(unlabelled, predicted, assume_unique=True)
    candidates = np.intersect1d(candidates, predicted, assume_unique=True)
    mode, reach = MODES[cfg.train.mode], 0
    if mode.gnn or mode.joint:
        reach = cfg.gnn.hops if sees_hops(cfg) else cfg.gnn.layers_mp
    encoded = nodes_within(graph.rowptr, graph.col, predicted, reach)
    logging.info(f"glem.encode_nodes needed: {len(encoded):,} of {graph.num_nodes:,} texts are encoded")
    return Nodes(unlabelled, candidates, predicted, encoded)


def unlabelled_nodes(cfg: CfgNode, graph: TextGraph) -> tuple[np.ndarray, np.ndarray]:
    """U, all nodes without a gold label that training may see, and the subset that may get pseudo-labels."""
    unlabelled = np.setdiff1d(np.arange(graph.num_nodes), graph.split["train"])
    candidates = unlabelled
    if cfg.glem.pseudo_nodes == "valid_test":
        candidates = np.union1d(graph.split["valid"], graph.split["test"])
    if cfg.glem.setting != "transductive":
        unlabelled = np.setdiff1d(unlabelled, graph.split["test"])
        candidates = np.setdiff1d(candidates, graph.split["test"])
    return unlabelled, candidates


def predicted_nodes(cfg: CfgNode, graph: TextGraph, candidates: np.ndarray) -> np.ndarray | None:
    """int64, increasing: the nodes that are trained on, scored or pseudo-labelled; None if all nodes are predicted."""
    if cfg.glem.encode_nodes == "all":
        return None
    needed = np.unique(np.concatenate(list(graph.split.values())))
    includes_candidates = cfg.train.mode == "glem" or cfg.gnn.rlu_rounds > 1 or cfg.gnn.scr_weight > 0
    return np.union1d(needed, candidates) if includes_candidates else needed


def scores_of(graph: TextGraph, logits: np.ndarray, metrics: Mapping[str, Metric]) -> Scores:
    """Split -> metrics and cross-entropy (``loss``, in nats) of logits (N, C)."""
    scores: Scores = {}
    for split_name, nodes in graph.split.items():
        split_logits = torch.from_numpy(np.asarray(logits[nodes], dtype=np.float32))
        labels = graph.label[nodes]
        scores[split_name] = {
            **{name: float(metric(labels, split_logits.numpy())) for name, metric in metrics.items()},
            "loss": float(F.cross_entropy(split_logits, torch.from_numpy(labels))),
        }
    return scores


def pseudo_accuracy(graph: TextGraph, pseudo: PseudoLabels) -> float:
    """Accuracy (0-1) of the pseudo-labels of validation nodes; 0 if no validation node has one."""
    nodes = np.intersect1d(graph.split["valid"], pseudo.nodes)
    if not len(nodes):
        return 0.0
    return float((pseudo.targets(nodes).argmax(-1).numpy() == graph.label[nodes]).mean())


def em_settings(cfg: CfgNode) -> EMSettings:
    g = cfg.glem
    same_named = ("order", "alpha", "beta", "temperature", "confidence", "lm_init", "ensemble")
    return EMSettings(
        **{name: g[name] for name in same_named},
        iterations=g.em_iterations,
        max_iterations=g.em_max_iterations,
        hard=g.targets == "hard",
        lm_ratio=g.lm_pseudo_ratio,
        gnn_ratio=g.gnn_pseudo_ratio,
        lm_redraw=g.lm_redraw == "epoch",
        lm_init_first=g.lm_init if g.lm_init_first == "same" else g.lm_init_first,
        keep_all_weights=g.keep_weights == "all",
    )
