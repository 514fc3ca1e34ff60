"""The E-step: with the GNN fixed, train the language model q_θ on gold and pseudo-labels, then predict all nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from glem_graphgym import processes
from glem_graphgym.data.tokens import TokenStore, budget_batches, shuffled_batches
from glem_graphgym.disk import new_array
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.optim import ClippedAdamW, adamw, decay_groups, use_sparse_gradients, warmup_schedule
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.em.stage import FitLog, FitPlan, Hardware, Task, Validation, Weights, fit, half
from glem_graphgym.models.text_encoder import TextClassifier, TextEncoder
from glem_graphgym.progress import Progress

TRIED_AMONG, TRIED_TOKENS = 1000, 16  # texts of which the first tokens of the longest try a model
ROUND = 16  # batches that each of several processes encodes before the first collects them


@dataclass(frozen=True)
class LMSettings:
    """How the language model is trained in one step.

    Attributes:
        epochs: passes over the step's nodes; 0 = the model as it is initialised.
        batch_size: texts an optimizer step.
        accumulate: parts in which a batch goes through the model, to save memory; the step's size stays the same.
        lr: peak learning rate; weight_decay: of matrices, not of norms and biases.
        warmup_epochs: epochs (may be a fraction) of linear warm-up; decay: ``linear``, ``cosine`` or ``constant``.
        label_smoothing: share 0-1, of gold targets; smooth_pseudo: of pseudo-labels too.
        clip: upper bound of the gradient norm, 0 = none.
        evals_per_epoch, patience: how often validation is scored, and after how many scores without a better one
            training stops (0 = never).
        infer_tokens: padded tokens in an inference batch.
    """

    epochs: int = 3
    batch_size: int = 32
    accumulate: int = 1
    lr: float = 2e-5
    weight_decay: float = 0.01
    warmup_epochs: float = 0.6
    decay: str = "linear"
    label_smoothing: float = 0.0
    smooth_pseudo: bool = False
    clip: float = 1.0
    evals_per_epoch: int = 1
    patience: int = 0
    infer_tokens: int = 8192


class LMLearner:
    """q_θ(y_n | s_n) with its tokens: `fit` it on a step's targets, `predict` all nodes.

    Args:
        tokens: N texts.
        build: makes the model of a step, with pretrained weights and the step's dropouts.
        validation: selects the weights.
        hardware: device and precision.
    """

    def __init__(
        self,
        tokens: TokenStore,
        build: Callable[[], TextClassifier],
        settings: LMSettings,
        validation: Validation,
        hardware: Hardware,
    ) -> None:
        self.tokens, self.build, self.settings = tokens, build, settings
        self.validation, self.hardware = validation, hardware
        self.model: TextClassifier | None = None

    def fit(self, targets: StepTargets, title: str, init: Weights | None = None) -> FitLog:
        """Train a new model on ``targets``, from pretrained weights or those of ``init``."""
        self.load(init)
        assert self.model is not None
        task = _LMTask(self.model, self.validation, self.tokens, targets, self.settings, self.hardware)
        return fit_lm(task, self.settings, self.hardware, title)

    def load(self, weights: Weights | None) -> None:
        """Take a new model with pretrained weights or, where given, ``weights``."""
        self.model = self.build()
        if weights is not None:
            self.model.load_state_dict(weights)

    def predict(
        self,
        logits: np.ndarray,
        embeddings: np.ndarray,
        title: str = "predicting",
        nodes: np.ndarray | None = None,
    ) -> None:
        """Write logits (N, C) and text embeddings (N, H) into the given arrays (float16, memory-mapped).

        Of ``nodes``, int64 (n,), alone where given; the other rows are left as they are. Processes that work together
        are dealt batches in turn, which are equal in padded tokens; the first one writes what all have computed, so
        that no disk has to be shared for it, and the others' arrays stay as they are.
        """
        assert self.model is not None, "fit or load a model first"
        model = self.model.to(self.hardware.device).eval()
        nodes = np.arange(len(self.tokens)) if nodes is None else nodes
        bar = Progress(total=len(nodes), desc=title, unit="text", disable=processes.rank() > 0, leave=False)
        batches = budget_batches(self.tokens.lengths, nodes, self.settings.infer_tokens)
        rank, size = processes.rank(), processes.world_size()
        with torch.inference_mode(), self.hardware.autocast(), bar:
            while dealt := list(itertools.islice(batches, size * ROUND if size > 1 else 1)):
                encoded = [(batch, *self._encode(model, batch)) for batch in dealt[rank::size]]
                for batch, class_logits, embedding in itertools.chain(*processes.gather_to_first(encoded)):
                    logits[batch], embeddings[batch] = class_logits, embedding
                    bar.update(len(batch))

    def _encode(self, model: TextClassifier, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Logits (B, C) and text embeddings (B, H) of the nodes' texts, float16."""
        ids, mask = (torch.from_numpy(array).to(self.hardware.device) for array in self.tokens.pad(nodes))
        class_logits, embedding = model(ids, mask)
        return half(class_logits), half(embedding)

    def try_step(self, hardware: Hardware) -> None:
        """Train on two short texts with the model that is loaded, as far as the gradients.

        Raises:
            FloatingPointError: the loss or a gradient is not finite. Whatever else a model may raise.
        """
        assert self.model is not None, "fit or load a model first"
        model = self.model.to(hardware.device).train()
        _use_gradients(model, hardware)
        ids, mask = self._short_texts()
        with hardware.autocast():
            logits, _ = model(ids, mask)
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.zeros_like(ids[:, 0]))
        model.zero_grad()
        loss.backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        values = [loss, *(grad._values() if grad.is_sparse else grad for grad in grads)]
        if not all(bool(value.isfinite().all()) for value in values):
            raise FloatingPointError("the loss or a gradient is not finite")

    def padding_error(self) -> float:
        """Relative difference of a short text's embeddings alone and padded beside a longer one, in float32."""
        assert self.model is not None, "fit or load a model first"
        model, (ids, mask) = self.model.to(self.hardware.device).eval(), self._short_texts()
        length = int(mask[0].sum())
        with torch.inference_mode():
            padded, alone = model(ids, mask)[1][0], model(ids[:1, :length], mask[:1, :length])[1][0]
        return float((padded - alone).norm() / alone.norm().clamp(min=1e-6))

    def _short_texts(self) -> tuple[Tensor, Tensor]:
        """Ids (2, L) and mask (2, L) of a text's first tokens and, padded, of half as many."""
        node = int(np.argmax(self.tokens.lengths[:TRIED_AMONG]))
        ids, mask = (array[:, :TRIED_TOKENS] for array in self.tokens.pad(np.array([node, node])))
        half = max(1, ids.shape[1] // 2)
        ids[0, half:], mask[0, half:] = self.tokens.pad_id, 0
        return torch.from_numpy(ids).to(self.hardware.device), torch.from_numpy(mask).to(self.hardware.device)

    def encode_longest(self) -> None:
        """Encode the longest text with the model that is loaded: whatever a model cannot take, it says then."""
        assert self.model is not None, "fit or load a model first"
        model = self.model.to(self.hardware.device).eval()
        with torch.inference_mode(), self.hardware.autocast():
            self._encode(model, np.array([np.argmax(self.tokens.lengths)]))

    @property
    def embedding_dim(self) -> int:
        assert self.model is not None, "fit or load a model first"
        return self.model.encoder.dim


class _LMTask(Task):
    """Batches of texts with targets, in buckets of similar length."""

    model: TextClassifier

    def __init__(
        self,
        model: TextClassifier,
        validation: Validation,
        tokens: TokenStore,
        targets: StepTargets,
        settings: LMSettings,
        hardware: Hardware,
    ) -> None:
        super().__init__(model, validation)
        self.tokens, self.targets, self.settings, self.hardware = tokens, targets, settings, hardware

    def train_dataloader(self) -> DataLoader:
        nodes, target, is_gold = self.targets.batch(self.current_epoch)
        rng = np.random.default_rng([self.targets.seed, self.current_epoch, 1])
        places = np.arange(len(nodes))
        batches = shuffled_batches(self.tokens.lengths[nodes], places, self.settings.batch_size, rng)
        rank, size = processes.rank(), processes.world_size()
        parts = [
            (part, batch)
            for batch in batches
            for part in np.array_split(batch[rank::size], self.settings.accumulate)  # as similar in length as can be
        ]

        def collate(item: tuple[np.ndarray, np.ndarray]) -> tuple[Any, ...]:
            part, batch = item
            num_gold = int(is_gold[batch].sum())
            counts = (num_gold, len(batch) - num_gold)
            if not len(part):  # every step takes as many parts, of every process: here one that counts for nothing
                ids, mask = self.tokens.pad(nodes[batch[:1]])
                nothing = torch.zeros(1, target.shape[1]), torch.zeros(1, dtype=torch.bool)
                return torch.from_numpy(ids), torch.from_numpy(mask), *nothing, counts
            ids, mask = self.tokens.pad(nodes[part])
            return torch.from_numpy(ids), torch.from_numpy(mask), target[part], is_gold[part], counts

        return DataLoader(parts, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        every = list(budget_batches(self.tokens.lengths, self.validation.nodes, self.settings.infer_tokens))
        # Lightning leaves out a validation without batches, for which the other processes would wait.
        batches = every[processes.rank() :: processes.world_size()] or every[:1]

        def collate(batch: np.ndarray) -> tuple[np.ndarray, Tensor, Tensor]:
            ids, mask = self.tokens.pad(batch)
            return batch, torch.from_numpy(ids), torch.from_numpy(mask)

        return DataLoader(batches, batch_size=None, collate_fn=collate)  # type: ignore[arg-type]

    def training_step(self, batch: tuple[Any, ...], batch_idx: int) -> Tensor:
        ids, mask, target, is_gold, counts = batch
        logits, _ = self.model(ids, mask)
        settings = self.settings
        smoothing, weight = settings.label_smoothing, self.targets.weight
        loss = glem_loss(logits, target, is_gold, weight, smoothing, counts, settings.smooth_pseudo)
        # Means over parts and over processes are taken, whose sum is the batch's loss.
        return loss * settings.accumulate * processes.world_size()

    def validation_step(self, batch: tuple[np.ndarray, Tensor, Tensor], batch_idx: int) -> None:
        nodes, ids, mask = batch
        logits, _ = self.model(ids, mask)
        self.see(nodes, logits)

    def configure_optimizers(self) -> Any:
        groups = decay_groups(self.model, self.settings.weight_decay)
        return lm_optimizers(groups, self.settings, self.hardware, float(self.trainer.estimated_stepping_batches))


def fit_lm(task: Task, settings: LMSettings, hardware: Hardware, title: str) -> FitLog:
    """Train a task's language model, or a module that holds one, as `settings` say."""
    _use_gradients(task.model, hardware)
    plan = FitPlan(
        title=title,
        epochs=settings.epochs,
        eval_every=1 / settings.evals_per_epoch,
        patience=settings.patience,
        accumulate=settings.accumulate,
        clip=settings.clip if hardware.scales_gradients else 0.0,
        new_batches=True,
    )
    return fit(task, plan, hardware)


def _use_gradients(model: nn.Module, hardware: Hardware) -> None:
    """Let large embeddings have the kind of gradients that is fast on ``hardware``."""
    if hardware.accelerator == "cpu" and not hardware.scales_gradients and processes.world_size() == 1:
        use_sparse_gradients(model)


def lm_optimizers(groups: list[dict], settings: LMSettings, hardware: Hardware, total_steps: float) -> dict[str, Any]:
    """AdamW on ``groups`` of parameters and its schedule, counted in steps, as Lightning takes them."""
    optimizer = (
        adamw(groups, settings.lr, settings.weight_decay, fused=False)
        if hardware.scales_gradients
        else ClippedAdamW(groups, settings.lr, settings.weight_decay, settings.clip)
    )
    warmup = settings.warmup_epochs * total_steps / settings.epochs
    schedule = warmup_schedule(optimizer, warmup, total_steps, settings.decay)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def encode_in_parts(
    encoder: TextEncoder,
    tokens: TokenStore,
    nodes: np.ndarray,
    part_tokens: int,
    device: torch.device,
    recompute_from: int | None = None,
) -> Tensor:
    """Text embeddings (n, H) of ``nodes``, int64 (n,), in parts of similar length and ``part_tokens`` padded tokens.

    From ``recompute_from`` parts on (None: never) each is computed anew in the backward pass, so that a step takes the
    memory of one part, and about a third more time.
    """
    parts = list(budget_batches(tokens.lengths[nodes], np.arange(len(nodes)), part_tokens))
    recompute = recompute_from is not None and len(parts) >= recompute_from and torch.is_grad_enabled()
    found = []
    for part in parts:
        ids, mask = (torch.from_numpy(array).to(device) for array in tokens.pad(nodes[part]))
        if recompute:
            found.append(checkpoint(encoder, ids, mask, use_reentrant=False))
        else:
            found.append(encoder(ids, mask))
    order = torch.from_numpy(np.argsort(np.concatenate(parts))).to(device)
    return torch.cat(found).index_select(0, order)


def open_predictions(folder: Path, name: str, rows: int, columns: int, nodes: np.ndarray | None = None) -> np.ndarray:
    """New float16 zeros (rows, columns) in ``folder/name.npy``, memory-mapped for writing.

    On disk they take the space of ``nodes`` alone, int64 (n,), increasing; None = of all rows. In other processes than
    the first, which write nothing, they take none.

    Raises:
        DiskFullError: there is no room for them; nothing is left of the file.
    """
    if processes.rank() > 0:
        nodes = np.empty(0, dtype=np.int64)
    return new_array(folder / f"{name}.npy", np.float16, (rows, columns), nodes)
