"""The E-step: with the GNN fixed, train the language model q_θ on gold and pseudo-labels, then predict all nodes."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from glem_graphgym import processes
from glem_graphgym.data.tokens import TokenStore, budget_batches, padded_tokens, shuffled_batches
from glem_graphgym.disk import kept_array
from glem_graphgym.em.checkpoint import Checkpoint
from glem_graphgym.em.fit import Batches, FitLog, FitPlan, Fitted, Task, Validation, Weights, fit, to_float16
from glem_graphgym.em.objective import glem_loss
from glem_graphgym.em.optim import ClippedAdamW, decay_groups, use_sparse_gradients, warmup_schedule
from glem_graphgym.em.pseudo_labels import StepTargets
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.sharding import local_part, shard_by_layer
from glem_graphgym.models.text_encoder import TextClassifier, TextEncoder
from glem_graphgym.progress import Progress

PROBED_TEXTS, PROBED_TOKENS = 1000, 16  # a model is tried on the first tokens of the longest of the first texts
ENCODING = "encoding"  # name of the checkpoint of `encode_texts`
TRAINING_COST = 4  # time per trained token, inference = 1; measured 4.2 (docs/measurements.md, "Speed")
GPU_MULTIPLE = 8  # tokens; rows of 16 bytes in half precision, the alignment that tensor cores want
BATCHES_PER_ROUND = 16  # batches per rank between two opportunities for a checkpoint, where several ranks encode


@dataclass(frozen=True)
class LMSettings:
    """Settings of the language model's training in one step.

    Attributes:
        epochs: passes over the step's nodes; 0 = the model as it is initialised.
        batch_size: texts per optimizer step; grad_accumulation: micro-batches in which they pass the model.
        lr: peak learning rate; weight_decay: of matrices, not of norms and biases.
        warmup_epochs: epochs (may be a fraction) of linear warm-up; decay: ``linear``, ``cosine`` or ``constant``.
        label_smoothing: ε of gold targets, 0-1; smooth_pseudo: smooth pseudo-labels too.
        clip: upper bound of the gradient norm, 0 = none.
        infer_tokens: padded tokens per inference batch.
    """

    epochs: int = 3
    batch_size: int = 32
    grad_accumulation: int = 1
    lr: float = 2e-5
    weight_decay: float = 0.01
    warmup_epochs: float = 0.6
    decay: str = "linear"
    label_smoothing: float = 0.0
    smooth_pseudo: bool = False
    clip: float = 1.0
    evals_per_epoch: int = 1
    infer_tokens: int = 8192


class LMTask(Task):
    """A language model with the texts and targets of one step; without ``targets`` it can predict, but not train."""

    model: TextClassifier

    def __init__(self, learner: LMLearner, model: TextClassifier, targets: StepTargets | None) -> None:
        super().__init__(model, learner.validation, None if targets is None else targets.gold.class_weights)
        self.targets, self.tokens, self.settings = targets, learner.tokens, learner.settings
        self.hardware = learner.hardware

    @property
    def embedding_dim(self) -> int:
        return self.model.encoder.dim

    # ---- training -------------------------------------------------------------------------------------------------

    def batches(self, epoch: int) -> Batches:
        """This rank's micro-batches of texts of similar length; the same number on every rank."""
        assert self.targets is not None, "a language model that only predicts"
        nodes, target, is_gold = self.targets.batch(epoch)
        rng = np.random.default_rng([self.targets.seed, epoch, 1])
        positions = np.arange(len(nodes))
        batches = shuffled_batches(self.tokens.lengths[nodes], positions, self.settings.batch_size, rng)
        rank, size, count = processes.rank(), processes.world_size(), self.settings.grad_accumulation
        micro_batches = [
            (micro_batch, batch)
            for batch in batches
            for micro_batch in np.array_split(batch[rank::size], count)  # contiguous: batches are sorted by length
        ]

        def prepare(item: tuple[np.ndarray, np.ndarray]) -> tuple[Any, ...]:
            micro_batch, batch = item
            if not len(micro_batch):  # every rank needs the same number of micro-batches: pad with one whose loss is 0
                no_targets = torch.zeros(1, target.shape[1]), torch.zeros(1, dtype=torch.bool), (0, 0)
                return *padded(self.tokens, nodes[batch[:1]], self.hardware.device), *no_targets
            num_gold = int(is_gold[batch].sum())
            counts = (num_gold, len(batch) - num_gold)
            return (
                *padded(self.tokens, nodes[micro_batch], self.hardware.device),
                target[micro_batch],
                is_gold[micro_batch],
                counts,
            )

        return Batches(micro_batches, prepare)

    def forward(self, batch: tuple[Any, ...]) -> Tensor:
        assert self.targets is not None
        ids, mask, target, is_gold, counts = batch
        logits, _ = self.model(ids, mask)
        settings = self.settings
        loss_options = (self.targets.weight, settings.label_smoothing, counts, settings.smooth_pseudo)
        return glem_loss(logits, target, is_gold, *loss_options, class_weights=self.class_weights)

    def validated(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        batches = list(budget_batches(self.tokens.lengths, self.validation.nodes, self.settings.infer_tokens))
        local_batches = processes.share(batches, even=self.hardware.shards)
        prepared = Batches(local_batches, lambda nodes: padded(self.tokens, nodes, self.hardware.device)).prepared(
            self.hardware.device
        )
        for nodes, (ids, mask) in zip(local_batches, prepared, strict=True):
            yield nodes, self.model(ids, mask)[0]

    def optimizer(self, num_steps: int) -> tuple[torch.optim.Optimizer, Any, str]:
        groups = decay_groups(self.model, self.settings.weight_decay)
        return lm_optimizer(groups, self.settings, self.hardware, num_steps)

    # ---- prediction -----------------------------------------------------------------------------------------------

    def predict(
        self,
        logits: np.ndarray,
        embeddings: np.ndarray,
        title: str = "predicting",
        nodes: np.ndarray | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        """Write logits (N, C) and text embeddings (N, H) of ``nodes``, int64 (n,), None = all; see `encode_texts`."""
        options = (self.tokens, nodes, self.settings.infer_tokens, title, checkpoint, self.hardware.shards)
        with torch.inference_mode(), self.hardware.autocast():
            encode_texts(self._on_device().eval(), (logits, embeddings), self.hardware.device, *options)

    def shard(self) -> LMTask:
        shard_by_layer(self.model, self.hardware.mesh(), self.hardware.dtype)
        return self

    def _on_device(self) -> TextClassifier:
        return self.shard().model if self.hardware.shards else self.model.to(self.hardware.device)

    # ---- checks of a user's model, before long work -----------------------------------------------------------------

    def try_step(self, hardware: Hardware) -> None:
        """Run forward and backward on two short texts; FloatingPointError if the loss or a gradient is not finite."""
        model = self._on_device().train()
        _choose_sparse_gradients(model, hardware)
        ids, mask = self._short_texts()
        with hardware.autocast():
            logits, _ = model(ids, mask)
        loss = torch.nn.functional.cross_entropy(logits.float(), torch.zeros_like(ids[:, 0]))
        model.zero_grad()
        loss.backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        values = [loss, *(grad._values() if grad.is_sparse else local_part(grad) for grad in grads)]
        if not all(bool(value.isfinite().all()) for value in values):
            raise FloatingPointError("the loss or a gradient is not finite")

    def padding_error(self) -> float:
        """Relative difference between a text's embedding alone and padded to the length of a longer one, in float32."""
        model, (ids, mask) = self._on_device().eval(), self._short_texts()
        length = int(mask[0].sum())
        # Sharded weights are gathered in the type of the matrix products, so the forward pass needs autocast.
        with torch.inference_mode(), self.hardware.autocast() if self.hardware.shards else contextlib.nullcontext():
            in_batch, alone = model(ids, mask)[1][0], model(ids[:1, :length], mask[:1, :length])[1][0]
        return float((in_batch - alone).norm() / alone.norm().clamp(min=1e-6))

    def _short_texts(self) -> tuple[Tensor, Tensor]:
        """Ids and mask (2, L) of two texts: half of a text's first tokens, padded, and all of them."""
        node = int(np.argmax(self.tokens.lengths[:PROBED_TEXTS]))
        ids, mask = (array[:, :PROBED_TOKENS] for array in padded(self.tokens, np.array([node, node])))
        half = max(1, ids.shape[1] // 2)
        ids[0, half:], mask[0, half:] = self.tokens.pad_id, 0
        return ids.to(self.hardware.device), mask.to(self.hardware.device)

    def encode_longest(self) -> None:
        """Encode the longest text, so that a model that cannot take its length raises its error now."""
        model = self._on_device().eval()
        ids, mask = padded(self.tokens, np.array([np.argmax(self.tokens.lengths)]))
        with torch.inference_mode(), self.hardware.autocast():
            model(ids.to(self.hardware.device), mask.to(self.hardware.device))


@dataclass(frozen=True)
class LMLearner:
    """Learner of q_θ(y_n | s_n), the LM on N texts.

    ``build`` makes a model with pretrained weights and the dropouts of its step; ``validation`` selects the weights.
    """

    tokens: TokenStore
    build: Callable[[], TextClassifier]
    settings: LMSettings
    validation: Validation
    hardware: Hardware

    def start(self, targets: StepTargets | None = None, weights: Weights | None = None) -> LMTask:
        """A task with pretrained weights or, if given, ``weights``; without ``targets`` it can only predict."""
        model = self.build()
        if weights is not None:
            model.load_state_dict(weights)
        return LMTask(self, model, targets)

    def model_for(self, width: int, num_classes: int) -> TextClassifier:
        """The model of a step; the ``width`` of node features does not matter."""
        return self.build()

    def work(self, targets: StepTargets, encoded: np.ndarray) -> dict[str, float]:
        """Work of a step by progress-bar unit, in tokens of inference; ``encoded``: nodes to encode after training."""
        lengths, settings = self.tokens.lengths, self.settings
        validated_tokens = int(lengths[self.validation.nodes].sum())  # batches are sorted by length: hardly any padding
        nodes, rng = targets.like_an_epoch(), np.random.default_rng(targets.seed)
        batches = shuffled_batches(lengths, nodes, settings.batch_size, rng)
        trained_tokens = padded_tokens(lengths, batches, settings.grad_accumulation)
        epoch_work = TRAINING_COST * trained_tokens + settings.evals_per_epoch * validated_tokens
        return {"batch": settings.epochs * epoch_work, "token": int(lengths[encoded].sum())}

    def fit(
        self, targets: StepTargets, title: str, init: Weights | None = None, checkpoint: Checkpoint | None = None
    ) -> Fitted:
        """Train a new model on ``targets``, from pretrained weights or those of ``init``; see `em.fit.fit`."""
        task = self.start(targets, init)
        return Fitted(task, fit_lm(task, self.settings, self.hardware, title, checkpoint))


def fit_lm(
    task: Task, settings: LMSettings, hardware: Hardware, title: str, checkpoint: Checkpoint | None = None
) -> FitLog:
    """Train the language model of a task, or a module that contains one."""
    _choose_sparse_gradients(task.model, hardware)
    plan = FitPlan(
        title=title,
        epochs=settings.epochs,
        evals_per_epoch=settings.evals_per_epoch,
        grad_accumulation=settings.grad_accumulation,
        clip=0.0 if _optimizer_clips(hardware) else settings.clip,
    )
    return fit(task, plan, hardware, checkpoint)


def _choose_sparse_gradients(model: nn.Module, hardware: Hardware) -> None:
    """Give large embeddings sparse gradients where these are faster and possible: unscaled, in one process on a CPU."""
    if hardware.accelerator == "cpu" and not hardware.scales_gradients and processes.world_size() == 1:
        use_sparse_gradients(model)


def _optimizer_clips(hardware: Hardware) -> bool:
    """Whether the optimizer clips gradients itself: it cannot if they are scaled or sharded."""
    return not hardware.scales_gradients and not hardware.shards


def lm_optimizer(
    groups: list[dict], settings: LMSettings, hardware: Hardware, num_steps: int
) -> tuple[torch.optim.Optimizer, Any, str]:
    """AdamW on parameter ``groups`` and its schedule, counted in steps; see `Task.optimizer`."""
    optimizer = (
        ClippedAdamW(groups, settings.lr, settings.weight_decay, settings.clip)
        if _optimizer_clips(hardware)
        # Scaled gradients: the fused kernel would unscale them only after clipping.
        else torch.optim.AdamW(
            groups, settings.lr, weight_decay=settings.weight_decay, fused=not hardware.scales_gradients
        )
    )
    warmup = settings.warmup_epochs * num_steps / settings.epochs
    return optimizer, warmup_schedule(optimizer, warmup, num_steps, settings.decay), "step"


def padded(tokens: TokenStore, nodes: np.ndarray, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, L) of the nodes' texts; for a GPU, L is rounded up to a multiple of `GPU_MULTIPLE`.

    L never exceeds the longest of all texts: a model may have no positions beyond it.
    """
    ids, mask = (torch.from_numpy(array) for array in tokens.pad(nodes))
    if device is None or device.type != "cuda":
        return ids, mask
    length = ids.shape[1]
    padding = min(-length % GPU_MULTIPLE, tokens.longest - length)
    return F.pad(ids, (0, padding), value=tokens.pad_id), F.pad(mask, (0, padding))


class TextParts(NamedTuple):
    """Texts in micro-batches of similar length, ids and mask (b, L) each; ``order``, int64 (n,), sorts them back."""

    padded: tuple[tuple[Tensor, Tensor], ...]
    order: Tensor


def text_parts(tokens: TokenStore, nodes: np.ndarray, micro_batch_tokens: int) -> TextParts:
    """Texts of ``nodes``, int64 (n,), in micro-batches of at most ``micro_batch_tokens`` padded tokens, or one text."""
    micro_batches = list(budget_batches(tokens.lengths[nodes], np.arange(len(nodes)), micro_batch_tokens))
    order = torch.from_numpy(np.argsort(np.concatenate(micro_batches)))
    return TextParts(tuple(padded(tokens, nodes[micro_batch]) for micro_batch in micro_batches), order)


def encode_in_parts(encoder: TextEncoder, texts: TextParts, recompute_from: int | None = None) -> Tensor:
    """Text embeddings (n, H), one micro-batch at a time.

    With ``recompute_from`` micro-batches or more (None: never), each is recomputed in the backward pass: a step then
    needs the memory of one micro-batch, and about a third more time.
    """
    recompute = recompute_from is not None and len(texts.padded) >= recompute_from and torch.is_grad_enabled()
    embeddings = [
        recomputed(encoder, ids, mask, use_reentrant=False) if recompute else encoder(ids, mask)
        for ids, mask in texts.padded
    ]
    return torch.cat(embeddings).index_select(0, texts.order)


def open_predictions(folder: Path, name: str, rows: int, columns: int, nodes: np.ndarray | None = None) -> np.ndarray:
    """Open ``folder/name.npy``, float16 (rows, columns), memory-mapped for writing: zeros, or what a killed run wrote.

    Disk space is allocated for the rows of ``nodes`` alone, int64 (n,), increasing; None = for all. All ranks of rank
    0's machine map the same file; those of other machines, which write nothing, get zeros in memory.

    Raises:
        DiskFullError: there is no room for the file.
    """
    file = folder / f"{name}.npy"
    array = kept_array(file, np.float16, (rows, columns), nodes) if processes.rank() == 0 else None
    processes.barrier()
    if array is not None:
        return array
    on_first_machine = processes.rank_info().machine == 0
    return np.load(file, mmap_mode="r+") if on_first_machine else np.zeros((rows, columns), dtype=np.float16)


def encode_texts(
    model: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
    arrays: Sequence[np.ndarray],
    device: torch.device,
    tokens: TokenStore,
    nodes: np.ndarray | None,
    infer_tokens: int,
    title: str,
    checkpoint: Checkpoint | None,
    sharded: bool = False,
) -> None:
    """Run ``model`` on the texts of ``nodes``, int64 (n,), None = all; write its outputs to their rows of ``arrays``.

    Batches of about ``infer_tokens`` padded tokens are dealt to the ranks in turn. Ranks on rank 0's machine write into
    the arrays; the others send their results to rank 0 while they compute the next.

    Args:
        model: ids and mask (B, L) -> tensors (B, D), one per array; the arrays are float16 (N, D), memory-mapped.
        checkpoint: counts the batches that are in the arrays; written now and then, and resumed from.
        sharded: whether weights are sharded, so that all ranks must call the model equally often.
    """
    nodes = np.arange(len(tokens)) if nodes is None else nodes
    batches = budget_batches(tokens.lengths, nodes, infer_tokens)
    info, width = processes.rank_info(), sum(array.shape[1] for array in arrays)
    saved = checkpoint.read(ENCODING) if checkpoint else None
    num_done = int(saved["batches"]) if saved and saved["infer_tokens"] == infer_tokens else 0
    # The longest texts come first, so a bar that counted texts would mislead.
    total = int(tokens.lengths[nodes].sum())
    with Progress(total=total, desc=title, unit="token", unit_scale=True, disable=info.rank > 0, leave=False) as bar:
        bar.update(sum(int(tokens.lengths[batch].sum()) for batch in itertools.islice(batches, num_done)))
        sending = None
        while round_batches := list(itertools.islice(batches, info.size * BATCHES_PER_ROUND if info.size > 1 else 1)):
            batches_of_rank = [processes.share(round_batches, rank, even=sharded) for rank in range(info.size)]
            to_send = []
            for batch in batches_of_rank[info.rank]:
                ids, mask = (tensor.to(device) for tensor in padded(tokens, batch, device))
                values = [to_float16(tensor) for tensor in model(ids, mask)]
                if info.machine == 0:
                    _write_rows(arrays, batch, values)
                else:
                    to_send.append(np.concatenate(values, axis=1))
            if to_send:
                if sending is not None:
                    sending.wait()
                sending = processes.send_to_rank_zero(np.concatenate(to_send))
            for rank in range(info.local_size, info.size if info.rank == 0 else 0):
                if batches_of_rank[rank]:
                    nodes_sent = np.concatenate(batches_of_rank[rank])
                    rows = processes.receive(rank, len(nodes_sent) * width, np.float16).reshape(len(nodes_sent), width)
                    _write_rows(
                        arrays,
                        nodes_sent,
                        np.split(rows, np.cumsum([array.shape[1] for array in arrays])[:-1], axis=1),
                    )
            bar.update(sum(int(tokens.lengths[batch].sum()) for batch in round_batches))
            num_done += len(round_batches)
            if checkpoint and checkpoint.due():
                for array in arrays:
                    if isinstance(array, np.memmap):
                        array.flush()
                checkpoint.write(ENCODING, {"batches": num_done, "infer_tokens": infer_tokens})
        if sending is not None:
            sending.wait()
    processes.barrier()  # from here on all rows are written


def _write_rows(arrays: Sequence[np.ndarray], nodes: np.ndarray, values: Sequence[np.ndarray]) -> None:
    for array, rows in zip(arrays, values, strict=True):
        array[nodes] = rows
