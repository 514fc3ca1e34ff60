"""Joint training: text encoder and GNN trained end to end, on the texts of sampled neighbourhoods.

The baseline that GLEM replaces. It is costly: a step encodes, with gradients, the text of every node in its
neighbourhoods rather than one text per target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from glem_graphgym.data.tokens import TokenStore
from glem_graphgym.em.checkpoint import Checkpoint
from glem_graphgym.em.e_step import (
    LMSettings,
    TextParts,
    encode_in_parts,
    encode_texts,
    fit_lm,
    lm_optimizer,
    text_parts,
)
from glem_graphgym.em.fit import Batches, FitLog, Fitted, Task, Validation, Weights, to_device, to_float16
from glem_graphgym.em.inputs import GNNInputs, StoredInputs
from glem_graphgym.em.m_step import GNNLearner, GNNSettings, GraphViews
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.optim import decay_groups
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.sampled_step import Neighbourhoods, even_batches
from glem_graphgym.hardware import Hardware
from glem_graphgym.memory import is_out_of_memory
from glem_graphgym.models.block import BlockAdjacency
from glem_graphgym.models.text_encoder import JointModel
from glem_graphgym.out_of_core.feature_rows import FeatureRows
from glem_graphgym.out_of_core.layerwise import LayerwiseInference

VALIDATED_AT_ONCE = 8192  # validation nodes per neighbourhood; each text in it is encoded once
ROWS_AT_ONCE = 1 << 16  # rows of node features computed at a time, in inference


@dataclass(frozen=True)
class JointSettings:
    """Settings of joint training.

    Attributes:
        lm: of the encoder, as in an E-step; schedule, clipping and validations apply to the GNN too. ``batch_size``
            counts gold nodes without their neighbours, ``grad_accumulation`` the micro-batches of them, each with a
            neighbourhood of its own.
        gnn_lr, gnn_weight_decay: of the GNN, under the same schedule.
        micro_batch_tokens: padded tokens per pass of the encoder, over texts of similar length.
        recompute: recompute each such pass in the backward pass, so that a step needs the memory of one.
        label_input: gold labels as further input of the GNN, those of the targets hidden.
    """

    lm: LMSettings
    gnn_lr: float = 0.005
    gnn_weight_decay: float = 0.0
    micro_batch_tokens: int = 1024
    recompute: bool = False
    label_input: bool = False


@dataclass(frozen=True)
class JointLearner:
    """Learner of text encoder and GNN as one module, on gold labels.

    Training and validation sample neighbourhoods. Prediction does not: every text is encoded once, and the GNN sees all
    neighbours.

    Attributes:
        tokens: of the N texts.
        build: (F, num_classes) -> model with a pretrained encoder, for F features besides the embedding.
        graphs, validation, hardware, predicted: see `GNNLearner`.
        neighbourhoods: samples from ``graphs``, one hop per layer of the GNN.
        layerwise: predicts with a GNN that is a `LayeredGNN` where graph and features may exceed memory; else None.
    """

    tokens: TokenStore
    build: Callable[[int, int], JointModel]
    graphs: GraphViews
    neighbourhoods: Neighbourhoods
    settings: JointSettings
    validation: Validation
    hardware: Hardware
    predicted: np.ndarray | None = None
    layerwise: LayerwiseInference | None = None

    def start(self, targets: StepTargets, features: Any, weights: Weights | None = None) -> JointTask:
        """A task with a pretrained encoder or ``weights``; ``features``, float (N, F), join the embeddings as input."""
        labels = targets if self.settings.label_input else None
        inputs: StoredInputs
        if self.layerwise is None:
            inputs = GNNInputs(torch.from_numpy(np.asarray(features, dtype=np.float32)), labels)
        else:
            inputs = StoredInputs(FeatureRows.wrap(features), labels, torch.float32)
        model = self.build(inputs.dim, targets.gold.num_classes)
        if weights is not None:
            model.load_state_dict(weights)
        return JointTask(self, inputs, targets, model)

    def model_for(self, width: int, num_classes: int) -> JointModel:
        """The model of a step, for ``width`` features besides the embeddings."""
        return self.build(width + (num_classes if self.settings.label_input else 0), num_classes)

    def work(self, targets: StepTargets, encoded: np.ndarray) -> dict[str, float]:
        """See `LMLearner.work`; the work is unknown before neighbourhoods are sampled, so it counts as 1."""
        return {"batch": 1.0}

    def fit(self, targets: StepTargets, features: Any, title: str, checkpoint: Checkpoint | None = None) -> Fitted:
        """Train a new model on the gold labels of ``targets``; see `em.fit.fit`.

        Raises:
            MemoryError: a step ran out of memory; says how large it was.
        """
        task = self.start(targets, features)
        try:
            return Fitted(task, fit_lm(task, self.settings.lm, self.hardware, title, checkpoint))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"{task.latest_step} did not fit") from error


class JointInput(NamedTuple):
    """Input of the model for a neighbourhood of ``num_seeds`` nodes.

    Attributes:
        nodes, adjacency: see `Neighbourhood`.
        texts: of the n nodes; features: float32 (n, F), their features besides the embeddings.
    """

    nodes: np.ndarray
    texts: TextParts
    features: Tensor
    adjacency: BlockAdjacency
    num_seeds: int


class JointTask(Task):
    """Text encoder and GNN with the texts, features and targets of a run: they can be trained, and predict.

    Training samples a new neighbourhood for every batch of gold nodes; all validations use the same ones.
    """

    model: JointModel

    def __init__(self, learner: JointLearner, inputs: StoredInputs, targets: StepTargets, model: JointModel) -> None:
        super().__init__(model, learner.validation, targets.gold.class_weights)
        self.learner, self.inputs, self.targets = learner, inputs, targets
        self.settings, self.tokens, self.device = learner.settings, learner.tokens, learner.hardware.device
        self.meter, self.latest_step = Counter[str](), "a step"  # costs of all training steps; the latest step in words

    @property
    def embedding_dim(self) -> int:
        return self.model.encoder.dim

    def costs(self, log: FitLog) -> dict[str, float]:
        """Costs per step and per epoch of training."""
        meter, steps = self.meter, max(1, self.meter["steps"] // self.settings.lm.grad_accumulation)
        return {
            "steps": steps,
            "texts_per_step": round(meter["texts"] / steps, 1),
            "tokens_per_step": round(meter["tokens"] / steps, 1),
            "most_texts_at_once": meter["most_texts"],
            "train_seconds_per_epoch": round(log.train_seconds / max(1, log.epochs), 3),
        }

    def get_extra_state(self) -> dict[str, Any]:
        return dict(self.meter)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.meter = Counter(state)

    # ---- training -------------------------------------------------------------------------------------------------

    def batches(self, epoch: int) -> Batches:
        gold, lm = self.targets.gold, self.settings.lm
        target = gold.targets()
        seeds = [self.targets.seed, epoch, 4]
        order = np.random.default_rng(seeds).permutation(len(gold.nodes))
        batches = even_batches(order, lm.batch_size)
        micro_batches = [
            (micro_batch, len(batch))
            for batch in batches
            for micro_batch in np.array_split(batch, lm.grad_accumulation)
        ]

        def prepare(item: tuple[int, tuple[np.ndarray, int]]) -> tuple[JointInput, Tensor, int]:
            number, (micro_batch, batch_size) = item
            return (
                self.around(gold.nodes[micro_batch], np.random.default_rng([*seeds, number])),
                target[micro_batch],
                batch_size,
            )

        return Batches(list(enumerate(micro_batches)), prepare)

    def around(self, seeds: np.ndarray, rng: np.random.Generator) -> JointInput:
        """Sample a neighbourhood of ``seeds``, int64 (b,), with texts and features; hides the seeds' gold labels."""
        hood = self.learner.neighbourhoods.around(seeds, rng)
        texts = text_parts(self.tokens, hood.nodes, self.settings.micro_batch_tokens)
        features = self.inputs.rows(hood.nodes, slice(hood.num_seeds))
        return JointInput(hood.nodes, texts, features, hood.adjacency, hood.num_seeds)

    def forward(self, batch: tuple[JointInput, Tensor, int]) -> Tensor:
        hood, target, batch_size = batch
        texts, tokens = len(hood.nodes), int(self.tokens.lengths[hood.nodes].sum())
        self.meter.update(steps=1, texts=texts, tokens=tokens, most_texts=max(0, texts - self.meter["most_texts"]))
        self.latest_step = f"a step on the {texts:,} texts ({tokens:,} tokens) around {hood.num_seeds:,} nodes"
        is_gold = torch.ones(len(target), dtype=torch.bool, device=target.device)
        loss_options = (0.0, self.settings.lm.label_smoothing, (batch_size, 0))
        return glem_loss(self.logits(hood), target, is_gold, *loss_options, class_weights=self.class_weights)

    def logits(self, hood: JointInput) -> Tensor:
        """Logits (b, C) of a neighbourhood's seeds."""
        embeddings = encode_in_parts(self.model.encoder, hood.texts, 1 if self.settings.recompute else None)
        return self.model(embeddings, hood.features, hood.adjacency)[: hood.num_seeds]

    def validated(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        nodes = self.validation.nodes
        for start in range(0, len(nodes), VALIDATED_AT_ONCE):
            seeds = nodes[start : start + VALIDATED_AT_ONCE]
            # The same neighbourhoods at every validation: scores differ by the weights alone.
            rng = np.random.default_rng([self.targets.seed, int(seeds[0]), 5])
            yield seeds, self.logits(to_device(self.around(seeds, rng), self.device))

    def optimizer(self, num_steps: int) -> tuple[torch.optim.Optimizer, Any, str]:
        s = self.settings
        encoder_groups = decay_groups(self.model.encoder, s.lm.weight_decay)
        gnn_groups = [
            {**group, "lr": s.gnn_lr}
            for module in (self.model.norm, self.model.gnn)
            for group in decay_groups(module, s.gnn_weight_decay)
        ]
        groups = [group for group in (*encoder_groups, *gnn_groups) if group["params"]]
        return lm_optimizer(groups, s.lm, self.learner.hardware, num_steps)

    # ---- prediction -----------------------------------------------------------------------------------------------

    def predict(
        self,
        logits: np.ndarray,
        embeddings: np.ndarray,
        title: str = "predicting",
        nodes: np.ndarray | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Write logits (N, C) of the ``predicted`` nodes, and text embeddings (N, H) of ``nodes`` as `LMTask.predict`.

        The GNN sees all neighbours, and reads the embeddings as written (float16).
        """
        encoder = self.model.to(self.device).eval().encoder
        options = (self.tokens, nodes, self.settings.lm.infer_tokens, title, checkpoint)
        with torch.inference_mode(), self.learner.hardware.autocast():
            encode_texts(lambda ids, mask: (encoder(ids, mask),), (embeddings,), self.device, *options)
        self.propagate(logits, embeddings)

    def propagate(self, logits: np.ndarray, embeddings: np.ndarray) -> None:
        """Write the GNN's logits (N, C) for text embeddings (N, H), computed from all neighbours."""
        self.model.to(self.device).eval()
        if self.learner.layerwise is None:
            self._propagate_in_memory(logits, embeddings)
            return
        gnn: Any = self.model.gnn
        predicted = np.arange(len(logits)) if self.learner.predicted is None else self.learner.predicted
        dim = embeddings.shape[1] + self.inputs.dim
        with torch.inference_mode(), self.learner.hardware.autocast():
            for group, features_of in self.inputs.for_prediction(predicted):

                def rows(row_nodes: np.ndarray, features_of: Callable[[np.ndarray], Tensor] = features_of) -> Tensor:
                    return self._node_features(embeddings[row_nodes], features_of(row_nodes))

                for nodes, values in self.learner.layerwise.logits(gnn, dim, rows, group):
                    logits[nodes] = to_float16(values)

    def _propagate_in_memory(self, logits: np.ndarray, embeddings: np.ndarray) -> None:
        learner, settings = self.learner, GNNSettings(label_input=self.settings.label_input)
        gnn_learner = GNNLearner(
            build=lambda dim_in, num_classes: self.model.gnn,
            graphs=learner.graphs,
            make_optimizer=lambda parameters: (None, None),  # it only predicts
            settings=settings,
            validation=self.validation,
            hardware=learner.hardware,
            predicted=learner.predicted,
        )
        gnn_learner.start(self.targets, self._all_features(embeddings)).predict(logits)

    def _all_features(self, embeddings: np.ndarray) -> np.ndarray:
        """`_node_features` of all nodes, float32 (N, H + F)."""
        assert isinstance(self.inputs, GNNInputs)
        features = np.empty((len(embeddings), embeddings.shape[1] + self.inputs.x.shape[1]), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(features), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                features[rows] = self._node_features(embeddings[rows], self.inputs.x[rows]).cpu().numpy()
        return features

    def _node_features(self, embeddings: np.ndarray, features: Tensor) -> Tensor:
        """Input of the GNN without labels, float32 (n, H + F), from text embeddings (n, H) and features (n, F)."""
        x = torch.from_numpy(np.asarray(embeddings, dtype=np.float32)).to(self.device)
        return self.model.node_features(x, features.to(self.device))
