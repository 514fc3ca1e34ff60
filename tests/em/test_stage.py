from __future__ import annotations

import copy
import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from glem_graphgym.em.stage import FitPlan, Hardware, Task, Validation, fit, half

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
Y = torch.randn(12, 1, generator=torch.Generator().manual_seed(1))


class Script:
    """A validation score that is read off a list, one number an evaluation."""

    def __init__(self, scores: Sequence[float]) -> None:
        self.scores, self.seen = iter(scores), []  # type: tuple[Any, list[np.ndarray]]

    def __call__(self, logits: np.ndarray) -> float:
        self.seen.append(logits)
        return next(self.scores)


class Regression(Task):
    """Least squares in batches of given rows; plain gradient descent; keeps what it went through."""

    def __init__(self, model: nn.Module, validation: Validation, batches: Sequence[Sequence[int]], lr: float) -> None:
        super().__init__(model, validation)
        self.batches, self.lr = batches, lr
        self.after_epoch: list[dict[str, Tensor]] = []
        self.asked: list[int] = []
        self.steps = 0

    def train_dataloader(self) -> DataLoader:
        self.asked.append(self.current_epoch)
        return DataLoader([torch.tensor(rows) for rows in self.batches], batch_size=None)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader:
        return DataLoader([torch.tensor([7, 2]), torch.tensor([4])], batch_size=None)  # type: ignore[arg-type]

    def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
        return (self.model(X[rows]) - Y[rows]).square().mean()

    def validation_step(self, rows: Tensor, batch_idx: int) -> None:
        self.see(rows.numpy(), self.model(X[rows]))

    def on_train_epoch_end(self) -> None:
        self.after_epoch.append(copy.deepcopy(self.model.state_dict()))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1
        super().optimizer_step(*args, **kwargs)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.model.parameters(), lr=self.lr)


def regression(
    scores: Sequence[float] = (),
    batches: Sequence[Sequence[int]] = (range(12),),
    lr: float = 0.1,
    model: Any = None,
) -> Regression:
    torch.manual_seed(0)
    validation = Validation(np.array([7, 2, 4]), Script(scores or [0.5] * 1000))
    return Regression(model or nn.Linear(3, 1), validation, batches, lr)


def plan(epochs: int, **options: Any) -> FitPlan:
    return FitPlan("test", epochs, **options)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# ---- which weights are kept ---------------------------------------------------------------------------------------


def test_weights_of_the_best_evaluation_are_restored() -> None:
    task = regression([0.1, 0.2, 0.7, 0.3, 0.2])
    log = fit(task, plan(5), Hardware())
    assert (log.best_score, log.best_epoch, log.epochs) == (0.7, 3, 5)
    assert [row["valid"] for row in log.history] == [0.1, 0.2, 0.7, 0.3, 0.2]
    assert same(task.model.state_dict(), task.after_epoch[2])
    assert not same(task.model.state_dict(), task.after_epoch[4])


def test_the_first_best_wins_ties() -> None:
    task = regression([0.1, 0.7, 0.7, 0.2])
    log = fit(task, plan(4), Hardware())
    assert log.best_epoch == 2
    assert same(task.model.state_dict(), task.after_epoch[1])


def test_buffers_are_restored_with_the_weights() -> None:
    """Batch norm's running statistics move on every forward pass in training."""
    task = regression([0.9, 0.1, 0.1], model=nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)))
    fit(task, plan(3), Hardware())
    state = task.model.state_dict()
    assert state["0.num_batches_tracked"] == 1
    torch.testing.assert_close(state["0.running_mean"], 0.1 * X.mean(0))


def test_no_epochs_leave_the_model_alone() -> None:
    task = regression()
    before = copy.deepcopy(task.model.state_dict())
    log = fit(task, plan(0), Hardware())
    assert same(task.model.state_dict(), before)
    assert (log.history, log.epochs, log.best_epoch) == ([], 0, 0.0)


def test_score_sees_all_validation_logits_in_node_order() -> None:
    task = regression([0.5])
    fit(task, plan(1), Hardware())
    (logits,) = task.validation.score.seen  # type: ignore[attr-defined]
    np.testing.assert_allclose(logits, task.model(X[[2, 4, 7]]).detach().numpy(), rtol=1e-6)


def test_half_precision_rounds_and_cuts_off_what_it_cannot_hold() -> None:
    got = half(torch.tensor([1.0, 1 / 3, 7e4, -1e30, float("inf")], requires_grad=True))
    assert got.dtype == np.float16
    assert got.tolist() == [1.0, float(np.float16(1 / 3)), 65504, -65504, 65504]


# ---- when it stops and how often it looks -------------------------------------------------------------------------


def test_patience_counts_evaluations_without_a_better_score() -> None:
    task = regression([0.1, 0.5, 0.5, 0.4, 0.9, 0.9])
    log = fit(task, plan(6, patience=2), Hardware())
    assert [row["valid"] for row in log.history] == [0.1, 0.5, 0.5, 0.4]
    assert (log.epochs, log.best_epoch, len(task.after_epoch)) == (4, 2, 4)


def test_patience_starts_anew_with_every_better_score() -> None:
    log = fit(regression([0.1, 0.0, 0.2, 0.1, 0.3, 0.2, 0.1, 0.9]), plan(8, patience=2), Hardware())
    assert len(log.history) == 7
    assert log.best_score == 0.3


def test_patience_stops_in_the_middle_of_an_epoch() -> None:
    batches = [[i] for i in range(12)]
    task = regression([0.5, 0.4, 0.3, 0.9, 0.9, 0.9], batches)
    log = fit(task, plan(3, eval_every=1 / 6, patience=2), Hardware())
    assert [row["valid"] for row in log.history] == [0.5, 0.4, 0.3]
    assert [row["step"] for row in log.history] == [2, 4, 6]
    assert log.epochs == 1


@pytest.mark.parametrize(
    ("every", "epochs"), [(1.0, [1, 2, 3, 4]), (2.0, [2, 4]), (9.0, [4]), (0.5, [x / 2 for x in range(1, 9)])]
)
def test_evaluations_come_as_often_as_asked_for(every: float, epochs: list[float]) -> None:
    log = fit(
        regression(batches=[range(3), range(3, 6), range(6, 9), range(9, 12)]),
        plan(4, eval_every=every),
        Hardware(),
    )
    assert [row["epoch"] for row in log.history] == epochs


def test_more_evaluations_than_batches_make_one_a_batch() -> None:
    log = fit(regression(batches=[range(6), range(6, 12)]), plan(2, eval_every=1 / 5), Hardware())
    assert [row["epoch"] for row in log.history] == [0.5, 1, 1.5, 2]


def test_epochs_are_counted_in_batches_also_when_these_do_not_divide_into_steps() -> None:
    log = fit(regression([0.1, 0.2], batches=[[i] for i in range(5)]), plan(2, accumulate=2), Hardware())
    assert [(row["epoch"], row["step"]) for row in log.history] == [(1, 3), (2, 6)]
    assert log.best_epoch == 2


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_history_holds_the_mean_loss_of_batches_since_the_last_evaluation_and_the_rate(
    accumulate: int,
) -> None:
    batches = [range(4), range(4, 10), range(10, 11), range(11, 12)]
    task = regression(batches=batches, lr=0.0)
    log = fit(task, plan(2, eval_every=2, accumulate=accumulate), Hardware())
    losses = [task.training_step(torch.tensor(rows), 0).item() for rows in batches]
    (row,) = log.history
    assert row["loss"] == pytest.approx(np.mean(losses))
    assert row["lr"] == 0.0


@pytest.mark.parametrize(("anew", "epochs"), [(True, {0, 1, 2}), (False, {0})])
def test_batches_are_asked_for_every_epoch_or_once(anew: bool, epochs: set[int]) -> None:
    task = regression()
    fit(task, plan(3, new_batches=anew), Hardware())
    assert set(task.asked) == epochs


# ---- the step -----------------------------------------------------------------------------------------------------


def test_accumulated_parts_make_the_step_of_the_whole_batch() -> None:
    parts = regression(batches=[range(0, 3), range(3, 6), range(6, 9), range(9, 12)])
    whole = regression(batches=[range(0, 6), range(6, 12)])
    logs = [fit(parts, plan(2, accumulate=2), Hardware()), fit(whole, plan(2), Hardware())]
    assert (parts.steps, whole.steps) == (4, 4)
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value)
    assert [[row["step"] for row in log.history] for log in logs] == [[2, 4], [2, 4]]
    assert [[row["epoch"] for row in log.history] for log in logs] == [[1, 2], [1, 2]]


def test_clip_bounds_the_norm_of_the_gradient() -> None:
    torch.manual_seed(0)
    start = nn.Linear(3, 1)
    (start(X) - Y).square().mean().backward()
    gradient = torch.cat([p.grad.flatten() for p in start.parameters() if p.grad is not None])
    norm = float(gradient.norm())
    for clip, expected in ((norm / 10, gradient / 10), (norm * 10, gradient), (0.0, gradient)):
        task = regression(lr=1.0)
        before = nn.utils.parameters_to_vector(task.model.parameters()).detach()
        fit(task, plan(1, clip=clip), Hardware())
        after = nn.utils.parameters_to_vector(task.model.parameters()).detach()
        torch.testing.assert_close(before - after, expected, atol=1e-5, rtol=1e-4)


def test_clip_works_with_the_fused_optimizer() -> None:
    class Fused(Regression):
        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)

    torch.manual_seed(0)
    task = Fused(nn.Linear(3, 1), Validation(np.array([7, 2, 4]), lambda logits: 0.5), [range(12)], 0.1)
    assert fit(task, plan(2, clip=0.1), Hardware()).epochs == 2


def test_equal_seeds_give_equal_bits() -> None:
    logs, states = [], []
    for _ in range(2):
        task = regression(batches=[range(6), range(6, 12)], model=None)
        task.model = nn.Sequential(nn.Dropout(0.5), task.model)
        torch.manual_seed(3)
        logs.append(fit(task, plan(3), Hardware()))
        states.append(task.model.state_dict())
    assert same(*states)
    assert logs[0] == logs[1]


def test_a_loss_that_is_not_finite_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(FloatingPointError, match=r"test: the training loss is (nan|inf) .* lower the learning rate"):
        fit(regression(lr=1e30), plan(20), Hardware())


def test_mixed_precision_trains_in_bfloat16_and_keeps_weights_in_single() -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            seen.append(y.dtype)
            return y

    torch.manual_seed(0)
    task = regression(model=Watched(3, 1))
    hardware = Hardware("cpu", "bf16-mixed")
    fit(task, plan(1), hardware)
    assert set(seen) == {torch.bfloat16}
    assert task.model.weight.dtype == torch.float32
    seen.clear()
    with hardware.autocast():
        task.model(X)
    with Hardware().autocast():
        task.model(X)
    assert seen == [torch.bfloat16, torch.float32]


def test_an_interrupt_stays_one() -> None:
    """Lightning makes a SystemExit of it, which would end a run without the word that it can be resumed."""

    class Interrupted(Regression):
        def training_step(self, rows: Tensor, batch_idx: int) -> Tensor:
            raise KeyboardInterrupt

    handler = signal.getsignal(signal.SIGINT)
    try:
        task = Interrupted(nn.Linear(3, 1), Validation(np.array([7, 2, 4]), lambda logits: 0.5), [range(12)], 0.1)
        with pytest.raises(KeyboardInterrupt):
            fit(task, plan(2), Hardware())
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning leaves the process deaf to it


@pytest.mark.parametrize(("every", "epochs"), [(2.0, [2, 4, 5]), (3.0, [3, 5]), (0.4, [0.4, 0.8, 1, 1.4, 1.8, 2])])
def test_what_is_trained_after_the_last_evaluation_is_evaluated_too(every: float, epochs: list[float]) -> None:
    count = 2 if every < 1 else 5
    scores = [0.1 * i for i in range(1, 10)]
    task = regression(scores, batches=[[i] for i in range(5)] if every < 1 else [range(12)])
    log = fit(task, plan(count, eval_every=every), Hardware())
    found = [row["epoch"] for row in log.history]
    assert found[-1] == epochs[-1] == log.best_epoch
    assert log.epochs == count
    if every >= 1:
        assert found == epochs
    assert same(task.model.state_dict(), task.after_epoch[-1])
