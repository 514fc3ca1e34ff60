"""Fit one module: train, watch the validation score, keep the best weights. The one place that trains."""

from __future__ import annotations

import logging
import math
import signal
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from glem_graphgym import processes
from glem_graphgym.models.shared_norm import share_batch_norms
from glem_graphgym.progress import Progress

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Validation:
    """What selects weights: the validation nodes and a score of their logits (float (n, C) -> float, higher wins)."""

    nodes: np.ndarray
    score: Callable[[np.ndarray], float]


@dataclass(frozen=True)
class Hardware:
    """Where a stage runs.

    Attributes:
        accelerator: ``cpu`` or ``cuda``.
        precision: Lightning's name: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
    """

    accelerator: str = "cpu"
    precision: str = "32-true"

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator)

    @property
    def dtype(self) -> torch.dtype:
        """The type that matrix products are computed in, and that large inputs are kept in."""
        types = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
        return types[self.precision]

    @property
    def scales_gradients(self) -> bool:
        """For float16. They are then clipped by whoever unscales them, not by the optimizer."""
        return self.precision == "16-mixed"

    def autocast(self) -> torch.autocast:
        """The precision of training, for a forward pass outside of the trainer."""
        mixed = self.precision != "32-true"
        return torch.autocast(self.accelerator, dtype=self.dtype if mixed else None, enabled=mixed)


@dataclass(frozen=True)
class FitPlan:
    """How long and how to train.

    Attributes:
        title: shown beside the progress bar.
        epochs: upper bound; 0 trains nothing.
        eval_every: epochs between validations; below 1 several times an epoch. The end of training is validated too.
        patience: evaluations without a better score before training stops; 0 = never stops early.
        accumulate: batches whose gradients make one optimizer step.
        clip: upper bound of the gradient norm; 0 = none.
        new_batches: whether every epoch asks the task for its batches anew.
    """

    title: str
    epochs: int
    eval_every: float = 1.0
    patience: int = 0
    accumulate: int = 1
    clip: float = 0.0
    new_batches: bool = False


@dataclass
class FitLog:
    """What training left behind: one row of ``history`` an evaluation, and which was best."""

    best_epoch: float = 0.0
    best_score: float = -math.inf
    epochs: int = 0
    history: list[dict[str, float]] = field(default_factory=list)


def half(values: Tensor) -> np.ndarray:
    """float16 array of a tensor, with what float16 cannot hold cut off at its limits."""
    limit = torch.finfo(torch.float16).max
    return values.detach().float().clamp(-limit, limit).cpu().numpy().astype(np.float16)


class Task(pl.LightningModule):
    """A model with its objective and batches. Subclasses give loaders, ``training_step`` and ``validation_step``.

    ``validation_step`` notes the batch's logits (`see`); the epoch's score is read off all of them, in node order.
    Where processes train together, each takes its parts of a batch and of the validation nodes; a loss is then
    multiplied by their number, because the gradients' mean over processes is taken.
    """

    def __init__(self, model: nn.Module, validation: Validation) -> None:
        super().__init__()
        self.model = model
        self.validation = validation
        self.clip = 0.0
        self.valid_score = -math.inf
        self._seen: list[tuple[np.ndarray, np.ndarray]] = []

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        # Lightning's own clipping refuses every fused optimizer, for the sake of those that unscale float16 gradients.
        if self.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)

    def see(self, nodes: np.ndarray, logits: Tensor) -> None:
        """Take note of validation nodes' logits (n, C)."""
        self._seen.append((nodes, logits.detach().float().cpu().numpy()))

    def on_validation_epoch_end(self) -> None:
        seen = [batch for of_process in processes.gather(self._seen) for batch in of_process]
        self._seen.clear()
        _, first = np.unique(np.concatenate([nodes for nodes, _ in seen]), return_index=True)
        self.valid_score = self.validation.score(np.concatenate([logits for _, logits in seen])[first])


def fit(task: Task, plan: FitPlan, hardware: Hardware) -> FitLog:
    """Train ``task.model`` and leave it with the weights of its best validation score (the first best on ties).

    All processes that work together train it (DDP) and end with the same weights.
    """
    if plan.epochs == 0:
        return FitLog()
    if processes.world_size() > 1:
        share_batch_norms(task.model)
    task.clip = plan.clip
    keeper = _BestWeights(plan)
    few = plan.eval_every < 1
    with warnings.catch_warnings():
        quiet_lightning()
        trainer = pl.Trainer(
            max_epochs=plan.epochs,
            accelerator=hardware.accelerator,
            **_workers(),
            precision=hardware.precision,  # type: ignore[arg-type]
            accumulate_grad_batches=plan.accumulate,
            val_check_interval=plan.eval_every if few else 1.0,
            check_val_every_n_epoch=1 if few else min(int(plan.eval_every), plan.epochs),
            reload_dataloaders_every_n_epochs=1 if plan.new_batches else 0,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[keeper],
        )
        try:
            trainer.fit(task)
            if keeper.batches > keeper.scored:
                trainer.validate(task, verbose=False)
        except SystemExit as error:  # which Lightning makes of Ctrl-C, without a word
            raise KeyboardInterrupt from error
    keeper.restore(task)
    return keeper.record


def _workers() -> dict[str, Any]:
    """The trainer's arguments for as many processes as work together now."""
    here = processes.place()
    if here.size == 1:
        # One of several processes that trains alone must not take the launcher's variables for its own.
        return {"devices": 1, **({"plugins": [LightningEnvironment()]} if processes.have_joined() else {})}
    strategy = DDPStrategy(
        cluster_environment=TorchElasticEnvironment(),  # `processes.join` has set its variables, whoever started us
        broadcast_buffers=False,  # they are the same everywhere
        find_unused_parameters=True,  # a hub's model may have some
    )
    return {
        "devices": here.local_size,
        "num_nodes": here.machines,
        "strategy": strategy,
        "use_distributed_sampler": False,
    }


class _BestWeights(pl.Callback):
    """Keeps the best weights, ends training when patience runs out, shows progress."""

    def __init__(self, plan: FitPlan) -> None:
        self.plan = plan
        self.record = FitLog()
        self.weights: Weights = {}
        self.since_best = 0
        self.batches = 0  # trained on
        self.scored = 0  # of these, before the last validation
        self.rate = 0.0
        self.losses: list[Tensor] = []
        self.bar: Any = None

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        total = self.plan.epochs * trainer.num_training_batches
        self.bar = Progress(
            total=int(total), desc=self.plan.title, unit="batch", disable=processes.rank() > 0, leave=False
        )
        if processes.world_size() > 1:
            # Lightning's own handler begins to talk to the other processes, in the middle of what they say.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rate = trainer.optimizers[0].param_groups[0]["lr"]  # at the batch's end it is the next one's

    def on_train_batch_end(self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(outputs["loss"].detach() * self.plan.accumulate)  # Lightning has divided by it
        self.batches += 1
        self.bar.update()

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        assert isinstance(task, Task)
        score, self.scored = task.valid_score, self.batches
        epoch = self.batches / max(1, int(trainer.num_training_batches))
        loss = float(np.mean(processes.gather(float(torch.stack(self.losses).mean()) if self.losses else 0.0)))
        self.losses.clear()
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"{self.plan.title}: the training loss is {loss} at epoch {epoch:.2f}; "
                "lower the learning rate, set clipping, or train in higher precision"
            )
        row = {
            "epoch": round(epoch, 4),
            "step": trainer.global_step,
            "loss": loss,
            "valid": score,
            "lr": self.rate,
        }
        self.record.history.append(row)
        self.record.epochs = math.ceil(epoch)
        if score > self.record.best_score:
            self.record.best_score, self.record.best_epoch, self.since_best = score, round(epoch, 4), 0
            self.weights = {name: value.detach().clone() for name, value in task.model.state_dict().items()}
        else:
            self.since_best += 1
        self.bar.set_postfix_str(f"best {100 * self.record.best_score:.1f}%", refresh=False)
        if self.plan.patience and self.since_best >= self.plan.patience:
            trainer.should_stop = True

    def on_fit_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        self.bar.close()

    def restore(self, task: Task) -> None:
        task.model.load_state_dict(self.weights)


def quiet_lightning() -> None:
    """Silence Lightning's hints about devices, workers and loggers, which stand between a user and the scores.

    To be called within `warnings.catch_warnings`.
    """
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true.*")
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    warnings.filterwarnings("ignore", message=".*srun.*")
