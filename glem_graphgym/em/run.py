"""The steps of GLEM: a language model q_θ and a GNN p_φ, trained on gold labels and on each other's pseudo-labels.

Notation follows arXiv 2210.14709; `modes` calls the steps in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from glem_graphgym import processes
from glem_graphgym.em.combine import ensemble
from glem_graphgym.em.e_step import LMLearner
from glem_graphgym.em.fit import FitLog
from glem_graphgym.em.joint_step import JointLearner
from glem_graphgym.em.journal import FinishedStage, Journal, Stage, StageKey, StageOutput, stage_seed
from glem_graphgym.em.m_step import GNNLearner
from glem_graphgym.em.objective import effective_classes, objective_report
from glem_graphgym.em.pseudo_labels import Gold, PseudoLabels, StepTargets
from glem_graphgym.models.sharding import whole_weights
from glem_graphgym.scores import margin_of


@dataclass(frozen=True)
class EMSettings:
    """Settings of EM.

    Attributes:
        order: ``lm_first``: the first E-step learns from the GNN trained on gold; ``gnn_first``: the first M-step
            learns from the LM trained on gold.
        iterations: number of EM iterations; `UNTIL_PLATEAU`: at most ``max_iterations``, ending after one that raises
            neither model's best validation score.
        alpha, beta: α and β, weights 0-1 of the pseudo-label term in E-steps and M-steps.
        temperature: T of soft targets softmax(logits / T); hard: one-hot targets instead.
        lm_ratio, gnn_ratio: pseudo nodes drawn per gold node, in E-steps and M-steps.
        lm_redraw: E-steps draw their pseudo nodes in every epoch, as M-steps do, rather than once per step.
        confidence: share 0-1 of the candidates that may be drawn, those with the highest top probability.
        lm_init, lm_init_first: initial weights of the LM in E-steps, and in the first: ``pretrained``, ``previous``
            (the run's latest LM) or ``gold`` (the LM fine-tuned on gold).
        ensemble: add a final stage that mixes the predictions of LM and GNN, with weights chosen on validation.
        keep_all_weights: keep the weights of every stage; False: only those that the run or a prediction still needs.
    """

    order: str = "lm_first"
    iterations: int = 1
    max_iterations: int = 10
    alpha: float = 0.8
    beta: float = 0.05
    temperature: float = 0.2
    hard: bool = False
    lm_ratio: float = 1.0
    gnn_ratio: float = 1.0
    lm_redraw: bool = False
    confidence: float = 1.0
    lm_init: str = "pretrained"
    lm_init_first: str = "pretrained"
    ensemble: bool = False
    keep_all_weights: bool = False


@dataclass(frozen=True)
class Run:
    """The models, labels and journal of one run; its methods are the steps, each done once and kept on disk.

    Attributes:
        num_nodes: N.
        gold: y_L, the training labels.
        unlabelled: int64, U: the nodes that training may see and that have no gold label.
        candidates: int64, the part of U that may get pseudo-labels.
        features: (text embeddings float (N, H) or None, dict view -> embeddings of its LM) -> node features of the GNN,
            float32 (N, D), an array or `FeatureRows`.
        pseudo_accuracy: pseudo-labels -> their accuracy on validation nodes, for reports alone.
        lm_gold, lm_em: learner of the LM on gold, and in E-steps; None in runs without an LM.
        views: name -> learner of an LM on another text of the nodes. It is trained on gold alone; its embeddings are
            further features of the GNN.
        gnn: learner of the GNN; joint: learner of LM and GNN as one module; None in runs without.
        first_predictions: logits (N, C) that replace the teacher of the first EM step: the GNN in ``lm_first`` order,
            the LM in ``gnn_first`` order; None = no replacement.
        features_seconds: spent on static embeddings among the features; counted in stage ``gnn_gold`` or ``joint``.
        shared_lm_gold: folder in which runs share the LM fine-tuned on gold, or None.
        correct_and_smooth: logits (N, C) of the best GNN -> logits after Correct & Smooth; None = off.
        encoded: int64, the nodes whose texts the trained LM encodes; None = all. All other nodes have embeddings and
            logits of zero; none of them is in ``unlabelled`` or ``candidates``.
        language_model: description of the LM, for reports alone; empty in runs without an LM.
    """

    num_nodes: int
    gold: Gold
    unlabelled: np.ndarray
    candidates: np.ndarray
    settings: EMSettings
    journal: Journal
    features: Callable[..., Any]
    pseudo_accuracy: Callable[[PseudoLabels], float]
    lm_gold: LMLearner | None = None
    lm_em: LMLearner | None = None
    views: Mapping[str, LMLearner] = field(default_factory=dict)
    gnn: GNNLearner | None = None
    joint: JointLearner | None = None
    first_predictions: np.ndarray | None = None
    features_seconds: float = 0.0
    shared_lm_gold: Path | None = None
    correct_and_smooth: Callable[[np.ndarray], np.ndarray] | None = None
    encoded: np.ndarray | None = None
    language_model: Mapping[str, Any] = field(default_factory=dict)

    # ---- the four steps -------------------------------------------------------------------------------------------

    def fit_lm_on_gold(self) -> FinishedStage:
        """Fit θ to y_L: fine-tune the LM on gold labels and embed all nodes (h_n); then the LMs of the views."""
        key = self._key("lm_gold", "LM", "LM", 0)
        with self.journal.stage(key, data_parallel=True, shared=self.shared_lm_gold) as stage:
            if stage.todo:
                self._train(stage, self.lm_gold, self._lm_step_targets(key, None), init=None)
        for name, learner in self.views.items():
            self._fit_view(name, learner)
        return stage.result

    def _fit_view(self, name: str, learner: LMLearner) -> None:
        key = self._key(f"lm_gold_{name}", f"LM:{name}", f"LM:{name}", 0)
        shared = self.shared_lm_gold and self.shared_lm_gold.with_name(f"{self.shared_lm_gold.name}-{name}")
        with self.journal.stage(key, data_parallel=True, shared=shared) as view:
            if view.todo:
                self._train(view, learner, self._lm_step_targets(key, None), init=None)

    def view_stages(self) -> dict[str, FinishedStage]:
        """Finished stage of each view's LM."""
        models = {stage.key.model: stage for stage in self.journal.finished}
        return {name: models[f"LM:{name}"] for name in self.views}

    def features_of(self, lm: FinishedStage | None) -> Any:
        """Node features of the GNN, from the embeddings of stage ``lm`` (None: without any) and of the views."""
        views = {name: stage.embeddings for name, stage in self.view_stages().items()}
        return self.features(lm.embeddings if lm else None, views)

    def lm_of(self, stage: FinishedStage) -> LMLearner:
        """Learner that fitted an LM stage."""
        view = stage.key.model.partition(":")[2]
        learner = self.views[view] if view else self.lm_em if stage.key.em_iteration else self.lm_gold
        assert learner is not None
        return learner

    def fit_gnn_on_gold(self, lm: FinishedStage | None) -> FinishedStage:
        """Fit φ to y_L: train the GNN on gold labels alone, on the LM's embeddings (cascade) or on other features."""
        key = self._key("gnn_gold", "GNN", "Cascade" if lm else "GNN", 0)
        with self.journal.stage(key, data_parallel=self._gnn_data_parallel) as stage:
            if stage.todo:
                self._train(stage, self.gnn, self.gnn_step_targets(key, None), features=self.features_of(lm))
        return stage.result

    def e_step(
        self, iteration: int, p_logits: np.ndarray, latest_lm: FinishedStage, gold_lm: FinishedStage
    ) -> FinishedStage:
        """Fit θ to y_L and ŷ_U from ``p_logits`` (N, C): maximise O(q), which minimises KL(p‖q).

        ``latest_lm`` and ``gold_lm``, the latest LM stage and the one on gold, serve ``lm_init``.
        """
        key = self._key(f"e_step_{iteration}", "LM", "GLEM-LM", iteration)
        init_choice = self.settings.lm_init_first if iteration == 1 else self.settings.lm_init
        with self.journal.stage(key, data_parallel=True) as stage:
            if stage.todo:
                init = {"pretrained": None, "previous": latest_lm, "gold": gold_lm}[init_choice]
                targets = self._lm_step_targets(key, self.pseudo_labels(p_logits))
                self._train(stage, self.lm_em, targets, init=init.weights() if init else None)
                self._diagnose(stage, targets, p_logits=p_logits)
        return stage.result

    def m_step(self, iteration: int, q: FinishedStage, q_logits: np.ndarray) -> FinishedStage:
        """Fit φ to y_L and ŷ_U from ``q_logits`` (N, C), on h_V of stage ``q``: maximise the pseudo-likelihood O(φ)."""
        key = self._key(f"m_step_{iteration}", "GNN", "GLEM-GNN", iteration)
        with self.journal.stage(key, data_parallel=self._gnn_data_parallel) as stage:
            if stage.todo:
                targets = self.gnn_step_targets(key, self.pseudo_labels(q_logits))
                self._train(stage, self.gnn, targets, features=self.features_of(q))
                self._diagnose(stage, targets, q_logits=q_logits)
        return stage.result

    def fit_jointly(self) -> FinishedStage:
        """Fit θ and φ together to y_L, end to end: no step of GLEM, but the baseline that it is compared with."""
        key = self._key("joint", "GNN", "Joint", 0)
        with self.journal.stage(key) as stage:
            if stage.todo:
                self._train(stage, self.joint, self.gnn_step_targets(key, None), features=self.features(None))
        return stage.result

    # ---- what follows without training ----------------------------------------------------------------------------

    def combine(self) -> None:
        """Add the stages without training that the run has: Correct & Smooth on the best GNN, the ensemble of the best
        LM and the best GNN, and the given first predictions as a row of their own."""
        lm, gnn = (self.best_of(model) for model in ("LM", "GNN"))
        if self.correct_and_smooth and gnn:
            smooth = self.correct_and_smooth

            def smoothed(out: np.ndarray) -> dict[str, float]:
                out[:] = smooth(gnn.logits)
                return {}

            self._derive("correct_and_smooth", f"{gnn.key.method}+C&S", gnn, smoothed)
        if self.settings.ensemble and lm and gnn:
            assert self.gnn is not None
            validation = self.gnn.validation

            def mix(out: np.ndarray) -> dict[str, float]:
                return {"ensemble_weight_lm": ensemble(lm.logits, gnn.logits, validation, out)}

            self._derive("ensemble", f"{lm.key.method}+{gnn.key.method.removeprefix('GLEM-')}", gnn, mix)
        if (first_predictions := self.first_predictions) is not None:

            def copy(out: np.ndarray) -> dict[str, float]:
                out[:] = first_predictions
                return {}

            self._derive("first_predictions", "First predictions", self.journal.finished[0], copy, model="given")

    def best_of(self, model: str) -> FinishedStage | None:
        """Stage of ``model`` (LM or GNN) with the best validation score; after EM, among E-steps or M-steps alone."""
        methods = {stage.key.method for stage in self.journal.finished if stage.key.model == model}
        em = {method for method in methods if method.startswith("GLEM-")}
        best = [self.journal.best(method) for method in sorted(em or methods)]
        return max((stage for stage in best if stage), key=lambda stage: stage.valid, default=None)

    def _derive(
        self,
        name: str,
        method: str,
        source: FinishedStage,
        compute: Callable[[np.ndarray], dict[str, float]],
        model: str = "none",
    ) -> None:
        """Do a stage without training: ``compute`` fills its logits (N, C) from finished stages and returns notes."""
        with self.journal.stage(self._key(name, model, method, source.key.em_iteration)) as stage:
            if stage.todo:
                out = stage.predictions("logits", (self.num_nodes, self.gold.num_classes))
                stage.finish(StageOutput(FitLog(), {}, 0, 0.0, stage.compute(lambda: compute(out))))

    def forget_weights(self, latest_lm: FinishedStage) -> None:
        """Delete the weights that neither a later E-step nor a prediction with the best models can need."""
        if self.settings.keep_all_weights:
            return
        best = [self.journal.best("GLEM-LM"), self.journal.best("GLEM-GNN")]
        keep = [self.journal.finished[0], *self.view_stages().values(), latest_lm, *(stage for stage in best if stage)]
        if best[1]:
            keep.append(self.teacher_of(best[1]))
        self.journal.forget_weights({stage.key.folder for stage in keep})

    def teacher_of(self, gnn: FinishedStage) -> FinishedStage:
        """LM stage whose embeddings a GNN stage was trained on: the last before it."""
        return [s for s in self.journal.finished if s.key.model == "LM" and s.key.index < gnn.key.index][-1]

    # ---- targets --------------------------------------------------------------------------------------------------

    def pseudo_labels(self, logits: np.ndarray) -> PseudoLabels:
        """ŷ_U from the other model's logits (N, C)."""
        s = self.settings
        options: dict[str, Any] = {"temperature": s.temperature, "hard": s.hard, "confidence": s.confidence}
        return PseudoLabels(logits, self.candidates, self.gold, **options)

    def teacher_logits(self, iteration: int, teacher: FinishedStage) -> np.ndarray:
        """Logits (N, C) that teach the first step of an iteration: of ``teacher``, or at first `first_predictions`."""
        external = self.first_predictions if iteration == 1 else None
        return teacher.logits if external is None else external

    def _lm_step_targets(self, key: StageKey, pseudo: PseudoLabels | None) -> StepTargets:
        s, seed = self.settings, stage_seed(self.journal.seed, key.index)
        return StepTargets(self.gold, pseudo, s.alpha, s.lm_ratio, s.lm_redraw, seed)

    def gnn_step_targets(self, key: StageKey, pseudo: PseudoLabels | None) -> StepTargets:
        s, seed = self.settings, stage_seed(self.journal.seed, key.index)
        return StepTargets(self.gold, pseudo, s.beta, s.gnn_ratio, True, seed)

    # ---- doing a stage --------------------------------------------------------------------------------------------

    @property
    def _gnn_data_parallel(self) -> bool:
        return self.gnn is not None and self.gnn.data_parallel

    def _key(self, name: str, model: str, method: str, iteration: int) -> StageKey:
        return StageKey(len(self.journal.finished), name, model, method, iteration)

    def _train(self, stage: Stage, learner: Any, targets: StepTargets, **fit_arguments: Any) -> None:
        """Fit ``learner`` to ``targets``, write its predictions, finish the stage; ``fit`` gets ``fit_arguments``."""
        assert learner is not None, f"this run has no model for {stage.key.name}"
        name, joint, is_lm = stage.key.name, learner is self.joint, stage.key.model.startswith("LM")
        task, log = learner.fit(targets, title=name, checkpoint=stage.checkpoint, **fit_arguments)
        predicted = self.encoded if is_lm else learner.predicted
        logits = stage.predictions("logits", (self.num_nodes, self.gold.num_classes), predicted)
        if is_lm or joint:
            embeddings = stage.predictions("embeddings", (self.num_nodes, task.embedding_dim), self.encoded)
            task.predict(logits, embeddings, f"{name}, encoding", self.encoded, stage.checkpoint)
        elif processes.rank() == 0:
            task.predict(logits)
        notes = task.costs(log) if joint else {}
        texts = log.epochs * targets.num_trained if is_lm else notes.get("steps", 0) * notes.get("texts_per_step", 0)
        output = StageOutput(
            log,
            weights=whole_weights(task.model),
            params=sum(parameter.numel() for parameter in task.model.parameters()),
            lr=(learner.settings.lm if joint else learner.settings).lr,
            notes=notes,
            texts=round(texts),
            seconds_before=self.features_seconds if name in ("gnn_gold", "joint") else 0.0,
        )
        stage.finish(output)

    def _diagnose(
        self, stage: Stage, targets: StepTargets, q_logits: np.ndarray | None = None, p_logits: np.ndarray | None = None
    ) -> None:
        """Add diagnostics to the notes of an EM step; the caller passes its teacher's logits, the stage has its own."""
        if processes.rank() > 0:
            return
        s, pseudo, output = self.settings, targets.pseudo, stage.output
        assert pseudo is not None and output is not None

        def numbers() -> dict[str, float]:
            q, p = (stage.logits if logits is None else logits for logits in (q_logits, p_logits))
            report = objective_report(
                q, p, self.gold, self.unlabelled, alpha=s.alpha, beta=s.beta, pseudo_labels=self.pseudo_labels
            )
            report |= {"pseudo_accuracy_valid": self.pseudo_accuracy(pseudo), "pseudo_candidates": len(pseudo.nodes)}
            return report | self._warning_diagnostics(pseudo, stage.logits)

        output.notes |= stage.compute(numbers)

    def _warning_diagnostics(self, pseudo: PseudoLabels, logits: np.ndarray) -> dict[str, float]:
        """Diagnostics for `warnings_of`: gain of the student's logits (N, C) over the teacher, effective classes."""
        assert self.gnn is not None
        validation = self.gnn.validation
        teacher, student = (
            validation.score(np.asarray(values[validation.nodes], dtype=np.float32))
            for values in (pseudo.logits, logits)
        )
        diagnostics = {"gain_valid": student - teacher, "gain_margin": margin_of(teacher, len(validation.nodes))}
        if not len(pseudo.nodes):
            return diagnostics
        gold = np.bincount(self.gold.labels, minlength=self.gold.num_classes) / len(self.gold.labels)
        shares = {"pseudo_classes": pseudo.class_shares(), "gold_classes": torch.from_numpy(gold)}
        return diagnostics | {name: effective_classes(class_shares) for name, class_shares in shares.items()}
