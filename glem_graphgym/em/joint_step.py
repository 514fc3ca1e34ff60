"""Joint co-training: text encoder and GNN trained end to end, on the texts of sampled neighbourhoods.

The costly way that GLEM replaces, and the baseline it is measured against: a step encodes, with gradient, the text of
every node of its neighbourhoods rather than one text a target.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from glem_graphgym.data.tokens import TokenStore, budget_batches
from glem_graphgym.em.e_step import LMSettings, encode_in_parts, fit_lm, lm_optimizers
from glem_graphgym.em.feature_rows import FeatureRows
from glem_graphgym.em.layerwise import LayerwiseInference, StoredInputs
from glem_graphgym.em.m_step import GNNInputs, GNNLearner, GNNSettings, Structures
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.optim import decay_groups
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.sampled_step import Neighbourhood, Neighbourhoods, even_batches
from glem_graphgym.em.stage import FitLog, Hardware, Task, Validation, Weights, half
from glem_graphgym.memory import is_out_of_memory
from glem_graphgym.models.joint import JointModel
from glem_graphgym.progress import Progress

VALIDATED_AT_ONCE = 8192  # validation nodes whose neighbourhoods are sampled together, each text encoded once
ROWS_AT_ONCE = 1 << 16  # in inference


@dataclass(frozen=True)
class JointSettings:
    """How text encoder and GNN are trained together.

    Attributes:
        lm: of the encoder, as in an E-step; ``batch_size`` counts gold nodes, whose neighbourhoods come on top, and
            ``accumulate`` the parts in which they are sampled and go through the model. Schedule and clipping hold
            for both parts, patience and validations too.
        gnn_lr, gnn_weight_decay: of the GNN, under the same schedule.
        part_tokens: padded tokens of a part of a step's texts: texts of similar length, so that little is padding.
        recompute: compute each part anew in the backward pass, so that a step needs the memory of one part.
        label_input: gold labels as further input, those of the step's own nodes hidden.
    """

    lm: LMSettings
    gnn_lr: float = 0.005
    gnn_weight_decay: float = 0.0
    part_tokens: int = 1024
    recompute: bool = False
    label_input: bool = False


class JointLearner:
    """Text encoder and GNN as one: `fit` them on gold labels, `predict` all nodes.

    Training and validation see sampled neighbourhoods, prediction does not sample: every text is encoded once, and the
    GNN sees all neighbours.

    Args:
        tokens: N texts.
        build: (F, num_classes) -> model with pretrained encoder, for F features beside the embedding.
        structures: as of a `GNNLearner`.
        neighbourhoods: draws them from these structures, one hop a layer of the GNN.
        validation: selects the weights.
        hardware: device and precision.
        predicted: as of a `GNNLearner`.
        layerwise: lets the GNN predict where graph and features are too large to be in memory; its network is then
            `layerwise.Layered`. None: they are in memory.
    """

    def __init__(
        self,
        tokens: TokenStore,
        build: Callable[[int, int], JointModel],
        structures: Structures,
        neighbourhoods: Neighbourhoods,
        settings: JointSettings,
        validation: Validation,
        hardware: Hardware,
        *,
        predicted: np.ndarray | None = None,
        layerwise: LayerwiseInference | None = None,
    ) -> None:
        self.tokens, self.build = tokens, build
        self.structures, self.neighbourhoods = structures, neighbourhoods
        self.settings, self.validation, self.hardware = settings, validation, hardware
        self.predicted, self.layerwise = predicted, layerwise
        self.model: JointModel | None = None
        self.targets: StepTargets | None = None
        self.inputs: GNNInputs | StoredInputs | None = None
        self.costs: dict[str, float] = {}

    def fit(self, targets: StepTargets, features: np.ndarray, title: str) -> FitLog:
        """Train a new model on the gold labels of ``targets``; ``features`` float (N, F) stand beside the embeddings.

        Leaves in ``costs`` what a step and an epoch took.

        Raises:
            MemoryError: a step did not fit; says how large it was.
        """
        self.load(targets, features, None)
        assert self.model is not None
        lm = self.settings.lm
        task = _JointTask(self, targets)
        try:
            log = fit_lm(task, lm, self.hardware, title)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise MemoryError(f"{task.meter.latest} did not fit") from error
        self.costs = task.meter.notes(lm.accumulate)
        return log

    def load(self, targets: StepTargets, features: np.ndarray, weights: Weights | None) -> None:
        """Take a new model for these features, pretrained and fresh or, where given, with ``weights``."""
        self.targets = targets
        labels = targets if self.settings.label_input else None
        if self.layerwise is None:
            self.inputs = GNNInputs(torch.from_numpy(np.asarray(features, dtype=np.float32)), labels)
        else:
            self.inputs = StoredInputs(FeatureRows.of(features), labels, torch.float32)
        self.model = self.build(self.inputs.dim, targets.gold.num_classes)
        if weights is not None:
            self.model.load_state_dict(weights)

    def logits(self, hood: Neighbourhood) -> Tensor:
        """Logits (b, C) of a neighbourhood's seeds; their own gold labels are no input."""
        assert self.model is not None and self.inputs is not None, "fit or load a model first"
        more = self.inputs.rows(hood.nodes, slice(hood.num_seeds)).to(self.hardware.device)
        embeddings = self._encode(hood.nodes)
        return self.model(embeddings, more, hood.structure.to(self.hardware.device))[: hood.num_seeds]

    def _encode(self, nodes: np.ndarray) -> Tensor:
        """Text embeddings (n, H) of ``nodes``, int64 (n,), in parts of similar length."""
        assert self.model is not None
        s, device = self.settings, self.hardware.device
        recompute_from = 1 if s.recompute else None
        return encode_in_parts(self.model.encoder, self.tokens, nodes, s.part_tokens, device, recompute_from)

    def predict(
        self,
        logits: np.ndarray,
        embeddings: np.ndarray,
        title: str = "predicting",
        nodes: np.ndarray | None = None,
    ) -> None:
        """Write logits (N, C) of the ``predicted`` nodes and text embeddings (N, H) into the given arrays (float16,
        memory-mapped), these of ``nodes``, int64 (n,), alone where given.

        The GNN sees all neighbours of all nodes, and the embeddings as they are written.
        """
        assert self.model is not None, "fit or load a model first"
        model = self.model.to(self.hardware.device).eval()
        nodes = np.arange(len(self.tokens)) if nodes is None else nodes
        bar = Progress(total=len(nodes), desc=title, unit="text", leave=False)
        with torch.inference_mode(), self.hardware.autocast(), bar:
            for batch in budget_batches(self.tokens.lengths, nodes, self.settings.lm.infer_tokens):
                ids, mask = (torch.from_numpy(array).to(self.hardware.device) for array in self.tokens.pad(batch))
                embeddings[batch] = half(model.encoder(ids, mask))
                bar.update(len(batch))
        self.propagate(logits, embeddings)

    def propagate(self, logits: np.ndarray, embeddings: np.ndarray) -> None:
        """Write the logits (N, C) that the GNN gives for text embeddings (N, H), seeing all neighbours."""
        assert self.model is not None
        self.model.to(self.hardware.device).eval()
        if self.layerwise is None:
            self._propagate_in_memory(logits, embeddings)
            return
        predicted = np.arange(len(logits)) if self.predicted is None else self.predicted
        with torch.inference_mode(), self.hardware.autocast():
            for nodes, found in self._exact_logits(self.layerwise, embeddings, predicted):
                logits[nodes] = half(found)

    def _exact_logits(
        self, layerwise: LayerwiseInference, embeddings: np.ndarray, nodes: np.ndarray
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Parts of ``nodes``, each with its logits (b, C); no features of all nodes are made."""
        model, inputs = self.model, self.inputs
        assert model is not None
        assert isinstance(inputs, StoredInputs)
        gnn: Any = model.gnn
        for group, more in inputs.for_prediction(nodes):

            def rows(wanted: np.ndarray, more: Callable[[np.ndarray], Tensor] = more) -> Tensor:
                return self._node_features(embeddings[wanted], more(wanted))

            yield from layerwise.logits(gnn, embeddings.shape[1] + inputs.dim, rows, group)

    def _propagate_in_memory(self, logits: np.ndarray, embeddings: np.ndarray) -> None:
        model, targets = self.model, self.targets
        assert model is not None
        assert targets is not None
        exact = GNNLearner(
            lambda dim_in, num_classes: model.gnn,
            self.structures,
            _untrained,
            GNNSettings(label_input=self.settings.label_input),
            self.validation,
            self.hardware,
            predicted=self.predicted,
        )
        exact.load(targets, self._all_features(embeddings), None)
        exact.predict(logits)

    def _all_features(self, embeddings: np.ndarray) -> np.ndarray:
        """float32 (N, H + F): the GNN's input but for labels."""
        assert isinstance(self.inputs, GNNInputs)
        found = np.empty((len(embeddings), embeddings.shape[1] + self.inputs.x.shape[1]), dtype=np.float32)
        with torch.inference_mode():
            for start in range(0, len(found), ROWS_AT_ONCE):
                rows = slice(start, start + ROWS_AT_ONCE)
                found[rows] = self._node_features(embeddings[rows], self.inputs.x[rows]).cpu().numpy()
        return found

    def _node_features(self, embeddings: np.ndarray, more: Tensor) -> Tensor:
        """float32 (n, H + F) of some nodes' text embeddings (n, H) and further features (n, F)."""
        assert self.model is not None
        x = torch.from_numpy(np.asarray(embeddings, dtype=np.float32)).to(self.hardware.device)
        return self.model.node_features(x, more.to(self.hardware.device))

    @property
    def embedding_dim(self) -> int:
        assert self.model is not None, "fit or load a model first"
        return self.model.encoder.dim


def _untrained(parameters: Any) -> Any:
    raise AssertionError("this learner only predicts")


class _Meter:
    """What training costs: texts a step, and seconds of training without those of validation."""

    def __init__(self) -> None:
        self.steps = self.texts = self.tokens = self.most_texts = 0
        self.epochs = self.seconds = 0.0
        self.latest = "a step"
        self._since: float | None = None

    def see(self, hood: Neighbourhood, tokens: int) -> None:
        texts = len(hood.nodes)
        self.steps, self.texts, self.tokens = self.steps + 1, self.texts + texts, self.tokens + tokens
        self.most_texts = max(self.most_texts, texts)
        self.latest = f"a step on the {texts:,} texts ({tokens:,} tokens) around {hood.num_seeds:,} nodes"

    def run(self) -> None:
        if self._since is None:
            self._since = time.perf_counter()

    def halt(self) -> None:
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def notes(self, accumulate: int) -> dict[str, float]:
        steps = max(1, self.steps // accumulate)
        return {
            "steps": steps,
            "texts_per_step": round(self.texts / steps, 1),
            "tokens_per_step": round(self.tokens / steps, 1),
            "most_texts_at_once": self.most_texts,
            "train_seconds_per_epoch": round(self.seconds / max(1.0, self.epochs), 3),
        }


class _JointTask(Task):
    """Batches of gold nodes with freshly sampled neighbourhoods; validation nodes with theirs, sampled once."""

    model: JointModel

    def __init__(self, learner: JointLearner, targets: StepTargets) -> None:
        assert learner.model is not None, "load a model first"
        super().__init__(learner.model, learner.validation)
        self.learner, self.targets = learner, targets
        self.settings = learner.settings
        self.meter = _Meter()

    def train_dataloader(self) -> DataLoader:
        gold, lm = self.targets.gold, self.settings.lm
        target = gold.targets()
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 4])
        order = rng.permutation(len(gold.nodes))
        batches = even_batches(order, lm.batch_size)
        parts = [(part, len(batch)) for batch in batches for part in np.array_split(batch, lm.accumulate)]

        def collate(item: tuple[np.ndarray, int]) -> tuple[Neighbourhood, Tensor, int]:
            part, size = item
            return self.learner.neighbourhoods.around(gold.nodes[part], rng), target[part], size

        return DataLoader(parts, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        nodes = self.validation.nodes
        parts = [nodes[start : start + VALIDATED_AT_ONCE] for start in range(0, len(nodes), VALIDATED_AT_ONCE)]

        def collate(part: np.ndarray) -> Neighbourhood:
            # The same neighbourhoods at every validation: scores differ by the weights alone.
            return self.learner.neighbourhoods.around(part, np.random.default_rng([self.targets.seed, int(part[0]), 5]))

        return DataLoader(parts, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Neighbourhood, Tensor, int], batch_idx: int) -> Tensor:
        hood, target, size = batch
        self.meter.see(hood, int(self.learner.tokens.lengths[hood.nodes].sum()))
        lm = self.settings.lm
        is_gold = torch.ones(len(target), dtype=torch.bool, device=target.device)
        loss = glem_loss(self.learner.logits(hood), target, is_gold, 0.0, lm.label_smoothing, (size, 0))
        return loss * lm.accumulate  # Lightning takes the mean over parts, whose sum is the batch's loss

    def validation_step(self, hood: Neighbourhood, batch_idx: int) -> None:
        self.see(hood.nodes[: hood.num_seeds], self.learner.logits(hood))

    def configure_optimizers(self) -> Any:
        s = self.settings
        of_encoder = decay_groups(self.model.encoder, s.lm.weight_decay)
        of_gnn = [
            {**group, "lr": s.gnn_lr}
            for part in (self.model.norm, self.model.gnn)
            for group in decay_groups(part, s.gnn_weight_decay)
        ]
        groups = [group for group in (*of_encoder, *of_gnn) if group["params"]]
        return lm_optimizers(groups, s.lm, self.learner.hardware, float(self.trainer.estimated_stepping_batches))

    # ---- the clock ------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self) -> None:
        self.meter.run()

    def on_validation_start(self) -> None:
        self.meter.halt()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.meter.run()

    def on_train_epoch_end(self) -> None:
        self.meter.halt()
        self.meter.epochs += 1
