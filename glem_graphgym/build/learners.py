"""Builds a configuration's learners, which train the language model, the GNN, or both."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from yacs.config import CfgNode

from glem_graphgym.build.features import feature_builder
from glem_graphgym.build.gnn import MmapGraph, build_gnn, gnn_optimizer, sees_hops
from glem_graphgym.build.language_model import (
    build_lm,
    encoder_config,
    gnn_hardware,
    hardware_for,
    infer_tokens,
    lm_hardware,
    micro_batch_tokens,
)
from glem_graphgym.build.sizes import budget_bytes
from glem_graphgym.config import feature_kinds
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.e_step import LMLearner, LMSettings
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.hop_step import Consistency, HopLearner
from glem_graphgym.em.joint_step import JointLearner, JointSettings
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GraphViews, LabelReuse
from glem_graphgym.em.on_gold import SelfDistillation, SelfTraining
from glem_graphgym.em.pseudo_labels import Gold
from glem_graphgym.em.sampled_step import Neighbourhoods, SampledLearner, StoredSampledLearner
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.correct_and_smooth import LAYERS, correct_and_smooth
from glem_graphgym.models.text_encoder import JointModel, load_text_encoder
from glem_graphgym.out_of_core.hop_storage import HopStorage
from glem_graphgym.out_of_core.layerwise import LayerwiseInference


def lm_learners(
    cfg: CfgNode, tokens: TokenStore, num_classes: int, validation: Validation
) -> tuple[LMLearner, LMLearner]:
    """The LM's learners on gold labels (``lm.*``) and in E-steps (``e_step.*`` where not null, else ``lm.*``)."""
    hardware = lm_hardware(cfg)

    def learner(keys: str, lm: dict[str, Any]) -> LMLearner:
        dropouts = {name: lm[name] for name in ("dropout", "attention_dropout")}
        config = encoder_config(cfg, hardware, keys=keys, **dropouts)
        lm |= {"smooth_pseudo": cfg.glem.smooth_pseudo, "infer_tokens": infer_tokens(cfg, hardware)}
        settings = LMSettings(**{field.name: lm[field.name] for field in fields(LMSettings) if field.name in lm})
        build = functools.partial(build_lm, config, num_classes, lm["head_dropout"])
        return LMLearner(tokens, build, settings, validation, hardware)

    e_step_settings = {name: value for name, value in cfg.e_step.items() if value is not None}
    return learner("lm.", {**cfg.lm}), learner("e_step.", {**cfg.lm, **e_step_settings})


def gnn_learner(
    cfg: CfgNode,
    graph: TextGraph,
    validation: Validation,
    unlabelled: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
    by_blocks: bool = False,
) -> GNNLearner:
    """The learner of the GNN that ``model.type``, ``gnn.*`` and ``optim.*`` describe.

    Args:
        unlabelled: int64, nodes that self-training and consistency may use; None = none.
        predicted: see `GNNLearner`.
        by_blocks: the result of `check_memory`.
    """
    settings = GNNSettings(
        epochs=cfg.optim.max_epoch,
        lr=cfg.optim.base_lr,
        eval_every=cfg.train.eval_period,
        patience=cfg.optim.patience,
        label_input=cfg.glem.label_input,
    )
    hardware = gnn_hardware(cfg)
    make_optimizer = gnn_optimizer(cfg)
    g, budget, build = cfg.gnn, budget_bytes(cfg), functools.partial(build_gnn, cfg)
    if not sees_hops(cfg):
        graphs, neighbourhoods, layerwise = sampled_graph(cfg, graph, hardware, by_blocks)
        common = (build, graphs, make_optimizer, settings, validation, hardware)
        if neighbourhoods is None:
            reuse = LabelReuse(g.label_reuse) if g.label_reuse and cfg.glem.label_input else None
            distillation = SelfDistillation(g.distillation, g.distillation_temperature) if g.distillation else None
            return GNNLearner(*common, predicted=predicted, label_reuse=reuse, further_rounds=distillation)
        sampling: dict[str, Any] = {
            "neighbourhoods": neighbourhoods,
            "batch_size": g.batch_size,
            "predicted": predicted,
        }
        if layerwise is None:
            return SampledLearner(*common, **sampling)
        return StoredSampledLearner(*common, layerwise=layerwise, **sampling)
    unlabelled = np.empty(0, dtype=np.int64) if unlabelled is None else unlabelled
    consistency = Consistency(g.scr_weight, unlabelled, threshold=g.scr_threshold) if g.scr_weight else None
    self_training = SelfTraining(g.rlu_rounds, unlabelled, g.rlu_threshold, g.rlu_weight)
    return HopLearner(
        build,
        stored_graph_views_of(cfg, graph) if budget else graph_views_of(cfg, graph),
        make_optimizer,
        settings,
        validation,
        hardware,
        hops=g.hops,
        label_hops=g.label_hops,
        batch_size=g.batch_size,
        predicted=predicted,
        storage=hop_storage(cfg, predicted) if budget else None,
        consistency=consistency,
        further_rounds=self_training if g.rlu_rounds > 1 else None,
    )


def sampled_graph(
    cfg: CfgNode, graph: TextGraph, hardware: Hardware, by_blocks: bool
) -> tuple[GraphViews, Neighbourhoods | None, LayerwiseInference | None]:
    """Views of the graph, the sampler if ``gnn.fan_out`` is set, and layer-wise inference if ``by_blocks``."""
    graphs = stored_graph_views_of(cfg, graph) if by_blocks else graph_views_of(cfg, graph)
    neighbourhoods = Neighbourhoods(graphs, cfg.gnn.fan_out) if cfg.gnn.fan_out else None
    layerwise = None
    if by_blocks:
        budget, working = budget_bytes(cfg), Path(cfg.run_dir) / "working"
        layerwise = LayerwiseInference(graph.rowptr, graph.col, budget=budget, working=working, hardware=hardware)
    return graphs, neighbourhoods, layerwise


def hop_storage(cfg: CfgNode, predicted: np.ndarray | None) -> HopStorage:
    """The storage of hop features that exceed the budget; for ``predicted`` see `GNNLearner`."""
    working, cache = Path(cfg.run_dir) / "working", Path(cfg.dataset.dir) / "hops"
    return HopStorage(budget_bytes(cfg), working, cache, predicted, gnn_hardware(cfg).dtype)


def joint_learner(
    cfg: CfgNode,
    graph: TextGraph,
    tokens: TokenStore,
    validation: Validation,
    predicted: np.ndarray | None = None,
    by_blocks: bool = False,
) -> JointLearner:
    """The learner of LM (``lm.*``) and GNN (``model.type``, ``gnn.*``, ``optim.*``) as one model.

    Args:
        predicted: see `GNNLearner`.
        by_blocks: the result of `check_memory`.
    """
    lm, _ = lm_learners(cfg, tokens, graph.num_classes, validation)
    settings = JointSettings(
        lm=lm.settings,
        gnn_lr=cfg.optim.base_lr,
        gnn_weight_decay=cfg.optim.weight_decay,
        micro_batch_tokens=micro_batch_tokens(cfg, lm.hardware),
        recompute=cfg.lm.gradient_checkpointing,
        label_input=cfg.glem.label_input,
    )
    # With lm.gradient_checkpointing whole micro-batches are recomputed (`recompute`), so layers need not be.
    config = encoder_config(cfg, lm.hardware, gradient_checkpointing=False)

    def build(dim_features: int, num_classes: int) -> JointModel:
        encoder = load_text_encoder(config)
        normalise = cfg.gnn.input_norm in ("standardise", "layer")
        return JointModel(encoder, build_gnn(cfg, encoder.dim + dim_features, num_classes), normalise)

    graphs, neighbourhoods, layerwise = sampled_graph(cfg, graph, lm.hardware, by_blocks)
    assert neighbourhoods is not None, "joint training samples neighbours"
    common = (tokens, build, graphs, neighbourhoods, settings, validation, lm.hardware)
    return JointLearner(*common, predicted=predicted, layerwise=layerwise)


def further_features(
    cfg: CfgNode, graph: TextGraph, tokens: TokenStore, encoded: np.ndarray | None
) -> Callable[[np.ndarray | None], Any]:
    """A function that makes the features (N, F) besides the jointly trained text embeddings; F may be 0."""
    if feature_kinds(cfg.glem.node_features) == ["text"]:
        return lambda embeddings: np.empty((graph.num_nodes, 0), dtype=np.float32)
    return feature_builder(cfg, graph, tokens, encoded)


def smoother(cfg: CfgNode, graphs: GraphViews, gold: Gold) -> Callable[[np.ndarray], np.ndarray] | None:
    """Correct & Smooth by ``glem.cs_*``; None unless ``glem.correct_and_smooth``.

    In the inductive settings, nodes that training sees are smoothed on the training view of the graph, so that no edge
    of a test node changes their predictions; test nodes on the prediction view.
    """
    g = cfg.glem
    if not g.correct_and_smooth:
        return None
    device = hardware_for(cfg, "32").device
    propagations = (LAYERS, g.cs_correct_alpha), (LAYERS, g.cs_smooth_alpha)

    def smooth(logits: np.ndarray) -> np.ndarray:
        predict_adjacency = graphs.predict.to(device)
        smoothed = correct_and_smooth(logits, gold.nodes, gold.labels, predict_adjacency, *propagations)
        if (observed_nodes := graphs.observed_nodes) is not None:
            train_adjacency, gold_rows = graphs.train.to(device), np.searchsorted(observed_nodes, gold.nodes)
            smoothed[observed_nodes] = correct_and_smooth(
                logits[observed_nodes], gold_rows, gold.labels, train_adjacency, *propagations
            )
        return smoothed

    return smooth


def graph_views_of(cfg: CfgNode, graph: TextGraph) -> GraphViews:
    """The training and prediction views of the graph under ``glem.setting`` (GLEM paper, inductive settings)."""
    views = stored_graph_views_of(cfg, graph)
    return GraphViews(views.train.adjacency, views.predict.adjacency, views.observed_nodes)


def stored_graph_views_of(cfg: CfgNode, graph: TextGraph) -> GraphViews:
    """The views of `graph_views_of` as masks over the graph's own arrays, which may be memory-mapped."""
    whole = MmapGraph(graph.rowptr, graph.col, directed=graph.directed)
    if cfg.glem.setting == "transductive":
        return GraphViews(whole, whole)
    keep = np.ones(graph.num_nodes, dtype=bool)
    keep[graph.split["test"]] = False
    predict = whole if cfg.glem.setting == "inductive" else replace(whole, keep=keep)
    return GraphViews(replace(whole, keep=keep, renumbered=True), predict, np.flatnonzero(keep))
