"""Memory, time and file sizes of a run's stages, measured on a small part of each.

Runs as a subprocess, ``python -m glem_graphgym.plan.calibration request.json answer.json``, so that its memory is that
of a run and its failures are contained. The run is built as usual and recorded (`em.recorder`); then its fits are tried
in the run's order, as memory that one keeps is still allocated in the next.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import cpu_count
from torch import nn
from torch_geometric.graphgym.config import set_cfg
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.build.choices import choose, with_choices
from glem_graphgym.build.features import feature_builder, static_folder
from glem_graphgym.build.footprint import whole_graph_bytes
from glem_graphgym.build.gnn import sees_hops
from glem_graphgym.build.graph import load_text_graph_of, open_tokens, tokenizer_of
from glem_graphgym.build.language_model import hardware_for, untuned_lm
from glem_graphgym.build.learners import gnn_learner, joint_learner, lm_learners
from glem_graphgym.build.memory_check import hop_bytes
from glem_graphgym.build.run import Nodes, build_run, nodes_of
from glem_graphgym.build.run_folder import check_run_folder, identity_of
from glem_graphgym.build.sizes import budget_bytes, feature_widths, processes_here
from glem_graphgym.config import load_config, reads_texts, trains_features
from glem_graphgym.data.stand_in import RemappedTokens, sampled_tokens, smaller_graph
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.tokens import TokenStore, budget_batches, id_type, padded_tokens, shuffled_batches, token_folder
from glem_graphgym.em.e_step import LMLearner, LMTask
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.hop_step import GPU_SHARE, free_on_gpu
from glem_graphgym.em.joint_step import VALIDATED_AT_ONCE, JointLearner, JointTask
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.em.recorder import RecordedStage, record
from glem_graphgym.em.run import Run
from glem_graphgym.em.sampled_step import StoredSampledLearner
from glem_graphgym.files import read_json, write_json
from glem_graphgym.memory import GB, MB, PeakMemory, available_bytes, keep_freed_memory
from glem_graphgym.models.pretrained import BITS
from glem_graphgym.models.text_encoder import TextClassifier, transformer_layers
from glem_graphgym.modes import MODES, UNTIL_PLATEAU
from glem_graphgym.out_of_core.feature_rows import FeatureRows
from glem_graphgym.plan.disk_sizes import hop_files, layer_file_bytes

STATIC = "static"  # the untuned LM's embeddings, which are made before the first stage
COURSES = 32  # random sequences of validation scores that are simulated: they decide which weights are kept
TRIAL_SECONDS = 8.0  # of training that an LM stage is tried for, in two epochs
MIN_BATCHES, MAX_BATCHES = 4, 20  # batches per trial epoch
# Varying batch sizes fragment the heap, more so in a whole run than in a trial. Trials of 18 to 42 steps showed 56 to
# 87%, depending on the machine, of the memory that a whole stage of all-MiniLM-L6-v2 added.
FRAGMENTATION = 1.5
JOINT_VALIDATED = 512  # nodes of a joint trial's validation
INFERRED_BATCHES = 3  # timed in a trial, beside the batch of the longest texts
EXTRA_EPOCHS = 2  # of a GNN's second trial, beyond the first epoch
GRAPH_AT_ONCE = 5_000_000  # nodes plus adjacency entries up to which the whole graph is tried
FEWEST_NODES = 1000  # of a smaller graph
MEMORY_SHARE = 3  # a GNN's trial may use about 1 / MEMORY_SHARE of the available memory


@dataclass(frozen=True)
class Cost:
    """Cost of a stage.

    Attributes:
        resident_mb: peak of the process's resident memory, memory-mapped files included.
        mapped_mb: about how much of it are pages of prediction files, which the system can write out and reclaim.
        accelerator_mb: peak of the accelerator's memory; 0 on CPU.
        seconds: for all epochs, without early stopping.
        texts: number of texts trained on, summed over epochs; tokens: theirs, padding included.
        model: see `StageKey`.
        data_parallel: whether the run's processes share the work.
    """

    resident_mb: float
    mapped_mb: float
    accelerator_mb: float
    seconds: float
    texts: int = 0
    tokens: int = 0
    model: str = "LM"
    data_parallel: bool = False


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def always_improving() -> Callable[[np.ndarray], float]:
    """A validation score that improves on every call, so that the best weights are saved as often as possible."""
    scores = itertools.count(1.0)
    return lambda logits: next(scores)


class Calibration:
    """Records the run that ``cfg`` describes, and measures a small part of each fit."""

    def __init__(self, cfg: CfgNode, graph: TextGraph) -> None:
        self.cfg, self.graph, self.accelerator = cfg, graph, hardware_for(cfg, "32").accelerator
        self.processes, self.nodes = processes_here(cfg), nodes_of(cfg, graph)
        self.program = MODES[cfg.train.mode].program
        encoded = self.nodes.encoded
        self.encoded = np.arange(graph.num_nodes) if encoded is None else encoded
        self.widths = feature_widths(cfg, graph)
        # "layers": bytes on disk of layer outputs during layer-wise prediction.
        self.sizes: dict[str, Any] = {"tokens": None, "static": None, "hops": None, "layers": 0}
        self.costs: dict[str, Cost] = {}
        self.models: dict[int, nn.Module] = {}
        self.fragmentation_mb = 0.0  # estimated heap fragmentation by the LM stages of a run, beyond a trial's
        self.tokens: Any = self._open_tokens() if reads_texts(cfg) else None
        if STATIC in self.widths:
            self._try_static()

    def run(self) -> dict[str, Any]:
        """Record the stages, measure their costs, and return both with the sizes of their files."""
        cfg, graph = self.cfg, self.graph
        run = build_run(cfg, graph, self.tokens, lambda *embeddings: None)
        # Whether a GNN on sampled neighbourhoods predicts layer by layer over blocks of nodes.
        self.by_blocks = isinstance(run.gnn, StoredSampledLearner) or bool(run.joint and run.joint.layerwise)
        width = sum(self.widths.values())
        if self.by_blocks:
            self.sizes["layers"] = layer_file_bytes(cfg, graph, width, self.nodes.predicted)
        if sees_hops(cfg) and 0 < budget_bytes(cfg) < hop_bytes(cfg, graph, width):
            static, fixed = self.sizes["static"], not trains_features(cfg.glem.node_features)

            def make_features() -> Any:
                return feature_builder(cfg, graph, self.tokens, self.nodes.encoded)(None)

            exist = fixed and (static is None or static["cached"])
            self.sizes["hops"] = hop_files(
                cfg, graph, self.nodes.predicted, width, fixed, make_features if exist else None
            )
        recording = record(run, self.program, self._model_of)
        fits: dict[tuple[object, ...], str] = {}
        stages = []
        for stage in recording.stages:
            cost = ""
            if stage.learner is not None:
                cost = fits.setdefault(stage.fit, stage.key.name)
                if cost not in self.costs:
                    self.costs[cost] = self._try(stage)
            row = {"folder": stage.key.folder, "model": stage.key.model, "cost": cost}
            files = {"arrays": stage.arrays, "weights": stage.weights, "shared": stage.shared and str(stage.shared)}
            stages.append(row | files)
        shape = {"nodes": graph.num_nodes, "edges": graph.num_edges, "classes": graph.num_classes}
        costs = {name: among_processes(cost, self.processes, self.accelerator) for name, cost in self.costs.items()}
        return {
            "graph": {"name": graph.name, **shape},
            **self.sizes,
            "accelerator": self.accelerator,
            "processes": self.processes,
            "stages": stages,
            "courses": self._courses(run),
            "costs": {name: asdict(cost) for name, cost in costs.items()},
        }

    # ---- the recorded run -----------------------------------------------------------------------------------------

    def _model_of(self, learner: Any, targets: StepTargets) -> nn.Module:
        """The model on the meta device (no storage); one quantised by bitsandbytes cannot move there."""
        if id(learner) not in self.models:
            unseen = {"text"} if isinstance(learner, JointLearner) else set()
            width = sum(width for kind, width in self.widths.items() if kind not in unseen)
            model = learner.model_for(width, targets.gold.num_classes)
            self.models[id(learner)] = model if self.cfg.lm.base_precision in BITS else model.to("meta")
        return self.models[id(learner)]

    def _courses(self, run: Run) -> list[list[list[str]]]:
        """Per simulated course of validation scores: stages with weights on disk after each stage, and in the end."""
        if run.settings.iterations == UNTIL_PLATEAU:
            run = replace(run, settings=replace(run.settings, iterations=run.settings.max_iterations))
        courses = set()
        for seed in range(COURSES):
            recording = record(run, self.program, scores=iter(np.random.default_rng(seed).random, None))
            courses.add((*(stage.on_disk for stage in recording.stages), recording.kept))
        return [[sorted(folders) for folders in course] for course in courses]

    def _try(self, stage: RecordedStage) -> Cost:
        assert stage.targets is not None
        if isinstance(stage.learner, LMLearner):
            cost = self._try_lm(stage.learner, stage.targets)
        elif isinstance(stage.learner, JointLearner):
            cost = self._try_joint()
        else:
            cost = self._try_gnn(stage.targets)
        return replace(cost, model=stage.key.model, data_parallel=stage.data_parallel)

    # ---- texts ----------------------------------------------------------------------------------------------------

    def _open_tokens(self) -> TokenStore:
        cfg, texts = self.cfg, self.graph.texts
        tokenizer = tokenizer_of(cfg, texts)
        folder = token_folder(texts, tokenizer, cfg.lm.max_length, Path(cfg.dataset.dir) / "tokens")
        cached = folder.is_dir()
        tokens = open_tokens(cfg, self.graph) if cached else sampled_tokens(texts, tokenizer, cfg.lm.max_length)
        total = int(tokens.lengths.sum())
        size = total * id_type(tokenizer).itemsize + 8 * (len(texts) + 1)
        self.sizes["tokens"] = {"total": total, "cached": cached, "folder": str(folder), "bytes": size}
        return tokens

    def _try_lm(self, learner: LMLearner, targets: StepTargets) -> Cost:
        full_settings, nodes, lengths = learner.settings, targets.like_an_epoch(), self.tokens.lengths
        settings = replace(full_settings, batch_size=-(-full_settings.batch_size // self.processes))
        epoch = shuffled_batches(lengths, nodes, settings.batch_size, np.random.default_rng(0))
        learner = replace(learner, settings=settings)
        initial_mb = PeakMemory().resident_mb()
        memory = PeakMemory(self.accelerator)
        start = _now()
        longest = nodes[np.argsort(-lengths[nodes], kind="stable")[: settings.batch_size]]
        seconds, steps = self._fit_lm(learner, [longest])[1:]  # drops the model: a run holds only one
        overhead = _now() - start - seconds
        count = int(np.clip(TRIAL_SECONDS / 2 * steps / max(seconds, 1e-3), MIN_BATCHES, MAX_BATCHES))
        gc.collect()
        # The longest texts come last: in a run they follow batches of other sizes, which have fragmented the heap.
        batches = [*epoch[:count], longest]
        task, seconds, steps = self._fit_lm(learner, batches)
        trained = padded_tokens(lengths, batches, settings.grad_accumulation) * steps // len(batches)
        infer_rate = self._predict_lm(learner, task.model)
        resident, accelerator = memory.resident_mb(), memory.accelerator_mb()
        tokens = padded_tokens(lengths, epoch, settings.grad_accumulation) * settings.epochs
        inferred = _inferred_tokens(lengths, self.graph.split["valid"], settings.infer_tokens)
        inferred *= settings.epochs * settings.evals_per_epoch
        inferred += _inferred_tokens(lengths, self.encoded, settings.infer_tokens)
        mapped = 2 * self.graph.num_nodes * (task.embedding_dim + self.graph.num_classes) / MB
        frozen = weights_mb(task.model) - weights_mb(task.model, trained=True)
        # Frozen weights do not fragment the heap.
        fragmented = (FRAGMENTATION - 1) * max(0.0, resident - initial_mb - frozen)
        self.fragmentation_mb = max(self.fragmentation_mb, fragmented)
        peak = resident + fragmented
        other_ranks_mb = 0.0
        if self.cfg.lm.strategy == "fsdp":
            other_ranks_mb = sharded_mb(task.model) * (1 - 1 / self.processes)
        if self.accelerator == "cuda":
            accelerator -= other_ranks_mb
        else:
            peak = max(peak - other_ranks_mb, initial_mb + weights_mb(task.model))  # loaded whole, then sharded
        return Cost(
            resident_mb=peak + mapped,
            mapped_mb=mapped,
            accelerator_mb=accelerator,
            seconds=overhead + tokens * seconds / max(1, trained) + inferred * infer_rate,
            texts=len(nodes) * settings.epochs,
            tokens=tokens,
        )

    def _fit_lm(self, learner: LMLearner, batches: list[np.ndarray]) -> tuple[LMTask, float, int]:
        """Train a model on batches of nodes, validating on the longest validation texts after every epoch; returns the
        task, the seconds of training, and the number of steps."""
        nodes, settings = np.concatenate(batches), learner.settings
        valid = self._longest(self.graph.split["valid"], settings.infer_tokens)
        epochs = min(2, settings.epochs * settings.evals_per_epoch)
        trial = replace(
            learner,
            tokens=RemappedTokens(self.tokens, np.concatenate([nodes, valid])),
            validation=Validation(len(nodes) + np.arange(len(valid)), always_improving()),
            settings=replace(settings, epochs=epochs, evals_per_epoch=1),
        )
        gold = Gold(np.arange(len(nodes)), np.zeros(len(nodes), dtype=np.int64), self.graph.num_classes)
        task, log = trial.fit(StepTargets(gold), "calibration")
        return task, log.train_seconds, epochs * len(batches)

    def _predict_lm(self, learner: LMLearner, model: TextClassifier) -> float:
        """Seconds per token of inference, without the batch of the longest texts, which comes first."""
        nodes, budget = self.encoded, learner.settings.infer_tokens
        count = min(len(nodes), int(INFERRED_BATCHES * budget / max(1.0, self.tokens.lengths[nodes].mean())) + 1)
        sampled = np.random.default_rng(0).choice(nodes, count, replace=False)
        seconds = 0.0
        for batch_nodes in (self._longest(nodes, budget), sampled):
            task = LMTask(replace(learner, tokens=RemappedTokens(self.tokens, batch_nodes)), model, None)
            logits = np.zeros((len(batch_nodes), self.graph.num_classes), dtype=np.float16)
            start = _now()
            task.predict(logits, np.zeros((len(batch_nodes), task.embedding_dim), dtype=np.float16), "calibration")
            seconds = _now() - start
        return seconds / max(1, _inferred_tokens(self.tokens.lengths, sampled, budget))

    def _longest(self, nodes: np.ndarray, budget: int) -> np.ndarray:
        """The first inference batch, which holds the longest texts."""
        return next(budget_batches(self.tokens.lengths, nodes, budget))

    def _try_static(self) -> None:
        """Measure the untuned LM's embeddings, which are made before the first stage."""
        folder = static_folder(self.cfg, self.tokens, self.nodes.encoded)
        cached = self.sizes["tokens"]["cached"] and folder.is_dir()
        self.sizes["static"] = static = {"folder": str(folder if cached else folder.parent), "cached": cached}
        if cached:
            static["dim"] = np.load(folder / "embeddings.npy", mmap_mode="r").shape[1]
            return
        memory = PeakMemory(self.accelerator)
        start = _now()
        learner = untuned_lm(self.cfg, self.tokens)
        model = learner.build()
        static["dim"] = dim = model.encoder.dim
        overhead = _now() - start
        rate = self._predict_lm(learner, model)
        resident, accelerator = memory.resident_mb(), memory.accelerator_mb()
        tokens = _inferred_tokens(self.tokens.lengths, self.encoded, learner.settings.infer_tokens)
        mapped = 2 * self.graph.num_nodes * dim / MB
        self.costs[STATIC] = Cost(resident + mapped, mapped, accelerator, overhead + tokens * rate, data_parallel=True)

    # ---- the graph ------------------------------------------------------------------------------------------------

    def _smaller(self) -> tuple[TextGraph, CfgNode, Nodes, float]:
        """The graph to measure epochs on (the whole one if it is small), its configuration, its nodes by use, and the
        factor by which the whole graph is larger."""
        cfg, graph, width = self.cfg.clone(), self.graph, sum(self.widths.values())
        if sees_hops(cfg):
            needed = hop_bytes(cfg, graph, width)
        else:
            needed = sum(whole_graph_bytes(cfg, graph, width, trains=not cfg.gnn.fan_out).values())
        entries = graph.num_nodes + len(graph.col)
        share = min(1.0, GRAPH_AT_ONCE / entries, available_bytes() / MEMORY_SHARE / needed)
        count = max(FEWEST_NODES, int(share * graph.num_nodes))
        small = graph if count >= graph.num_nodes else smaller_graph(graph, count)
        scale = graph.num_nodes / small.num_nodes
        self.sizes["tried_nodes"] = small.num_nodes
        # The budget shrinks with the graph, so that the small graph exceeds it too; hops on disk are not measured.
        cfg.glem.memory_budget_gb = budget_bytes(cfg) / scale / GB if self.by_blocks else 0.0
        return small, cfg, self.nodes if small is graph else nodes_of(cfg, small), scale

    def _features(self, cfg: CfgNode, num_nodes: int, width: int) -> Any:
        rows = FeatureRows([np.broadcast_to(np.float16(0), (num_nodes, width))], standardise=False)
        return rows if cfg.glem.memory_budget_gb else np.asarray(rows)

    def _growth_mb(self, small: TextGraph, scale: float, tried_mb: float) -> float:
        """MB of a GNN beside the graph, extrapolated from ``tried_mb`` on the small one; with a memory budget at most
        the budget plus what does not grow with the graph."""
        budget = budget_bytes(self.cfg) / MB
        if self.by_blocks:
            return min(scale * tried_mb, tried_mb + budget)
        if self.sizes["hops"]:  # beyond the hops, memory depends on the batch size, not on the graph
            hops = hop_bytes(self.cfg, small, sum(self.widths.values())) / MB
            return min(scale * tried_mb, max(0.0, tried_mb - hops) + budget)
        return scale * tried_mb

    def _accelerator_mb(self, scale: float, tried_mb: float) -> float:
        """MB of a GNN on the accelerator, extrapolated from ``tried_mb`` on the small graph.

        Blocks of nodes stay within the memory budget, and batches of hop features do not grow with the graph; the hop
        features themselves take at most a share of the accelerator's free memory.
        """
        if self.by_blocks:
            return min(scale * tried_mb, tried_mb + budget_bytes(self.cfg) / MB)
        if sees_hops(self.cfg) and self.cfg.gnn.batch_size:
            kept = 0.0 if self.sizes["hops"] else GPU_SHARE * free_on_gpu(torch.device(self.accelerator)) / MB
            return min(scale * tried_mb, tried_mb + kept)
        return scale * tried_mb

    def _mapped_mb(self) -> float:
        """MB of memory-mapped prediction files: text embeddings (read) and logits (written)."""
        return 2 * self.graph.num_nodes * (self.widths.get("text", 0) + self.graph.num_classes) / MB

    def _try_gnn(self, recorded: StepTargets) -> Cost:
        small, cfg, nodes, scale = self._smaller()
        validation = Validation(small.split["valid"], always_improving())
        gnn: Any = gnn_learner(cfg, small, validation, nodes.candidates, nodes.predicted, self.by_blocks)
        gold, pseudo = Gold(small.split["train"], small.label[small.split["train"]], small.num_classes), recorded.pseudo
        if pseudo is not None:
            options: dict[str, Any] = {name: getattr(pseudo, name) for name in ("temperature", "hard", "confidence")}
            zeros = np.zeros((small.num_nodes, small.num_classes), dtype=np.float16)
            pseudo = PseudoLabels(zeros, nodes.candidates, gold, **options)
        targets = replace(recorded, gold=gold, pseudo=pseudo)
        initial_mb = PeakMemory().resident_mb()
        x = self._features(cfg, small.num_nodes, sum(self.widths.values()))
        settings = gnn.settings
        if gnn.data_parallel:
            gnn = replace(gnn, batch_size=-(-(gnn.batch_size or targets.num_trained) // self.processes))

        def fitted(epochs: int) -> tuple[Any, float, float]:
            """The fitted task, total seconds, and seconds of training."""
            start, trial_settings = _now(), replace(settings, epochs=epochs, eval_every=1, patience=0)
            task, log = replace(gnn, settings=trial_settings).fit(targets, x, "calibration")
            return task, _now() - start, log.train_seconds

        memory = PeakMemory(self.accelerator)
        short_seconds, short_train_seconds = fitted(1)[1:]
        gc.collect()
        task, long_seconds, long_train_seconds = fitted(1 + EXTRA_EPOCHS)
        epoch_seconds, train_seconds = (
            max(0.0, difference) / EXTRA_EPOCHS
            for difference in (long_seconds - short_seconds, long_train_seconds - short_train_seconds)
        )
        start = _now()
        task.predict(np.zeros((small.num_nodes, small.num_classes), dtype=np.float16))
        overhead = max(0.0, short_seconds - epoch_seconds) + _now() - start
        epochs, evaluations = settings.epochs, -(-settings.epochs // settings.eval_every)
        resident, accelerator = memory.resident_mb(), memory.accelerator_mb()
        return Cost(
            resident_mb=initial_mb + self._growth_mb(small, scale, resident - initial_mb) + self.fragmentation_mb,
            mapped_mb=self._mapped_mb(),
            accelerator_mb=self._accelerator_mb(scale, accelerator),
            seconds=scale * (overhead + epochs * train_seconds + evaluations * max(0.0, epoch_seconds - train_seconds)),
        )

    # ---- both together --------------------------------------------------------------------------------------------

    def _try_joint(self) -> Cost:
        """Measure joint training on sampled neighbourhoods, encoding of texts, and the GNN on the whole graph."""
        small, cfg, nodes, scale = self._smaller()
        tokens: TokenStore = self.tokens
        if small is not self.graph:
            tokens = RemappedTokens(
                tokens, np.random.default_rng(0).choice(self.graph.num_nodes, small.num_nodes, replace=False)
            )
        valid, train, dim = small.split["valid"], small.split["train"], self.widths["text"]
        validation = Validation(valid[:JOINT_VALIDATED], always_improving())
        learner = joint_learner(cfg, small, tokens, validation, nodes.predicted, self.by_blocks)
        features = self._features(cfg, small.num_nodes, sum(self.widths.values()) - dim)
        settings = learner.settings
        initial_mb = PeakMemory().resident_mb()
        memory = PeakMemory(self.accelerator)
        start = _now()
        first_costs = self._fit_joint(learner, small, features, train[: settings.lm.batch_size])[1]
        overhead = _now() - start - first_costs["train_seconds_per_epoch"]
        gc.collect()
        batches = np.clip(TRIAL_SECONDS / max(first_costs["train_seconds_per_epoch"], 1e-3), MIN_BATCHES, MAX_BATCHES)
        trained_nodes = np.random.default_rng(0).permutation(train)[: int(batches) * settings.lm.batch_size]
        task, costs = self._fit_joint(learner, small, features, trained_nodes)
        seconds = costs["train_seconds_per_epoch"] / costs["steps"]
        fitted, accelerator = memory.resident_mb(), memory.accelerator_mb()
        embeddings = np.broadcast_to(np.float16(0), (small.num_nodes, dim))
        memory = PeakMemory(self.accelerator)
        start = _now()
        task.propagate(np.zeros((small.num_nodes, small.num_classes), dtype=np.float16), embeddings)
        propagation = scale * (_now() - start)
        propagated, accelerator_propagated = memory.resident_mb(), memory.accelerator_mb()
        validated = scale * self._validated_tokens(learner, valid)
        del task
        no_validation = Validation(np.empty(0, dtype=np.int64), always_improving())
        lm = lm_learners(self.cfg, self.tokens, self.graph.num_classes, no_validation)[0]
        rate = self._predict_lm(lm, lm.build())
        inferred = _inferred_tokens(self.tokens.lengths, self.encoded, settings.lm.infer_tokens)
        steps = -(-len(self.graph.split["train"]) // settings.lm.batch_size) * settings.lm.epochs
        evaluations = settings.lm.epochs * settings.lm.evals_per_epoch
        growth = max(FRAGMENTATION * (fitted - initial_mb), self._growth_mb(small, scale, propagated - initial_mb))
        return Cost(
            resident_mb=initial_mb + growth + self._mapped_mb(),
            mapped_mb=self._mapped_mb(),
            accelerator_mb=max(accelerator, self._accelerator_mb(scale, accelerator_propagated)),
            seconds=overhead + steps * seconds + rate * (evaluations * validated + inferred) + propagation,
            texts=round(steps * costs["texts_per_step"]),
            tokens=round(steps * costs["tokens_per_step"]),
        )

    def _fit_joint(
        self, learner: JointLearner, small: TextGraph, features: np.ndarray, nodes: np.ndarray
    ) -> tuple[JointTask, dict[str, float]]:
        """Train a model on ``nodes`` for one epoch, with one validation; returns the task and its costs."""
        settings = replace(learner.settings, lm=replace(learner.settings.lm, epochs=1, evals_per_epoch=1))
        nodes = np.sort(nodes)
        gold = Gold(nodes, small.label[nodes], small.num_classes)
        task, log = replace(learner, settings=settings).fit(StepTargets(gold), features, "calibration")
        return task, task.costs(log)

    @staticmethod
    def _validated_tokens(learner: JointLearner, valid: np.ndarray) -> int:
        """Tokens per validation, padding included."""
        rng, total = np.random.default_rng(0), 0
        for start in range(0, len(valid), VALIDATED_AT_ONCE):
            hood = learner.neighbourhoods.around(valid[start : start + VALIDATED_AT_ONCE], rng)
            total += _inferred_tokens(learner.tokens.lengths, hood.nodes, learner.settings.micro_batch_tokens)
        return total


def weights_mb(module: nn.Module, trained: bool = False) -> float:
    """MB of a module's weights; with ``trained`` only of those that are trained."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad or not trained) / MB


def sharded_mb(model: TextClassifier) -> float:
    """MB of a training's memory that is divided among processes which shard the weights (`models.sharding`).

    That is the weights and, for trained ones, gradients, AdamW's two moments and the best weights so far; without what
    each process holds whole: two layers (one is gathered while the other computes) and everything outside of layers.
    """
    layers = [weights_mb(layer) for layer in transformer_layers(model.encoder.backbone) or ()]
    unsharded = weights_mb(model) - sum(layers) + 2 * max(layers, default=0.0)
    return max(0.0, weights_mb(model) + 4 * weights_mb(model, trained=True) - unsharded)


def among_processes(cost: Cost, processes: int, accelerator: str) -> Cost:
    """The cost, measured with one process, for several processes that share the stage's work.

    Time is divided among processes only if each has its own accelerator; on CPU the trial already used all cores.
    """
    return replace(cost, seconds=cost.seconds / processes) if cost.data_parallel and accelerator == "cuda" else cost


def _inferred_tokens(lengths: np.ndarray, nodes: np.ndarray, budget: int) -> int:
    """Tokens of inference on ``nodes``, padding included."""
    return padded_tokens(lengths, budget_batches(lengths, nodes, budget))


@contextlib.contextmanager
def _log_on_terminal(terminal: int) -> Iterator[None]:
    """Context that shows log and progress bars of loading a graph, which may take long, on descriptor ``terminal``."""
    stderr_copy, logger = os.dup(2), logging.getLogger("glem_graphgym.data")
    handler = logging.StreamHandler(sys.stderr)
    os.dup2(terminal, 2)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        os.dup2(stderr_copy, 2)
        os.close(stderr_copy)


def main(request: Path, answer: Path) -> None:
    """Write the answer to ``request``, or an ``error`` message in its place.

    A request has ``cfg`` (a file), ``run_dir``, ``overwrite`` (number of seeds), and ``terminal``, the file descriptor
    on which the building of a missing dataset is shown.
    """
    processes.end_with_parent()
    with contextlib.suppress(OSError):  # if memory runs out, the kernel should kill this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    options = read_json(request)
    cfg = CfgNode()
    set_cfg(cfg)
    try:
        load_config(cfg, options["cfg"])
        cfg.run_dir = options["run_dir"]
        keep_freed_memory()
        program_mb = PeakMemory().resident_mb()
        torch.set_num_threads(min(cfg.num_threads, cpu_count()))
        with _log_on_terminal(options["terminal"]):
            graph = load_text_graph_of(cfg)
        check_run_folder(Path(options["run_dir"]), identity_of(cfg, graph), options["overwrite"])
        cfg = with_choices(cfg, choose(cfg, anew=options["overwrite"] > 0))
        measured = {**Calibration(cfg, graph).run(), "program_mb": program_mb}
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        measured = {"error": str(error)}
    write_json(answer, measured)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
