"""What the stages of a run cost, measured on a small part of each: memory, time and sizes.

Done in a process of its own, ``python -m glem_graphgym.plan.calibration request.json answer.json``: so its memory
is that of a run, and whatever goes wrong in it takes nobody else along. The stages are tried in their order with the
run's own learners, as memory that one of them keeps is there in the next.
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
from torch import nn
from torch_geometric.graphgym.config import set_cfg
from yacs.config import CfgNode

from glem_graphgym import processes
from glem_graphgym.build.features import feature_builder, load_matrix, static_folder
from glem_graphgym.build.gnn import sees_hops
from glem_graphgym.build.gnn_check import check_gnn
from glem_graphgym.build.graph import load_text_graph_of, open_tokens, tokenizer_of
from glem_graphgym.build.language_model import hardware_for, untuned_lm
from glem_graphgym.build.learners import (
    further_features,
    gnn_learner,
    hop_storage,
    joint_learner,
    lm_learners,
    stored_graph_views_of,
)
from glem_graphgym.build.run import check_lms, em_settings, first_predictions, nodes_of
from glem_graphgym.build.run_folder import check_run_folder, identity_of, shared_lm_gold
from glem_graphgym.build.sizes import (
    GB,
    budget_bytes,
    full_batch_bytes,
    layer_file_bytes,
    predicts_layerwise,
    processes_here,
)
from glem_graphgym.config import feature_kinds, load_config
from glem_graphgym.data.stand_in import TokensLike, sampled_tokens, smaller_graph
from glem_graphgym.data.text_graph import TextGraph
from glem_graphgym.data.tokens import TokenStore, budget_batches, id_type, shuffled_batches, token_folder
from glem_graphgym.em.e_step import LMLearner, LMTask
from glem_graphgym.em.fit import Validation
from glem_graphgym.em.joint_step import VALIDATED_AT_ONCE, JointLearner, JointTask
from glem_graphgym.em.m_step import GNNLearner, GraphViews
from glem_graphgym.em.on_gold import FitsAgain
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets, num_confident, num_drawn
from glem_graphgym.files import read_json, write_json
from glem_graphgym.memory import PeakMemory, available_bytes, keep_freed_memory
from glem_graphgym.models.text_encoder import TextClassifier
from glem_graphgym.out_of_core.hop_storage import HopStorage, StoredGraph, hops_in_memory
from glem_graphgym.out_of_core.propagation import disk_bytes
from glem_graphgym.out_of_core.stored_operator import operator_bytes

MB = 1 << 20
TRIAL_SECONDS = 8.0  # of training batches that an LM stage is tried on, in two epochs
FEWEST, MOST = 4, 20  # such batches an epoch
# Batches of ever other sizes cut up memory, more so in a whole run than in a trial. Of what a stage of all-MiniLM-L6-v2
# took beyond what was there before it, trials of 18 to 42 steps had shown 56 to 87%, by the machine.
CUT_UP = 1.5
JOINT_VALIDATED = 512  # nodes
INFERRED_BATCHES = 3  # beside the one of the longest texts
GNN_EPOCHS = 3
GRAPH_AT_ONCE = 5_000_000  # nodes and adjacency entries of a graph that is tried as it is
FEWEST_NODES = 1000
MEMORY_SHARE = 3  # a trial of a GNN may take about one part in so many of what is available
SAFETY = 4  # times a lower bound of what a full-batch network takes


@dataclass(frozen=True)
class Cost:
    """What a stage takes.

    Attributes:
        resident_mb: peak of the process's resident memory, files that are mapped into it included.
        mapped_mb: about how much of it are pages of predictions' files, which the system can write out and reuse.
        accelerator_mb: peak of the accelerator's memory; 0 on CPU.
        seconds: if it trains all its epochs.
        texts: texts that it trains on, each counted in every epoch; tokens: theirs, padding included.
    """

    resident_mb: float
    mapped_mb: float
    accelerator_mb: float
    seconds: float
    texts: int = 0
    tokens: int = 0


class Stopwatch:
    """Times a model's passes, each from its beginning to that of the next: with all that follows the forward pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, bool, int]] = []  # when, in training?, size of the input

    def on(self, build: Callable[..., Any]) -> Callable[..., Any]:
        """``build`` with every model that it makes being watched."""

        def watched(*args: Any) -> Any:
            model = build(*args)
            model.register_forward_pre_hook(self._note)
            return model

        return watched

    def _note(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        self.calls.append((_now(), model.training, args[0].numel()))

    def stop(self) -> None:
        self.calls.append((_now(), False, 0))

    def passes(self, training: bool) -> tuple[float, int, int]:
        """Seconds, sizes and number of passes of one kind; without the first, which warms up, where there are more."""
        spans = [
            (end - start, size)
            for (start, in_training, size), (end, _, _) in itertools.pairwise(self.calls)
            if in_training == training and size
        ]
        spans = spans[1:] or spans
        return sum(span for span, _ in spans), sum(size for _, size in spans), len(spans)

    def total(self) -> float:
        return self.calls[-1][0] - self.calls[0][0] if self.calls else 0.0

    def rate(self, training: bool) -> float:
        """Seconds a unit of input."""
        seconds, size, _ = self.passes(training)
        return seconds / max(1, size)


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Rising:
    """A validation score that gets better every time, so that weights are kept as often as they can be."""

    def __init__(self) -> None:
        self.score = 0.0

    def __call__(self, logits: np.ndarray) -> float:
        self.score += 1.0
        return self.score


class Calibration:
    """Tries the stages of the run that ``cfg`` describes.

    Args:
        scratch: an empty folder for placeholders of large files, in which nothing is stored.
    """

    def __init__(self, cfg: CfgNode, graph: TextGraph, scratch: Path) -> None:
        self.cfg, self.graph, self.scratch = cfg, graph, scratch
        self.settings, self.processes = em_settings(cfg), processes_here(cfg)
        self.nodes = nodes_of(cfg, graph)
        encoded = self.nodes.encoded
        self.encoded = np.arange(graph.num_nodes) if encoded is None else encoded
        self.tokens: TokenStore | None = None
        self.about: dict[str, Any] = {
            "tokens": None,
            "static": None,
            "dim": 0,
            "lm_weights": 0,
            "gnn_weights": 0,
            "joint_weights": 0,
            "hops": None,
            "layers": 0,  # bytes of what layers give, on disk while a GNN predicts
            "data_parallel": ["static", "lm_gold", "e_step"],  # what all processes of a run do, each a part
        }
        self.stages: dict[str, Cost] = {}
        self.unseen_mb = 0.0  # of what a run has in memory and a trial on a smaller graph has not
        self.cut_up_mb = 0.0  # that an LM stage leaves cut up in a run, and has not in a trial
        self.widths: dict[str, int] = {}  # columns of each kind of node features
        self.scale = 1.0  # nodes of the graph a node of the one that GNNs are tried on
        self.layerwise = False  # whether a GNN on sampled neighbourhoods predicts by blocks of nodes

    def run(self, kinds: list[str]) -> dict[str, Any]:
        """``kinds``: names of stages without their iteration, in their order."""
        cfg, graph = self.cfg, self.graph
        with_lm, with_joint = "lm_gold" in kinds, "joint" in kinds
        static = "static" in feature_kinds(cfg.glem.node_features)
        if with_lm or with_joint or static:
            self._open_tokens()
        if static:
            self._try_static()
        learners = dict(zip(("lm_gold", "e_step"), self._lm_learners(), strict=True)) if with_lm else {}
        if learners:
            check_lms(cfg, *learners.values())
        gnn_kinds = [kind for kind in kinds if kind in ("gnn_gold", "m_step")]
        if gnn_kinds:
            if with_lm:
                self.about["dim"] = _embedding_dim(learners["lm_gold"])
            small, gnn, features = self._gnn()
        if with_joint:
            self._try_joint()
        for kind in kinds:
            if kind in learners:
                self._try_lm(kind, learners[kind])
            elif kind in gnn_kinds:
                self._try_gnn(kind, gnn, small, features)
        shape = {"nodes": graph.num_nodes, "edges": graph.num_edges, "classes": graph.num_classes}
        precision = cfg.lm.precision if with_lm or with_joint else cfg.gnn.precision
        accelerator = hardware_for(cfg, precision).accelerator
        stages = {
            kind: among_processes(cost, self.processes, accelerator, kind in self.about["data_parallel"])
            for kind, cost in self.stages.items()
        }
        return {
            "graph": {"name": graph.name, **shape},
            **self.about,
            "shared_lm_gold": str(shared_lm_gold(cfg, graph, self.nodes.encoded)),
            "accelerator": accelerator,
            "processes": self.processes,
            "stages": {kind: asdict(cost) for kind, cost in stages.items()},
        }

    @contextlib.contextmanager
    def _measured(self) -> Iterator[Callable[[], tuple[float, float]]]:
        """Resident and accelerator memory in MB, peak of the block."""
        memory = PeakMemory()
        yield lambda: (memory.resident_mb(), memory.peak_mb() if torch.cuda.is_available() else 0.0)

    # ---- texts ----------------------------------------------------------------------------------------------------

    def _open_tokens(self) -> None:
        cfg, texts = self.cfg, self.graph.texts
        tokenizer = tokenizer_of(cfg, texts)
        folder = token_folder(texts, tokenizer, cfg.lm.max_length, Path(cfg.dataset.dir) / "tokens")
        known = folder.is_dir()
        self.tokens = open_tokens(cfg, self.graph) if known else sampled_tokens(texts, tokenizer, cfg.lm.max_length)
        total = int(self.tokens.lengths.sum())
        size = total * id_type(tokenizer).itemsize + 8 * (len(texts) + 1)
        self.about["tokens"] = {"total": total, "known": known, "folder": str(folder), "bytes": size}

    def _lm_learners(self) -> tuple[LMLearner, LMLearner]:
        assert self.tokens is not None
        nobody = Validation(np.empty(0, dtype=np.int64), Rising())
        return lm_learners(self.cfg, self.tokens, self.graph.num_classes, nobody)

    def _epoch_nodes(self, kind: str) -> np.ndarray:
        """int64 (n,): nodes like those that an epoch of the LM trains on."""
        gold = self.graph.split["train"]
        if kind == "lm_gold":
            return gold
        kept = num_confident(len(self.nodes.candidates), self.settings.confidence)
        count = num_drawn(kept, self.settings.lm_ratio, len(gold))
        return np.concatenate([gold, np.random.default_rng(0).choice(self.nodes.candidates, count, replace=False)])

    def _try_lm(self, kind: str, learner: LMLearner) -> None:
        assert self.tokens is not None
        whole, nodes, watch = learner.settings, self._epoch_nodes(kind), Stopwatch()
        settings = replace(whole, batch_size=self._part(whole.batch_size))
        epoch = _training_batches(self.tokens.lengths, nodes, settings.batch_size)
        learner = replace(learner, settings=settings, build=watch.on(learner.build))
        before = PeakMemory().resident_mb()
        with self._measured() as memory:
            start = _now()
            longest = nodes[np.argsort(-self.tokens.lengths[nodes], kind="stable")[: settings.batch_size]]
            self._fit_lm(learner, longest, min(2, settings.epochs * settings.evals_per_epoch))
            watch.stop()
            overhead = _now() - start - watch.total()
            seconds, _, passes = watch.passes(training=True)
            step = settings.accumulate * seconds / max(1, passes)
            count = int(np.clip(TRIAL_SECONDS / 2 / max(step, 1e-3), FEWEST, MOST))
            gc.collect()  # a run does not train twice in a stage
            watch.calls.clear()
            # The longest come in among batches of other sizes, which have cut up memory before.
            mixed = np.concatenate([*epoch[:count], longest])
            task = self._fit_lm(learner, mixed, min(2, settings.epochs * settings.evals_per_epoch))
            watch.stop()
            train_rate = watch.rate(training=True)
            infer_rate = self._predict_lm(learner, task.model, watch)
            resident, accelerator = memory()
        tokens = _padded(self.tokens.lengths, epoch, settings.accumulate) * settings.epochs
        valid = self.graph.split["valid"]
        validated = _inferred_tokens(self.tokens.lengths, valid, settings.infer_tokens)
        inferred = _inferred_tokens(self.tokens.lengths, self.encoded, settings.infer_tokens)
        inferred += validated * settings.epochs * settings.evals_per_epoch
        self.about["dim"], self.about["lm_weights"] = task.embedding_dim, _bytes_of(task.model)
        mapped = 2 * self.graph.num_nodes * (task.embedding_dim + self.graph.num_classes) / MB
        self.cut_up_mb = max(self.cut_up_mb, (CUT_UP - 1) * (resident - before))
        peak = before + CUT_UP * (resident - before)
        self.stages[kind] = Cost(
            resident_mb=peak + mapped + self.unseen_mb + self._buckets_mb(task.model),
            mapped_mb=mapped,
            accelerator_mb=accelerator,
            seconds=overhead + tokens * train_rate + inferred * infer_rate,
            texts=len(nodes) * settings.epochs,
            tokens=tokens,
        )

    def _part(self, batch_size: int) -> int:
        """Of a batch what each of the run's processes takes."""
        return -(-batch_size // self.processes)

    def _buckets_mb(self, model: nn.Module) -> float:
        """What several processes that train together exchange gradients in."""
        trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        return trained / MB if self.processes > 1 else 0.0

    def _fit_lm(self, learner: LMLearner, nodes: np.ndarray, epochs: int) -> LMTask:
        """A model trained on ``nodes``, with a validation on the longest validation texts after every epoch."""
        assert self.tokens is not None
        valid = self._longest(self.graph.split["valid"], learner.settings.infer_tokens)
        tried = replace(
            learner,
            tokens=TokensLike(self.tokens, np.concatenate([nodes, valid])),
            validation=Validation(len(nodes) + np.arange(len(valid)), Rising()),
            settings=replace(learner.settings, epochs=epochs, evals_per_epoch=1),
        )
        places = np.arange(len(nodes))
        gold = Gold(places, np.zeros(len(nodes), dtype=np.int64), self.graph.num_classes)
        task: LMTask = tried.fit(StepTargets(gold), "calibration").task
        return task

    def _predict_lm(self, learner: LMLearner, model: TextClassifier, watch: Stopwatch) -> float:
        """Seconds a token of inference."""
        assert self.tokens is not None
        nodes, budget = self.encoded, learner.settings.infer_tokens
        mean = max(1.0, self.tokens.lengths[nodes].mean())
        count = min(len(nodes), int(INFERRED_BATCHES * budget / mean) + 1)
        some = np.random.default_rng(0).choice(nodes, count, replace=False)
        chosen = np.concatenate([self._longest(nodes, budget), some])
        task = LMTask(replace(learner, tokens=TokensLike(self.tokens, chosen)), model, None)
        logits = np.zeros((len(chosen), self.graph.num_classes), dtype=np.float16)
        watch.calls.clear()
        task.predict(logits, np.zeros((len(chosen), task.embedding_dim), dtype=np.float16), "calibration")
        watch.stop()
        return watch.rate(training=False)

    def _longest(self, nodes: np.ndarray, budget: int) -> np.ndarray:
        """The first batch of inference, which is the largest."""
        assert self.tokens is not None
        return next(budget_batches(self.tokens.lengths, nodes, budget))

    def _try_static(self) -> None:
        """The embeddings of the untuned LM, which are made before the first stage."""
        assert self.tokens is not None
        folder = static_folder(self.cfg, self.tokens, self.nodes.encoded)
        known = self.about["tokens"]["known"] and folder.is_dir()
        self.about["static"] = about = {"folder": str(folder if known else folder.parent), "known": known}
        if known:
            about["dim"] = np.load(folder / "embeddings.npy", mmap_mode="r").shape[1]
            return
        watch = Stopwatch()
        with self._measured() as memory:
            start = _now()
            learner = untuned_lm(self.cfg, self.tokens)
            model = watch.on(learner.build)()
            about["dim"] = dim = model.encoder.dim
            overhead = _now() - start
            rate = self._predict_lm(learner, model, watch)
            resident, accelerator = memory()
        tokens = _inferred_tokens(self.tokens.lengths, self.encoded, learner.settings.infer_tokens)
        mapped = 2 * self.graph.num_nodes * dim / MB
        self.stages["static"] = Cost(resident + mapped, mapped, accelerator, overhead + tokens * rate)

    # ---- the graph ------------------------------------------------------------------------------------------------

    def _tried_graph(self) -> tuple[TextGraph, CfgNode]:
        """A graph to try the GNN on, the whole one where that is small, and the configuration for it."""
        cfg, graph = self.cfg, self.graph
        self.widths = widths = self._widths()
        entries = graph.num_nodes + len(graph.col)
        bytes_needed = _bytes_of_gnn(cfg, graph, sum(widths.values()))
        share = min(1.0, GRAPH_AT_ONCE / entries, available_bytes() / MEMORY_SHARE / bytes_needed)
        count = max(FEWEST_NODES, int(share * graph.num_nodes))
        small = graph if count >= graph.num_nodes else smaller_graph(graph, count)
        self.scale, self.about["tried_nodes"] = graph.num_nodes / small.num_nodes, small.num_nodes
        tried = cfg.clone()
        tried.run_dir, tried.glem.memory_budget_gb = str(self.scratch), 0.0  # hops on disk are reckoned, and not tried
        self.layerwise = predicts_layerwise(cfg, graph)
        if self.layerwise:  # in proportion, so that the small graph exceeds it too
            tried.glem.memory_budget_gb = budget_bytes(cfg) / self.scale / GB
            self.about["layers"] = layer_file_bytes(cfg, graph, self.nodes.predicted)
        return small, tried

    def _gnn(self) -> tuple[TextGraph, GNNLearner | FitsAgain, Callable[[np.ndarray | None], np.ndarray]]:
        """A graph to try the GNN on, the GNN, and what makes its features."""
        small, tried = self._tried_graph()
        features = feature_builder(*self._feature_source(tried, small, self.widths))
        before = PeakMemory().resident_mb()
        self.small_nodes = nodes = self.nodes if small is self.graph else nodes_of(self.cfg, small)
        validation = Validation(small.split["valid"], Rising())
        gnn = gnn_learner(tried, small, validation, nodes.candidates, nodes.predicted)
        graphs = max(0.0, PeakMemory().resident_mb() - before)
        self.unseen_mb = (self.scale - 1) * graphs
        return small, gnn, features

    def _widths(self) -> dict[str, int]:
        """Columns of each kind of node features."""
        widths = {}
        for kind in feature_kinds(self.cfg.glem.node_features):
            if kind == "text":
                widths[kind] = self.about["dim"]
            elif kind == "static":
                widths[kind] = self.about["static"]["dim"]
            elif kind == "raw":
                widths[kind] = 0 if self.graph.features is None else self.graph.features.shape[1]
            else:
                file = self.cfg.glem.feature_file
                widths[kind] = load_matrix(file, self.graph.num_nodes, "glem.feature_file").shape[1]
        return widths

    def _feature_source(self, cfg: CfgNode, small: TextGraph, widths: dict[str, int]) -> tuple[Any, ...]:
        """Arguments for `feature_builder`: a placeholder stands for features of the whole graph, or not yet made."""
        static = self.about["static"]
        if small is self.graph and (static is None or static["known"]):
            return cfg, small, self.tokens, self.nodes.encoded
        cfg = cfg.clone()
        others = sum(width for kind, width in widths.items() if kind != "text")
        cfg.glem.node_features = "+".join((["text"] if "text" in widths else []) + (["file"] if others else []))
        cfg.glem.feature_file = self._placeholder("features", small.num_nodes, others) if others else ""
        return cfg, small, None, None

    def _placeholder(self, name: str, rows: int, columns: int) -> str:
        """A float16 file of zeros that takes no space."""
        file = self.scratch / f"{name}.npy"
        np.lib.format.open_memmap(file, mode="w+", dtype=np.float16, shape=(rows, columns))
        return str(file)

    def _targets(self, kind: str, small: TextGraph) -> StepTargets:
        train = small.split["train"]
        gold = Gold(train, small.label[train], small.num_classes)
        s = self.settings
        if kind == "gnn_gold":
            return StepTargets(gold)
        candidates = self.small_nodes.candidates
        logits = np.zeros((small.num_nodes, small.num_classes), dtype=np.float16)
        pseudo = PseudoLabels(logits, candidates, gold, temperature=s.temperature, hard=s.hard, confidence=s.confidence)
        return StepTargets(gold, pseudo, s.beta, s.gnn_ratio, True)

    def _try_gnn(
        self,
        kind: str,
        gnn: GNNLearner | FitsAgain,
        small: TextGraph,
        features: Callable[[np.ndarray | None], np.ndarray],
    ) -> None:
        settings, watch, targets = gnn.settings, Stopwatch(), self._targets(kind, small)
        tried = gnn.but(
            settings=replace(settings, epochs=min(GNN_EPOCHS, settings.epochs), eval_every=1, patience=0),
            build=watch.on(gnn.build),
            validation=Validation(small.split["valid"], Rising()),
        )
        if gnn.data_parallel:
            self.about["data_parallel"].append(kind)
            hops: Any = gnn
            tried = tried.but(batch_size=self._part(hops.batch_size or targets.num_trained))
        embeddings = None
        if self.about["dim"]:
            embeddings = np.load(self._placeholder("text", small.num_nodes, self.about["dim"]), mmap_mode="r")
        logits = np.zeros((small.num_nodes, small.num_classes), dtype=np.float16)
        before = PeakMemory().resident_mb()
        with self._measured() as memory:
            start = _now()
            task = tried.fit(targets, features(embeddings), "calibration").task
            watch.stop()
            overhead = _now() - start - watch.total()
            epoch, evaluation = (self._a_round(watch, tried.settings.epochs, training) for training in (True, False))
            start = _now()
            task.predict(logits)
            overhead += _now() - start
            resident, accelerator = memory()
        epochs, evaluations = settings.epochs, -(-settings.epochs // settings.eval_every)
        self.about["gnn_weights"] = _bytes_of(task.model)
        growth = self.scale * (resident - before)
        if self._hops_on_disk():  # the budget takes the place of hops in memory; batches stay as large as they are
            hops = _bytes_of_gnn(self.cfg, small, sum(self.widths.values()))
            growth = min(growth, max(0.0, resident - before - hops / MB) + budget_bytes(self.cfg) / MB)
        else:
            growth = self._growth_within_budget(growth, resident - before)
        self.stages[kind] = Cost(
            resident_mb=before + growth + self._unseen_of(task.model, gnn.data_parallel),
            mapped_mb=2 * self.graph.num_nodes * (self.about["dim"] + self.graph.num_classes) / MB,
            accelerator_mb=self.scale * accelerator,
            seconds=self.scale * (overhead + epochs * epoch + evaluations * evaluation),
        )

    def _growth_within_budget(self, growth: float, tried: float) -> float:
        """MB: of a layerwise prediction the budget takes the place of what grows with the graph.

        Args:
            growth: in proportion to the graph; tried: on the one that was tried.
        """
        return min(growth, tried + budget_bytes(self.cfg) / MB) if self.layerwise else growth

    def _unseen_of(self, model: nn.Module, data_parallel: bool) -> float:
        """MB that a run has beside what the trial of this GNN showed."""
        return self.unseen_mb + self.cut_up_mb + (self._buckets_mb(model) if data_parallel else 0.0)

    # ---- both together --------------------------------------------------------------------------------------------

    def _try_joint(self) -> None:
        """LM and GNN as one: training on sampled neighbourhoods, encoding of all texts, the GNN on the whole graph."""
        assert self.tokens is not None
        lm = self._lm_learners()[0]
        self.about["dim"] = dim = _embedding_dim(lm)
        before = PeakMemory().resident_mb()
        small, cfg = self._tried_graph()
        tokens: TokenStore = self.tokens
        if small is not self.graph:
            chosen = np.random.default_rng(0).choice(self.graph.num_nodes, small.num_nodes, replace=False)
            tokens = TokensLike(tokens, chosen)
        valid = small.split["valid"]
        predicted = self.nodes.predicted if small is self.graph else nodes_of(self.cfg, small).predicted
        learner = joint_learner(cfg, small, tokens, Validation(valid[:JOINT_VALIDATED], Rising()), predicted)
        settings, train = learner.settings, small.split["train"]
        source = self._feature_source(cfg, small, self.widths)
        with self._measured() as memory:
            start = _now()
            features = further_features(*source)(None)
            first = self._fit_joint(learner, small, features, train[: settings.lm.batch_size])[1]
            overhead = _now() - start - first["train_seconds_per_epoch"]
            gc.collect()
            batches = np.clip(TRIAL_SECONDS / max(first["train_seconds_per_epoch"], 1e-3), FEWEST, MOST)
            some = np.random.default_rng(0).permutation(train)[: int(batches) * settings.lm.batch_size]
            task, costs = self._fit_joint(learner, small, features, some)
            seconds = costs["train_seconds_per_epoch"] / costs["steps"]
            fitted, accelerator = memory()
        embeddings = np.load(self._placeholder("text", small.num_nodes, dim), mmap_mode="r")
        with self._measured() as memory:
            start = _now()
            task.propagate(np.zeros((small.num_nodes, small.num_classes), dtype=np.float16), embeddings)
            propagation = _now() - start
            propagated, accelerator_propagated = memory()
        self.about["joint_weights"] = _bytes_of(task.model)
        validated = self.scale * self._validated_tokens(learner, valid)
        del task
        watch = Stopwatch()
        rate = self._predict_lm(lm, watch.on(lm.build)(), watch)
        inferred = _inferred_tokens(self.tokens.lengths, self.encoded, settings.lm.infer_tokens)
        steps = -(-len(self.graph.split["train"]) // settings.lm.batch_size) * settings.lm.epochs
        evaluations = settings.lm.epochs * settings.lm.evals_per_epoch
        mapped = 2 * self.graph.num_nodes * (dim + self.graph.num_classes) / MB
        growth = self._growth_within_budget(self.scale * (propagated - before), propagated - before)
        self.stages["joint"] = Cost(
            resident_mb=before + max(CUT_UP * (fitted - before), growth) + mapped,
            mapped_mb=mapped,
            accelerator_mb=max(accelerator, self.scale * accelerator_propagated),
            seconds=overhead + steps * seconds + rate * (evaluations * validated + inferred) + self.scale * propagation,
            texts=round(steps * costs["texts_per_step"]),
            tokens=round(steps * costs["tokens_per_step"]),
        )

    def _fit_joint(
        self, learner: JointLearner, small: TextGraph, features: np.ndarray, nodes: np.ndarray
    ) -> tuple[JointTask, dict[str, float]]:
        """A model trained on ``nodes`` once, with a validation, and its costs."""
        settings = replace(learner.settings, lm=replace(learner.settings.lm, epochs=1, evals_per_epoch=1))
        nodes = np.sort(nodes)
        gold = Gold(nodes, small.label[nodes], small.num_classes)
        task, log = replace(learner, settings=settings).fit(StepTargets(gold), features, "calibration")
        return task, task.costs(log)

    @staticmethod
    def _validated_tokens(learner: JointLearner, valid: np.ndarray) -> int:
        """Tokens of a validation, padding included."""
        rng, total = np.random.default_rng(0), 0
        for start in range(0, len(valid), VALIDATED_AT_ONCE):
            hood = learner.neighbourhoods.around(valid[start : start + VALIDATED_AT_ONCE], rng)
            total += _inferred_tokens(learner.tokens.lengths, hood.nodes, learner.settings.part_tokens)
        return total

    # ---- what they are made of ------------------------------------------------------------------------------------

    def _hops_on_disk(self) -> bool:
        """Whether hop features exceed ``glem.memory_budget_gb``; says under ``hops`` what they take on disk."""
        width, budget = sum(self.widths.values()), budget_bytes(self.cfg)
        if not budget or not sees_hops(self.cfg) or _bytes_of_gnn(self.cfg, self.graph, width) <= budget:
            return False
        self.about["hops"] = self.about["hops"] or self._hop_files(width)
        return True

    def _hop_files(self, width: int) -> dict[str, Any]:
        """Files of hops: ``bytes`` and ``folder`` of those of features, whether they are ``known`` and ``fixed``, what
        is needed ``beside`` them while they are made and for ``labels``, and the ``operators``."""
        cfg, graph, predicted = self.cfg, self.graph, self.nodes.predicted
        storage, graphs = hop_storage(cfg, predicted), stored_graph_views_of(cfg, graph)
        rows = graph.num_nodes if predicted is None else len(predicted)

        def on_disk(columns: int, hops: int) -> tuple[int, int]:
            return disk_bytes(graph.num_nodes, rows, columns, hops, storage.dtype.itemsize, storage.budget)

        features, beside = on_disk(width, cfg.gnn.hops + 1)
        folder = self._folder_of_hops(storage, graphs)
        return {
            "fixed": "text" not in self.widths,
            "folder": str(folder),
            "known": folder != storage.cache and folder.is_dir(),
            "bytes": features,
            "beside": beside,
            "labels": sum(on_disk(graph.num_classes, 1)) if cfg.glem.label_input else 0,
            "operators": [self._operator_file(storage, part) for part, _ in storage.needed(graphs)],
        }

    def _folder_of_hops(self, storage: HopStorage, graphs: GraphViews) -> Path:
        """Where hops of features lie that never change; their cache where they cannot be there yet.

        Features are read from first to last to name it, so not without need.
        """
        static = self.about["static"]
        made = "text" not in self.widths and (static is None or static["known"])
        if not made or not any(storage.cache.glob("hops-*")):
            return storage.cache
        x = feature_builder(self.cfg, self.graph, self.tokens, self.nodes.encoded)(None)
        return storage.features_folder(graphs, x, self.cfg.gnn.hops)

    @staticmethod
    def _operator_file(storage: HopStorage, part: StoredGraph) -> dict[str, Any]:
        """Of a propagation operator; the graph is read to name its folder where there are any."""
        folder = storage.operator_folder(part) if any(storage.cache.glob("operator-*")) else storage.cache
        known = folder != storage.cache and folder.is_dir()
        return {"folder": str(folder), "known": known, "bytes": operator_bytes(part.rowptr, part.col, part.keep)}

    @staticmethod
    def _a_round(watch: Stopwatch, rounds: int, training: bool) -> float:
        """Seconds of an epoch's training, or of a validation."""
        seconds, _, timed = watch.passes(training)
        passes = sum(in_training == training and size > 0 for _, in_training, size in watch.calls)
        return seconds / max(1, timed) * passes / max(1, rounds)


def among_processes(cost: Cost, processes: int, accelerator: str, data_parallel: bool) -> Cost:
    """The cost of a stage that one process was tried on, where several do it together, each a part of it.

    Time is shared where each has an accelerator of its own; on CPU they share the cores, all of which the trial had.
    """
    return replace(cost, seconds=cost.seconds / processes) if data_parallel and accelerator == "cuda" else cost


def _training_batches(lengths: np.ndarray, nodes: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Nodes of the batches of an epoch."""
    batches = shuffled_batches(lengths[nodes], np.arange(len(nodes)), batch_size, np.random.default_rng(0))
    return [nodes[batch] for batch in batches]


def _padded(lengths: np.ndarray, batches: list[np.ndarray], parts: int) -> int:
    """Tokens of batches that go through a model in ``parts``, padding included."""
    pieces = (part for batch in batches for part in np.array_split(lengths[batch], parts) if len(part))
    return sum(len(part) * int(part.max()) for part in pieces)


def _inferred_tokens(lengths: np.ndarray, nodes: np.ndarray, budget: int) -> int:
    """Tokens of inference over ``nodes``, padding included."""
    return sum(len(batch) * int(lengths[batch[0]]) for batch in budget_batches(lengths, nodes, budget))


def _bytes_of(model: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def _embedding_dim(learner: LMLearner) -> int:
    return learner.build().encoder.dim


def _bytes_of_gnn(cfg: CfgNode, graph: TextGraph, width: int) -> int:
    """About, and rather too much, what a GNN on features of that width takes: it decides on the size of a trial."""
    if not sees_hops(cfg):
        return SAFETY * sum(full_batch_bytes(cfg, graph, width).values())
    item_bytes = hardware_for(cfg, cfg.gnn.precision).dtype.itemsize
    classes = graph.num_classes if cfg.glem.label_input else 0
    return hops_in_memory(graph.num_nodes, len(graph.col), width, cfg.gnn.hops, item_bytes, classes)


@contextlib.contextmanager
def _shown(terminal: int) -> Iterator[None]:
    """Show what loading a graph says, bars too, on the file descriptor ``terminal``: a missing dataset is built."""
    kept, said = os.dup(2), logging.getLogger("glem_graphgym.data")
    handler = logging.StreamHandler(sys.stderr)
    os.dup2(terminal, 2)
    said.addHandler(handler)
    said.setLevel(logging.INFO)
    try:
        yield
    finally:
        said.removeHandler(handler)
        os.dup2(kept, 2)
        os.close(kept)


def main(request: Path, answer: Path) -> None:
    """Answer ``request``, or say under ``error`` why not.

    A request has ``cfg``, ``run_dir``, ``overwrite`` seeds, ``kinds`` of stages, and ``terminal``, the file descriptor
    on which the building of a missing dataset is shown.
    """
    processes.end_with_parent()
    with contextlib.suppress(OSError):  # should memory run out all the same, let it be this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    asked = read_json(request)
    cfg = CfgNode()
    set_cfg(cfg)
    try:
        load_config(cfg, asked["cfg"])
        cfg.run_dir = asked["run_dir"]
        keep_freed_memory()
        program_mb = PeakMemory().resident_mb()
        torch.set_num_threads(min(cfg.num_threads, len(os.sched_getaffinity(0))))
        with _shown(asked["terminal"]):
            graph = load_text_graph_of(cfg)
        check_run_folder(Path(asked["run_dir"]), identity_of(cfg, graph), asked["overwrite"])
        first_predictions(cfg, graph)
        if {"gnn_gold", "m_step", "joint"} & {*asked["kinds"]}:
            check_gnn(cfg, graph, len(nodes_of(cfg, graph).candidates), "joint" in asked["kinds"])
        found = {**Calibration(cfg, graph, answer.parent).run(asked["kinds"]), "program_mb": program_mb}
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        found = {"error": str(error)}
    write_json(answer, found)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
