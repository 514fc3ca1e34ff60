"""Fit one module: train, validate, keep the best weights. The package's only training loop."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from glem_graphgym import processes
from glem_graphgym.em.checkpoint import Checkpoint
from glem_graphgym.hardware import Hardware
from glem_graphgym.models.autograd import leaves_of
from glem_graphgym.models.shared_norm import share_batch_norms
from glem_graphgym.progress import Progress

Weights = dict[str, Tensor]

# Threads that prepare batches for a GPU: sampling a neighbourhood takes longer than the GPU's step on it.
WORKERS = 4


@dataclass(frozen=True)
class Validation:
    """Selection of weights: validation nodes, and a score of their logits (float (n, C) -> float, higher wins)."""

    nodes: np.ndarray
    score: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class FitPlan:
    """Settings of one fit.

    Attributes:
        title: names its progress bar and its checkpoint.
        epochs: upper bound; 0 trains nothing.
        eval_every: epochs between validations. The end of training is validated too.
        evals_per_epoch: validations, evenly spread, of an epoch that is validated; the last is at its end.
        patience: validations without a better score before training stops; 0 = never stops early.
        grad_accumulation: batches per optimizer step.
        clip: upper bound of the gradient norm; 0 = none.
    """

    title: str
    epochs: int
    eval_every: int = 1
    evals_per_epoch: int = 1
    patience: int = 0
    grad_accumulation: int = 1
    clip: float = 0.0

    def validates(self, epoch: int, batch: int, batches: int) -> bool:
        """Whether validation is due after batch ``batch`` of ``batches`` in ``epoch``; both count from 1."""
        validations, validations_before = (number * self.evals_per_epoch // batches for number in (batch, batch - 1))
        return validations > validations_before and epoch % min(self.eval_every, self.epochs) == 0


@dataclass
class FitLog:
    """Log of one fit.

    Attributes:
        best_epoch, best_score: those of the validation whose weights were kept.
        epochs: number of epochs, including one that was trained in part.
        history: one row per validation.
        train_seconds: time of training, without validation.
    """

    best_epoch: float = 0.0
    best_score: float = -math.inf
    epochs: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    train_seconds: float = 0.0


class Fitted(NamedTuple):
    """A task with its fitted model, and the log of the fit."""

    task: Any
    log: FitLog


class Batches(NamedTuple):
    """The batches of an epoch: ``prepare`` turns each of ``items`` into tensors, independently of the others."""

    items: Sequence[Any]
    prepare: Callable[[Any], Any]

    def prepared(self, device: torch.device) -> Iterator[Any]:
        """Yield each batch on ``device``; for a GPU, `WORKERS` threads prepare batches ahead of their steps.

        On CPU they would take a core from training (docs/measurements.md, "Shared cores").
        """
        if device.type == "cpu":
            return map(self.prepare, self.items)
        batches = prefetched(lambda item: pinned(self.prepare(item)), self.items, WORKERS)
        return (to_device(batch, device) for batch in batches)


def prefetched(prepare: Callable[[Any], Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
    """Yield ``prepare(item)`` for each item in order, computed by ``workers`` threads up to so many items ahead."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(workers, "batches") as threads:
        try:
            for item in items:
                waiting.append(threads.submit(prepare, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def pinned(batch: Any) -> Any:
    """The batch in pinned memory, from which a GPU copies while it computes."""
    return _mapped(batch, lambda x: x.pin_memory() if x.device.type == "cpu" else x)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch on ``device``; copies from pinned memory are asynchronous."""
    return _mapped(batch, lambda x: x.to(device, non_blocking=True))


def _mapped(batch: Any, function: Callable[[Any], Any]) -> Any:
    """Apply ``function`` to each tensor and each graph in nested tuples."""
    if isinstance(batch, tuple):
        mapped = [_mapped(element, function) for element in batch]
        return type(batch)(*mapped) if hasattr(batch, "_fields") else tuple(mapped)
    return function(batch) if hasattr(batch, "pin_memory") else batch


class Task(nn.Module):
    """A model with its objective and its batches.

    Each rank computes a share of every batch and of the validation nodes. The loss of an optimizer step is the sum over
    its micro-batches on all ranks.
    """

    class_weights: Tensor | None  # float32 (C,), for the loss, on the model's device

    def __init__(self, model: nn.Module, validation: Validation, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.model, self.validation = model, validation
        self.register_buffer("class_weights", class_weights, persistent=False)

    def batches(self, epoch: int) -> Batches:
        """The batches of ``epoch``, counted from 0; the same number on every rank."""
        raise NotImplementedError

    def forward(self, batch: Any) -> Tensor:
        """Loss of a batch, scalar."""
        raise NotImplementedError

    def validated(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield this rank's share of the validation nodes: int64 (b,) with their logits (b, C)."""
        raise NotImplementedError

    def shard(self) -> Task:
        """Shard the model's weights among the ranks, unless they are sharded already; returns this task."""
        raise NotImplementedError

    def optimizer(self, num_steps: int) -> tuple[torch.optim.Optimizer, Any, str]:
        """Optimizer, learning-rate schedule, and the schedule's unit: ``step`` (``num_steps`` in all) or ``epoch``."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Hook that `fit` calls after every optimizer step."""

    def score(self) -> float:
        """Validation score of the logits that all ranks computed, sorted by node."""
        local_results = [(nodes, logits.float().cpu().numpy()) for nodes, logits in self.validated()]
        results = [result for rank_results in processes.gather(local_results) for result in rank_results]
        _, first = np.unique(np.concatenate([nodes for nodes, _ in results]), return_index=True)
        return self.validation.score(np.concatenate([logits for _, logits in results])[first])


def fit(task: Task, plan: FitPlan, hardware: Hardware, checkpoint: Checkpoint | None = None) -> FitLog:
    """Train ``task.model`` and leave it with the weights of its best validation score (the first on ties).

    All ranks train it together and end with the same weights or, if ``hardware`` shards them, with their shards.

    Args:
        checkpoint: written now and then; a fit of this title that it contains is resumed, on a CPU bit for bit.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    if plan.epochs == 0:
        return FitLog()
    if processes.world_size() > 1:
        share_batch_norms(task.model)
    batches = task.batches(0)
    count = len(batches.items)
    uses_ddp = processes.world_size() > 1 and not hardware.shards
    fabric = hardware.fabric(task.shard, find_unused=uses_ddp and _has_unused_parameters(task, batches, hardware))
    objective = fabric.setup_module(task)  # moves the parameters to the device, before the optimizer refers to them
    torch_optimizer, schedule, interval = task.optimizer(plan.epochs * math.ceil(count / plan.grad_accumulation))
    optimizer: Any = fabric.setup_optimizers(torch_optimizer)
    state = _State(task, optimizer, schedule, fabric, plan, count, checkpoint, hardware.shards)
    for epoch in range(state.epoch, plan.epochs):
        if epoch > 0:
            batches = task.batches(epoch)
            count = len(batches.items)
        # Without those done before the run was killed.
        remaining = Batches(batches.items[state.batch :], batches.prepare)
        for number, batch in enumerate(remaining.prepared(fabric.device), start=state.batch + 1):
            step_due = number % plan.grad_accumulation == 0 or number == count
            # Sharded gradients are exchanged after each micro-batch: otherwise every rank would hold them in full.
            with fabric.no_backward_sync(objective, enabled=not step_due and not hardware.shards):
                loss = objective(batch)
                fabric.backward(loss * processes.world_size())  # gradients are averaged over ranks; losses add up
            state.record_loss(loss.detach())
            if step_due:
                if plan.clip > 0:
                    fabric.clip_gradients(objective, optimizer, max_norm=plan.clip, error_if_nonfinite=False)
                optimizer.step()
                optimizer.zero_grad()
                task.after_step()
                state.steps += 1
                if interval == "step":
                    schedule.step()
            if plan.validates(epoch + 1, number, count):
                state.validate(epoch + number / count)
            if state.ended:
                break
            if step_due and number < count:
                state.save_if_due(epoch, number)
        if state.ended:
            break
        if interval == "epoch":
            schedule.step()
        state.batch = 0
        state.save_if_due(epoch + 1, 0)
    if state.losses:
        state.validate(float(plan.epochs))
    return state.end()


def _has_unused_parameters(task: Task, batches: Batches, hardware: Hardware) -> bool:
    """Whether on any rank a parameter has no part in the first batch's loss, as in some models from a hub."""
    batch = to_device(batches.prepare(batches.items[0]), hardware.device)
    task.to(hardware.device).eval()  # without dropout: no random number is drawn
    with hardware.autocast():
        reached = leaves_of(task(batch))
    task.train()
    return any(processes.gather(any(p.requires_grad and p not in reached for p in task.parameters())))


class _State:
    """Progress of a fit: ``epoch`` epochs and ``batch`` batches of the next are done.

    ``finished``: training has ended, and the model has the best weights. ``losses``: since the last validation.
    """

    SAVED = ("weights", "losses", "steps", "since_best", "rate", "finished")

    def __init__(
        self,
        task: Task,
        optimizer: Any,
        schedule: Any,
        fabric: Fabric,
        plan: FitPlan,
        count: int,
        checkpoint: Checkpoint | None,
        sharded: bool,
    ) -> None:
        self.task, self.optimizer, self.fabric, self.plan, self.checkpoint = task, optimizer, fabric, plan, checkpoint
        self.sharded = sharded
        precision = fabric.strategy.precision
        self.components = {"task": task.train(), "optimizer": optimizer, "schedule": schedule, "precision": precision}
        self.name = re.sub(r"\W+", "_", plan.title)
        self.log, self.weights = FitLog(), Weights()
        self.losses: list[Tensor] = []
        self.epoch = self.batch = self.steps = self.since_best = 0
        self.rate = 0.0
        self.finished = False
        if checkpoint and (saved := checkpoint.read(self.name, sharded)):
            self._restore(saved)
        batches_left = plan.epochs * count - (self.epoch * count + self.batch)
        quiet = processes.rank() > 0
        self.bar = Progress(total=batches_left, desc=plan.title, unit="batch", disable=quiet, leave=False)
        self.timer_start = time.perf_counter()

    def record_loss(self, loss: Tensor) -> None:
        """Record the loss of a batch."""
        self.losses.append(loss)
        self.rate = self.optimizer.param_groups[0]["lr"]
        self.bar.update()

    def validate(self, epoch: float) -> None:
        """Validate after ``epoch`` epochs (may be a fraction), and keep the weights if they are the best."""
        log = self.log
        local_loss = float(torch.stack(self.losses).mean())  # waits for a GPU's steps, before the time is taken
        log.train_seconds += time.perf_counter() - self.timer_start
        loss = sum(processes.gather(local_loss)) * self.plan.grad_accumulation
        self.losses.clear()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{self.plan.title}: the training loss is {loss} at epoch {epoch:.2f}; "
                "lower the learning rate, set clipping, or train in higher precision"
            )
        self.task.eval()
        with torch.inference_mode(), self.fabric.autocast():
            score = self.task.score()
        self.task.train()
        epoch = round(epoch, 4)
        row = {"epoch": epoch, "step": self.steps, "loss": loss, "valid": score, "lr": self.rate}
        log.history.append(row)
        self.bar.track({f"{self.name}/{key}": value for key, value in row.items() if key != "step"}, self.steps)
        log.epochs = math.ceil(epoch)
        self.since_best += 1
        if score > log.best_score:
            log.best_score, log.best_epoch, self.since_best = score, epoch, 0
            self.weights = {name: value.detach().clone() for name, value in self.task.model.state_dict().items()}
        self.bar.set_postfix_str(f"best {100 * log.best_score:.1f}%", refresh=False)
        self.timer_start = time.perf_counter()

    @property
    def ended(self) -> bool:
        """Whether patience has run out, or the fit was finished before the run was killed."""
        return self.finished or 0 < self.plan.patience <= self.since_best

    def end(self) -> FitLog:
        """Load the best weights into the model, and write them to a checkpoint for the rest of the stage."""
        self.bar.close()
        self.task.model.load_state_dict(self.weights)
        if not self.finished:
            self.finished = True
            self.save_if_due(self.plan.epochs, 0)
        return self.log

    # ---- checkpoints ----------------------------------------------------------------------------------------------

    def save_if_due(self, epoch: int, batch: int) -> None:
        """Write a checkpoint if it is due or the fit is finished; see `_State` for ``epoch`` and ``batch``."""
        if self.checkpoint and (self.finished or self.checkpoint.due()):
            states = (
                {} if self.finished else {name: component.state_dict() for name, component in self.components.items()}
            )
            progress = {name: getattr(self, name) for name in self.SAVED}
            state = {**states, **progress, "log": asdict(self.log), "epoch": epoch, "batch": batch}
            self.checkpoint.write(self.name, state, self.sharded)

    def _restore(self, saved: dict[str, Any]) -> None:
        self.log = FitLog(**saved.pop("log"))
        if not saved["finished"]:
            for name, component in self.components.items():
                component.load_state_dict(saved.pop(name))
        for name, value in saved.items():
            setattr(self, name, value)
        self.losses = [loss.to(self.fabric.device) for loss in self.losses]


def to_float16(values: Tensor) -> np.ndarray:
    """Predictions (n, D) as a float16 array; values beyond float16's range are clipped.

    Raises:
        FloatingPointError: some of them are not a number.
    """
    limit = torch.finfo(torch.float16).max
    array = values.detach().float().clamp(-limit, limit).cpu().numpy().astype(np.float16)
    if wrong := int(np.isnan(array).any(1).sum()):
        raise FloatingPointError(
            f"the trained model's output for {wrong} of {len(array)} nodes is not a number (NaN); lower the learning "
            "rate, or compute in higher precision (lm.precision, gnn.precision)"
        )
    return array
