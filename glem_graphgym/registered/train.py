"""The train modes: ``glem``, its parts alone as baselines, and prediction from a finished run.

A mode reads the configuration, does its stages under ``cfg.run_dir`` and returns the graph. ``run/main.py`` calls
``train_dict[cfg.train.mode]`` and makes the tables out of what the stages left.
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch_geometric.graphgym.config import cfg
from torch_geometric.graphgym.register import register_train
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.config import ConfigError, check_config, feature_kinds
from glem_graphgym.data.reach import nodes_within
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em import loop
from glem_graphgym.em.e_step import LMLearner, LMSettings, open_predictions
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.hop_step import Consistency, HopLearner
from glem_graphgym.em.joint_step import JointLearner, JointSettings
from glem_graphgym.em.journal import FinishedStage, Journal, Scores
from glem_graphgym.em.loop import EMSettings, Run
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GraphViews, LabelReuse
from glem_graphgym.em.on_gold import FitsAgain, SelfDistillation, SelfTraining
from glem_graphgym.em.plan import FIRST_STAGES, Plan, planned_stages, title_of
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, num_confident, num_drawn
from glem_graphgym.em.sampled_step import Neighbourhoods, SampledLearner, StoredSampledLearner, num_batches
from glem_graphgym.files import atomic_write, read_json, write_json
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.correct_and_smooth import CorrectAndSmoothSettings, correct_and_smooth
from glem_graphgym.models.joint import JointModel
from glem_graphgym.models.pooling import readout_of
from glem_graphgym.models.text_encoder import load_text_encoder
from glem_graphgym.out_of_core.hop_storage import HopStorage
from glem_graphgym.out_of_core.layerwise import LayerwiseInference
from glem_graphgym.registered.features import feature_builder, load_matrix, seconds_before
from glem_graphgym.registered.language_model import (
    build_lm,
    check_lm,
    encoder_config,
    hardware_for,
    infer_tokens,
    part_tokens,
)
from glem_graphgym.registered.loader import load_text_graph_of, open_tokens
from glem_graphgym.registered.memory_check import check_memory, stage_remedy
from glem_graphgym.registered.metrics import Accuracy, accuracy_of
from glem_graphgym.registered.network_check import check_network
from glem_graphgym.registered.networks import MmapGraph, Structure, build_gnn, gcn_operator, sees_hops
from glem_graphgym.registered.optim import gnn_optimizer
from glem_graphgym.registered.run_folder import (
    METRIC,
    check_run_folder,
    identity_of,
    names_of_stages,
    require_finished,
    seconds_of_other_seeds,
    shared_lm_gold,
    take_run_folder,
    trained_mode,
)
from glem_graphgym.registered.sizes import budget_bytes, feature_width, predicts_layerwise


@register_train("glem")
def train_glem(overwrite: int = 0) -> TextGraph:
    """GLEM: variational EM between LM and GNN."""
    require_mode(cfg, "glem")
    graph, run = prepare(cfg, with_lm=True, with_gnn=True, overwrite=overwrite)
    loop.run_em(run)
    if processes.rank() > 0:
        return graph
    # The folder may hold iterations beyond those asked for; they are kept, and left out of the tables.
    noted = Path(cfg.run_dir) / "run.json"
    asked = {"em_iterations": cfg.glem.em_iterations, "stages": [stage.key.folder for stage in run.journal.finished]}
    write_json(noted, {**read_json(noted), **asked})
    return graph


@register_train("glem_lm")
def train_lm(overwrite: int = 0) -> TextGraph:
    """The LM alone, fine-tuned on gold labels."""
    require_mode(cfg, "glem_lm")
    graph, run = prepare(cfg, with_lm=True, with_gnn=False, overwrite=overwrite)
    loop.run_lm(run)
    return graph


@register_train("glem_gnn")
def train_gnn(overwrite: int = 0) -> TextGraph:
    """The GNN alone, on static embeddings, raw features or a feature file."""
    require_mode(cfg, "glem_gnn")
    graph, run = prepare(cfg, with_lm=False, with_gnn=True, overwrite=overwrite)
    loop.run_gnn(run)
    return graph


@register_train("glem_cascade")
def train_cascade(overwrite: int = 0) -> TextGraph:
    """LM, then GNN on its embeddings: GLEM with zero EM iterations."""
    require_mode(cfg, "glem_cascade")
    graph, run = prepare(cfg, with_lm=True, with_gnn=True, overwrite=overwrite)
    loop.run_cascade(run)
    return graph


@register_train("glem_joint")
def train_joint(overwrite: int = 0) -> TextGraph:
    """LM and GNN co-trained end to end, on sampled neighbourhoods: the costly baseline."""
    require_mode(cfg, "glem_joint")
    graph, run = prepare(cfg, with_lm=False, with_gnn=False, with_joint=True, overwrite=overwrite)
    loop.run_joint(run)
    return graph


# ---- from the configuration to a run ------------------------------------------------------------------------------


def require_mode(cfg: CfgNode, mode: str) -> None:
    """
    Raises:
        ConfigError: ``train.mode``, which decides much of a run, is another than the mode that was called.
    """
    if cfg.train.mode != mode:
        raise ConfigError(
            f"train.mode is '{cfg.train.mode}', but train_dict['{mode}'] was called; set train.mode to {mode}"
        )


def prepare(
    cfg: CfgNode, *, with_lm: bool, with_gnn: bool, with_joint: bool = False, overwrite: int = 0
) -> tuple[TextGraph, Run]:
    """Everything a mode needs, with all that can be checked checked before the first stage.

    Args:
        overwrite: how many seeds, from this one on, are done anew; 0 = none. What an earlier run left in the folder is
            deleted after all checks.
    """
    check_config(cfg)  # a main of one's own has loaded it with GraphGym's load_cfg
    graph = load_text_graph_of(cfg)
    identity = identity_of(cfg, graph)
    check_run_folder(Path(cfg.run_dir), identity, overwrite)
    nodes = nodes_of(cfg, graph)
    external = first_predictions(cfg, graph)
    if with_gnn or with_joint:
        check_gnn(cfg, graph, len(nodes.candidates), with_joint)
    needs_tokens = with_lm or with_joint or "static" in feature_kinds(cfg.glem.node_features)
    tokens = open_tokens(cfg, graph) if needs_tokens else None
    if tokens is not None:
        identity["unknown_tokens"] = round(tokens.unknown_share(), 4)
        readout_of(cfg.lm.model, cfg.lm.pooling).log(cfg.lm.model)
    accuracy = accuracy_of(graph.name)
    train = graph.split["train"]
    gold = Gold(train, graph.label[train], graph.num_classes)
    valid = graph.split["valid"]
    valid_labels = graph.label[valid]
    validation = Validation(valid, lambda logits: accuracy(valid_labels, logits.argmax(-1)))
    run = Run(
        num_nodes=graph.num_nodes,
        gold=gold,
        unlabelled=nodes.unlabelled,
        candidates=nodes.candidates,
        settings=em_settings(cfg),
        journal=Journal(
            Path(cfg.run_dir),
            cfg.seed,
            lambda logits: scores_of(graph, logits, accuracy),
            metric=METRIC,
            save_memory=functools.partial(stage_remedy, cfg),
            checkpoint_minutes=cfg.glem.checkpoint_minutes,
        ),
        features=lambda embeddings: np.empty((0, 0)),
        pseudo_accuracy=lambda pseudo: pseudo_accuracy(graph, pseudo),
        encoded=nodes.encoded,
    )
    run.first_predictions = external
    if cfg.glem.share_lm_gold:
        run.shared_lm_gold = shared_lm_gold(cfg, graph, nodes.encoded)
    if with_lm:
        assert tokens is not None
        run.lm_gold, run.lm_em = lm_learners(cfg, tokens, graph.num_classes, validation)
        check_lms(cfg, run.lm_gold, run.lm_em)
    if with_gnn:
        run.features = feature_builder(cfg, graph, tokens, nodes.encoded)
        run.features_seconds = seconds_before(cfg, tokens, nodes.encoded)
        run.gnn = gnn_learner(cfg, graph, validation, nodes.candidates, nodes.predicted)
        run.correct_and_smooth = smoother(cfg, run.gnn.graphs, gold)
    if with_joint:
        assert tokens is not None
        run.features = further_features(cfg, graph, tokens, nodes.encoded)
        run.features_seconds = seconds_before(cfg, tokens, nodes.encoded)
        run.joint = joint_learner(cfg, graph, tokens, validation, nodes.predicted)
        run.correct_and_smooth = smoother(cfg, run.joint.graphs, gold)
    if cfg.train.mode in FIRST_STAGES:
        run.journal.plan = plan_of(cfg, run)
    if cfg.train.mode != "glem_predict" and processes.rank() == 0:
        take_run_folder(Path(cfg.run_dir), identity, overwrite > 0)
    return graph, run


def plan_of(cfg: CfgNode, run: Run) -> Plan:
    """The stages that the run is going to do, and what is known of the time that they take."""
    stages = planned_stages(run, names_of_stages(cfg))
    encoded = run.num_nodes if run.encoded is None else len(run.encoded)
    prior = {"LM": run.features_seconds / encoded} if run.features_seconds else {}
    return Plan(stages, cfg.glem.em_iterations == loop.UNTIL_PLATEAU, seconds_of_other_seeds(Path(cfg.run_dir)), prior)


def first_predictions(cfg: CfgNode, graph: TextGraph) -> np.ndarray | None:
    """Logits (N, C) of ``glem.first_predictions``; None where it names no file."""
    if not cfg.glem.first_predictions:
        return None
    columns = graph.num_classes
    return load_matrix(cfg.glem.first_predictions, graph.num_nodes, "glem.first_predictions", columns=columns)


@dataclass(frozen=True)
class Nodes:
    """Which nodes a run is about; int64, increasing.

    Attributes:
        unlabelled, candidates: as of a `Run`.
        predicted: trained on, scored or pseudo-labelled; None where all are predicted.
        encoded: whose texts these predictions depend on, as far as the GNN sees; None = all.
    """

    unlabelled: np.ndarray
    candidates: np.ndarray
    predicted: np.ndarray | None
    encoded: np.ndarray | None


def nodes_of(cfg: CfgNode, graph: TextGraph) -> Nodes:
    unlabelled, candidates = unlabelled_nodes(cfg, graph)
    predicted = predicted_nodes(cfg, graph, candidates)
    if predicted is not None:
        unlabelled = np.intersect1d(unlabelled, predicted, assume_unique=True)
        candidates = np.intersect1d(candidates, predicted, assume_unique=True)
    return Nodes(unlabelled, candidates, predicted, encoded_nodes(cfg, graph, predicted))


def unlabelled_nodes(cfg: CfgNode, graph: TextGraph) -> tuple[np.ndarray, np.ndarray]:
    """U, every node without a gold label that training may see, and its part that may get pseudo-labels."""
    unlabelled = np.setdiff1d(np.arange(graph.num_nodes), graph.split["train"])
    candidates = unlabelled
    if cfg.glem.pseudo_nodes == "valid_test":
        candidates = np.union1d(graph.split["valid"], graph.split["test"])
    if cfg.glem.setting != "transductive":
        unlabelled = np.setdiff1d(unlabelled, graph.split["test"])
        candidates = np.setdiff1d(candidates, graph.split["test"])
    return unlabelled, candidates


def predicted_nodes(cfg: CfgNode, graph: TextGraph, candidates: np.ndarray) -> np.ndarray | None:
    """int64, increasing: the nodes that are trained on, scored or pseudo-labelled; None where all are predicted."""
    if cfg.glem.encode_nodes == "all":
        return None
    mode = trained_mode(cfg)
    needed = np.unique(np.concatenate(list(graph.split.values())))
    pseudo = mode == "glem" or cfg.gnn.rlu_rounds > 1 or cfg.gnn.scr_weight > 0
    return np.union1d(needed, candidates) if pseudo else needed


def encoded_nodes(cfg: CfgNode, graph: TextGraph, predicted: np.ndarray | None) -> np.ndarray | None:
    """int64, increasing: the nodes whose texts predictions depend on, as far as the GNN sees; None = all."""
    if predicted is None:
        return None
    mode = trained_mode(cfg)
    reach = 0 if mode == "glem_lm" else cfg.gnn.hops if sees_hops() else cfg.gnn.layers_mp
    encoded = nodes_within(graph.rowptr, graph.col, predicted, reach)
    logging.info(f"glem.encode_nodes needed: {len(encoded):,} of {graph.num_nodes:,} texts are encoded")
    return encoded


def scores_of(graph: TextGraph, logits: np.ndarray, accuracy: Accuracy) -> Scores:
    """Accuracy and cross-entropy (nats) of logits (N, C) on every split."""
    scores: Scores = {}
    for part, nodes in graph.split.items():
        part_logits = torch.from_numpy(np.asarray(logits[nodes], dtype=np.float32))
        labels = graph.label[nodes]
        scores[part] = {
            METRIC: accuracy(labels, part_logits.argmax(-1).numpy()),
            "loss": float(F.cross_entropy(part_logits, torch.from_numpy(labels))),
        }
    return scores


def pseudo_accuracy(graph: TextGraph, pseudo: PseudoLabels) -> float:
    """Share 0-1 of right pseudo-labels among the validation nodes that are candidates; 0 when none is."""
    nodes = np.intersect1d(graph.split["valid"], pseudo.nodes)
    if not len(nodes):
        return 0.0
    return float((pseudo.targets(nodes).argmax(-1).numpy() == graph.label[nodes]).mean())


def em_settings(cfg: CfgNode) -> EMSettings:
    g = cfg.glem
    return EMSettings(
        order=g.order,
        iterations=g.em_iterations,
        max_iterations=g.em_max_iterations,
        alpha=g.alpha,
        beta=g.beta,
        temperature=g.temperature,
        hard=g.targets == "hard",
        lm_ratio=g.lm_pseudo_ratio,
        gnn_ratio=g.gnn_pseudo_ratio,
        lm_redraw=g.lm_redraw == "epoch",
        confidence=g.confidence,
        lm_init=g.lm_init,
        lm_init_first=g.lm_init if g.lm_init_first == "same" else g.lm_init_first,
        ensemble=g.ensemble,
        keep_all_weights=g.keep_weights == "all",
    )


def lm_learners(
    cfg: CfgNode, tokens: TokenStore, num_classes: int, validation: Validation
) -> tuple[LMLearner, LMLearner]:
    """The LM as it is trained on gold (``lm.*``) and in E-steps (``e_step.*`` where not null, else ``lm.*``)."""
    hardware = hardware_for(cfg, cfg.lm.precision)

    def learner(e_step: bool) -> LMLearner:
        def value(name: str) -> float:
            own = cfg.e_step[name] if e_step else None
            return cfg.lm[name] if own is None else own

        config = encoder_config(cfg, hardware, value("dropout"), value("attention_dropout"))
        config = replace(config, keys="e_step." if e_step else "lm.")
        head_dropout = value("head_dropout")
        settings = LMSettings(
            epochs=int(value("epochs")),
            batch_size=int(value("batch_size")),
            accumulate=cfg.lm.grad_accumulation,
            lr=value("lr"),
            weight_decay=cfg.lm.weight_decay,
            warmup_epochs=value("warmup_epochs"),
            decay=cfg.lm.decay,
            label_smoothing=value("label_smoothing"),
            smooth_pseudo=cfg.glem.smooth_pseudo,
            evals_per_epoch=cfg.lm.evals_per_epoch,
            infer_tokens=infer_tokens(cfg, hardware),
        )
        return LMLearner(tokens, lambda: build_lm(config, num_classes, head_dropout), settings, validation, hardware)

    return learner(False), learner(True)


def gnn_learner(
    cfg: CfgNode,
    graph: TextGraph,
    validation: Validation,
    unlabelled: np.ndarray | None = None,
    predicted: np.ndarray | None = None,
) -> GNNLearner | FitsAgain:
    """The GNN that ``model.type``, ``gnn.*`` and ``optim.*`` describe.

    Args:
        unlabelled: int64, nodes that self-training and consistency may use.
        predicted: as of a `GNNLearner`.
    """
    settings = GNNSettings(
        epochs=cfg.optim.max_epoch,
        lr=cfg.optim.base_lr,
        eval_every=cfg.train.eval_period,
        patience=cfg.optim.patience,
        label_input=cfg.glem.label_input,
    )
    hardware = hardware_for(cfg, cfg.gnn.precision)
    make_optimizer = gnn_optimizer(cfg)
    g, budget = cfg.gnn, budget_bytes(cfg)
    if not sees_hops():
        graphs, hoods, layerwise = sampled_graph(cfg, graph, hardware)
        common = (build_gnn, graphs, make_optimizer, settings, validation, hardware)
        if hoods is None:
            reuse = LabelReuse(g.label_reuse) if g.label_reuse and cfg.glem.label_input else None
            whole = GNNLearner(*common, predicted=predicted, label_reuse=reuse)
            return SelfDistillation(whole, g.distillation, g.distillation_temperature) if g.distillation else whole
        sampled: dict[str, Any] = {"neighbourhoods": hoods, "batch_size": g.batch_size, "predicted": predicted}
        if layerwise is None:
            return SampledLearner(*common, **sampled)
        return StoredSampledLearner(*common, layerwise=layerwise, **sampled)
    unlabelled = np.empty(0, dtype=np.int64) if unlabelled is None else unlabelled
    consistency = Consistency(g.scr_weight, unlabelled, threshold=g.scr_threshold) if g.scr_weight else None
    learner = HopLearner(
        build_gnn,
        stored_graph_views_of(cfg, graph) if budget else graph_views_of(cfg, graph),
        make_optimizer,
        settings,
        validation,
        hardware,
        operator=gcn_operator,
        hops=g.hops,
        label_hops=g.label_hops,
        batch_size=g.batch_size,
        predicted=predicted,
        storage=hop_storage(cfg, predicted) if budget else None,
        consistency=consistency,
    )
    if g.rlu_rounds == 1:
        return learner
    return SelfTraining(learner, g.rlu_rounds, unlabelled, g.rlu_threshold, g.rlu_weight)


def sampled_graph(
    cfg: CfgNode, graph: TextGraph, hardware: Hardware
) -> tuple[GraphViews, Neighbourhoods | None, LayerwiseInference | None]:
    """What a GNN sees of the graph, what samples neighbours from it where ``gnn.fan_out`` asks for them, and what
    predicts where the whole graph exceeds ``glem.memory_budget_gb``."""
    fan_out = cfg.gnn.fan_out
    if not predicts_layerwise(cfg, graph):
        graphs = graph_views_of(cfg, graph)
        hoods = Neighbourhoods(graphs, Structure.csr, Structure.of_block, fan_out) if fan_out else None
        return graphs, hoods, None
    graphs = stored_graph_views_of(cfg, graph)
    layerwise = LayerwiseInference(
        graph.rowptr,
        graph.col,
        Structure.of_block,
        budget=budget_bytes(cfg),
        working=Path(cfg.run_dir) / "working",
        hardware=hardware,
    )
    return graphs, Neighbourhoods(graphs, MmapGraph.csr, Structure.of_block, fan_out), layerwise


def hop_storage(cfg: CfgNode, predicted: np.ndarray | None) -> HopStorage:
    """Where hop features lie that exceed the budget; ``predicted`` as of a `GNNLearner`."""
    working, cache = Path(cfg.run_dir) / "working", Path(cfg.dataset.dir) / "hops"
    return HopStorage(budget_bytes(cfg), working, cache, predicted, hardware_for(cfg, cfg.gnn.precision).dtype)


def check_lms(cfg: CfgNode, gold: LMLearner, em: LMLearner) -> None:
    """`check_lm` for the LM as it is trained on gold and, where that differs, as it is trained in E-steps."""
    check_lm(cfg, gold)
    if cfg.e_step.dropout is not None or cfg.e_step.attention_dropout is not None:
        check_lm(cfg, em)


def check_gnn(cfg: CfgNode, graph: TextGraph, candidates: int, joint: bool) -> None:
    """Find before long work whatever stops the GNN: contradicting settings, a network that fails, too little memory.

    A run and its dry run both ask here.

    Args:
        candidates: how many nodes may get pseudo-labels.
        joint: whether it is trained together with the LM.

    Raises:
        ValueError: names the keys, or ``model.type``.
    """
    if sees_hops() and joint:
        raise ConfigError(
            f"model.type {cfg.model.type} propagates features once, before it is trained, but train.mode glem_joint "
            "trains the text encoder that makes them; expected a full-batch network such as glem_sage"
        )
    if sees_hops() and cfg.gnn.fan_out:
        raise ConfigError(
            f"gnn.fan_out is {cfg.gnn.fan_out}, but model.type {cfg.model.type} trains on hop features, which need no "
            "sampling; set it to []"
        )
    if sees_hops() or cfg.gnn.fan_out:
        _refuse_full_batch_settings(cfg)
    elif cfg.glem.encode_nodes == "needed" and cfg.glem.setting != "transductive":
        raise ConfigError(
            f"glem.setting is '{cfg.glem.setting}', but with glem.encode_nodes 'needed' the edges of test nodes decide "
            f"which texts model.type {cfg.model.type} is trained on; set glem.encode_nodes to 'all', or sample "
            "neighbours (gnn.fan_out)"
        )
    if not sees_hops():
        _refuse_hop_settings(cfg)
    if joint:
        _check_parts(cfg, len(graph.split["train"]))
    smallest = _smallest_batch(cfg, graph, candidates, joint)
    check_network(cfg, graph.num_classes, max(1, feature_width(cfg, graph)), joint, smallest)
    check_memory(cfg, graph, candidates)


def _smallest_batch(cfg: CfgNode, graph: TextGraph, candidates: int, joint: bool) -> int:
    """Nodes in the smallest batch of any M-step, over which batch norm takes its means."""
    gold = len(graph.split["train"])
    if joint:
        return max(1, gold // num_batches(gold, cfg.lm.batch_size) // cfg.lm.grad_accumulation)
    if not sees_hops() and not cfg.gnn.fan_out:
        return graph.num_nodes
    if cfg.glem.label_input and not sees_hops():  # an epoch's targets are the gold nodes that are no input
        gold = max(1, int(gold * (1 - GNNSettings.label_input_rate)))
    trained = [gold]
    if cfg.train.mode == "glem":
        drawn = num_drawn(num_confident(candidates, cfg.glem.confidence), cfg.glem.gnn_pseudo_ratio, gold)
        trained.append(gold + drawn)
    return min(count // num_batches(count, cfg.gnn.batch_size) for count in trained)


def _refuse_full_batch_settings(cfg: CfgNode) -> None:
    which = f"model.type {cfg.model.type}" + (" with gnn.fan_out" if cfg.gnn.fan_out else "")
    for name, value in (("label_reuse", cfg.gnn.label_reuse), ("distillation", cfg.gnn.distillation)):
        if value:
            raise ConfigError(
                f"gnn.{name} is {value}, but {which} never has the predictions of all nodes in training; expected 0, "
                "or a full-batch network"
            )


def _refuse_hop_settings(cfg: CfgNode) -> None:
    for name, value, off in (("rlu_rounds", cfg.gnn.rlu_rounds, 1), ("scr_weight", cfg.gnn.scr_weight, 0.0)):
        if value != off:
            raise ConfigError(
                f"gnn.{name} is {value}, but model.type {cfg.model.type} sees the whole graph in every step; expected "
                f"{off}, or a network on hop features (glem_sgc, glem_sign, glem_sagn, glem_gamlp)"
            )


def joint_learner(
    cfg: CfgNode, graph: TextGraph, tokens: TokenStore, validation: Validation, predicted: np.ndarray | None = None
) -> JointLearner:
    """LM (``lm.*``) and GNN (``model.type``, ``gnn.*``, ``optim.*``) as one model on sampled neighbourhoods.

    Args:
        predicted: as of a `GNNLearner`.
    """
    lm, _ = lm_learners(cfg, tokens, graph.num_classes, validation)
    check_lm(cfg, lm)
    settings = JointSettings(
        lm=lm.settings,
        gnn_lr=cfg.optim.base_lr,
        gnn_weight_decay=cfg.optim.weight_decay,
        part_tokens=part_tokens(cfg, lm.hardware),
        recompute=cfg.lm.gradient_checkpointing,
        label_input=cfg.glem.label_input,
    )
    # What is computed anew is whole parts of a step's texts; layers within them need not be once more.
    config = encoder_config(cfg, lm.hardware, cfg.lm.dropout, cfg.lm.attention_dropout)
    config = replace(config, gradient_checkpointing=False)

    def build(dim_more: int, num_classes: int) -> JointModel:
        encoder = load_text_encoder(config)
        normed = cfg.gnn.input_norm in ("standardise", "layer")
        return JointModel(encoder, build_gnn(encoder.dim + dim_more, num_classes), normed)

    graphs, hoods, layerwise = sampled_graph(cfg, graph, lm.hardware)
    assert hoods is not None, "joint training samples neighbours"
    common = (tokens, build, graphs, hoods, settings, validation, lm.hardware)
    return JointLearner(*common, predicted=predicted, layerwise=layerwise)


def _check_parts(cfg: CfgNode, num_gold: int) -> None:
    """Of a joint step: none of the ``lm.grad_accumulation`` parts of a batch is empty, nor too small for batch norm."""
    smallest = num_gold // num_batches(num_gold, cfg.lm.batch_size)
    at_most = max(1, smallest // (2 if cfg.gnn.norm == "batch" else 1))
    if cfg.lm.grad_accumulation > at_most:
        raise ConfigError(
            f"lm.grad_accumulation is {cfg.lm.grad_accumulation}, but a batch has {smallest} of the {num_gold:,} "
            f"training nodes and gnn.norm is '{cfg.gnn.norm}'; expected at most {at_most} parts"
        )


def further_features(
    cfg: CfgNode, graph: TextGraph, tokens: TokenStore, encoded: np.ndarray | None
) -> Callable[[np.ndarray | None], Any]:
    """What makes the features (N, F) beside the text embedding where that is trained with the GNN; F may be 0."""
    if feature_kinds(cfg.glem.node_features) == ["text"]:
        return lambda embeddings: np.empty((graph.num_nodes, 0), dtype=np.float32)
    return feature_builder(cfg, graph, tokens, encoded)


def smoother(cfg: CfgNode, graphs: GraphViews, gold: Gold) -> Callable[[np.ndarray], np.ndarray] | None:
    """Correct & Smooth as ``glem.cs_*`` say; None where not asked for.

    Every node is smoothed on the structure that the GNN predicts it with: a node that training sees on what training
    sees, so that no edge of a test node changes its prediction in the inductive settings.
    """
    g = cfg.glem
    if not g.correct_and_smooth:
        return None
    settings = CorrectAndSmoothSettings(correct_alpha=g.cs_correct_alpha, smooth_alpha=g.cs_smooth_alpha)

    def smooth(logits: np.ndarray) -> np.ndarray:
        everything = graphs.predict.edge_index.cpu()
        smoothed = correct_and_smooth(logits, gold.nodes, gold.labels, everything, settings)
        if (seen := graphs.seen) is not None:
            among_seen, gold_places = graphs.train.edge_index.cpu(), np.searchsorted(seen, gold.nodes)
            smoothed[seen] = correct_and_smooth(logits[seen], gold_places, gold.labels, among_seen, settings)
        return smoothed

    return smooth


def graph_views_of(cfg: CfgNode, graph: TextGraph) -> GraphViews:
    """What training and prediction see of the graph (GLEM paper, inductive settings)."""
    full = _structure(graph.rows(), graph.col, graph.num_nodes)
    if cfg.glem.setting == "transductive":
        return GraphViews(full, full)
    is_test = np.zeros(graph.num_nodes, dtype=bool)
    is_test[graph.split["test"]] = True
    seen = np.flatnonzero(~is_test)
    new_index = np.cumsum(~is_test) - 1
    row = graph.rows()
    kept = ~is_test[row] & ~is_test[graph.col]
    row, col = row[kept], graph.col[kept]
    train = _structure(new_index[row], new_index[col], len(seen))
    predict = full if cfg.glem.setting == "inductive" else _structure(row, col, graph.num_nodes)
    return GraphViews(train, predict, seen)


def stored_graph_views_of(cfg: CfgNode, graph: TextGraph) -> GraphViews:
    """The same in the graph's own arrays, for hop features that are propagated on disk."""
    whole = functools.cache(lambda: graph_views_of(cfg, graph))
    seen = keep = None
    if cfg.glem.setting != "transductive":
        keep = np.ones(graph.num_nodes, dtype=bool)
        keep[graph.split["test"]] = False
        seen = np.flatnonzero(keep)
    train = MmapGraph(graph.rowptr, graph.col, keep, lambda: whole().train)
    keep_to_predict = None if cfg.glem.setting == "inductive" else keep
    return GraphViews(train, MmapGraph(graph.rowptr, graph.col, keep_to_predict, lambda: whole().predict), seen)


def _structure(row: np.ndarray, col: np.ndarray, num_nodes: int) -> Structure:
    return Structure(torch.from_numpy(np.stack([row, col]).astype(np.int64)), num_nodes)


# ---- prediction from a finished run -------------------------------------------------------------------------------


@register_train("glem_predict")
def predict(overwrite: int = 0) -> None:
    """Predict all nodes again from the weights that a finished run kept, write them into ``predictions.csv.gz``."""
    require_mode(cfg, "glem_predict")
    run_dir = Path(cfg.run_dir)
    run_json = run_dir / "run.json"
    require_finished(run_dir)
    kinds = {path.name.split("_", 1)[1].split("_")[0] for path in (run_dir / "stages").iterdir()}
    with_lm, with_gnn = bool(kinds & {"lm", "e"}), bool(kinds & {"gnn", "m"})
    graph, run = prepare(cfg, with_lm=with_lm, with_gnn=with_gnn, with_joint="joint" in kinds)
    run.journal.read_all(read_json(run_json).get("stages"))
    nodes = predicted_nodes(cfg, graph, run.candidates)
    nodes = np.arange(graph.num_nodes) if nodes is None else nodes
    table = {"node": nodes if graph.node_ids is None else [graph.node_ids[int(node)] for node in nodes]}
    scores: dict[str, Scores] = {}
    for method in ("GLEM-LM", "GLEM-GNN") if run.journal.best("GLEM-GNN") else ("LM", "Cascade", "GNN", "Joint"):
        stage = run.journal.best(method)
        if stage is None:
            continue
        logits = predict_stage(run, stage)
        if processes.rank() > 0:
            continue
        shown = logits[nodes].astype(np.float32)
        probability = torch.softmax(torch.from_numpy(shown), -1).amax(-1).numpy()
        table[method] = np.array(graph.class_names, dtype=object)[shown.argmax(-1)]
        table[f"{method} probability"] = probability.round(4)
        scores[method] = scores_of(graph, logits, accuracy_of(graph.name))
    if processes.rank() > 0:
        return
    with atomic_write(run_dir / "predictions.csv.gz") as file:
        pd.DataFrame(table).to_csv(file, index=False, compression="gzip")
    write_json(run_dir / "predictions.json", scores)
    shutil.rmtree(run.journal.working, ignore_errors=True)


def predict_stage(run: Run, stage: FinishedStage) -> np.ndarray:
    """float16 logits (N, C) of a finished stage, computed anew from its weights (and its LM's embeddings).

    All processes encode; what they found, and the GNN, is the first one's. The others get zeros.
    """
    classes = run.gold.num_classes
    on_lm = stage.key.model == "LM"
    gnn = run.joint or run.gnn
    predicted = run.encoded if on_lm or gnn is None else gnn.predicted
    logits = _scratch(run, f"{stage.key.folder}-logits", classes, predicted)
    if on_lm:
        _encode(run, stage, logits)
        return logits
    lm = loop.teacher_of(run.journal, stage) if run.lm_em else None
    embeddings = _encode(run, lm, _scratch(run, "teacher-logits", classes, run.encoded)) if lm else None
    if processes.rank() > 0:
        return logits
    if run.joint is not None:
        task = run.joint.start(run.gnn_step_targets(stage.key, None), run.features(None), stage.weights())
        embeddings = _scratch(run, "embeddings", task.embedding_dim, run.encoded)
        task.predict(logits, embeddings, f"{title_of(stage.key.name)}, encoding", run.encoded)
        return logits
    assert run.gnn is not None
    pseudo = None
    if lm and stage.key.em_iteration > 0:
        opens = run.settings.order == "gnn_first"  # only then is this M-step its iteration's first step
        pseudo = run.pseudo_labels(run.teacher_logits(stage.key.em_iteration, lm) if opens else lm.logits)
    targets = run.gnn_step_targets(stage.key, pseudo)
    run.gnn.start(targets, run.features(embeddings), stage.weights()).predict(logits)
    return logits


def _encode(run: Run, stage: FinishedStage, logits: np.ndarray) -> np.ndarray:
    """float16 text embeddings (N, H) of an LM stage; its logits go into ``logits``."""
    learner = run.lm_em if stage.key.em_iteration else run.lm_gold
    assert learner is not None
    task = learner.start(weights=stage.weights())
    embeddings = _scratch(run, "embeddings", task.embedding_dim, run.encoded)
    task.predict(logits, embeddings, f"{title_of(stage.key.name)}, encoding", run.encoded)
    return embeddings


def _scratch(run: Run, name: str, columns: int, nodes: np.ndarray | None = None) -> np.ndarray:
    """float16 zeros (N, columns); of the first process on disk, in the run's working folder, as `open_predictions`."""
    if processes.rank() > 0:
        return np.zeros((run.num_nodes, columns), dtype=np.float16)
    run.journal.working.mkdir(parents=True, exist_ok=True)
    return open_predictions(run.journal.working, name, run.num_nodes, columns, nodes)
