"""The training loop: which weights it keeps, when it stops, what a step is, what a batch goes through."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from glem_graphgym.em.fit import Batches, FitPlan, Task, Validation, fit, prefetched, to_float16
from glem_graphgym.hardware import Hardware

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
    """Least squares in batches of given rows; plain gradient descent; keeps what it went through.

    Args:
        of_step: rows of an optimizer step, over which the loss is a mean; None: of a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        validation: Validation,
        rows: Sequence[Sequence[int]],
        lr: float,
        of_step: int | None = None,
    ) -> None:
        super().__init__(model, validation)
        self.rows, self.lr, self.of_step = rows, lr, of_step
        self.after_step_weights: list[dict[str, Tensor]] = []
        self.asked: list[int] = []

    def batches(self, epoch: int) -> Batches:
        self.asked.append(epoch)
        return Batches(self.rows, torch.tensor)

    def forward(self, rows: Tensor) -> Tensor:
        return (self.model(X[rows]) - Y[rows]).square().sum() / (self.of_step or len(rows))

    def validated(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        for nodes in (np.array([7, 2]), np.array([4])):
            yield nodes, self.model(X[torch.from_numpy(nodes)])

    def after_step(self) -> None:
        self.after_step_weights.append(copy.deepcopy(self.model.state_dict()))

    @property
    def after_epoch(self) -> list[dict[str, Tensor]]:
        """Where every batch is a step."""
        return self.after_step_weights[len(self.rows) - 1 :: len(self.rows)]

    def optimizer(self, num_steps: int) -> tuple[torch.optim.Optimizer, Any, str]:
        made = torch.optim.SGD(self.model.parameters(), lr=self.lr)
        return made, torch.optim.lr_scheduler.ConstantLR(made, 1.0), "epoch"


def regression(
    scores: Sequence[float] = (),
    batches: Sequence[Sequence[int]] = (range(12),),
    lr: float = 0.1,
    model: Any = None,
    of_step: int | None = None,
) -> Regression:
    torch.manual_seed(0)
    validation = Validation(np.array([7, 2, 4]), Script(scores or [0.5] * 1000))
    return Regression(model or nn.Linear(3, 1), validation, batches, lr, of_step)


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


def test_validation_is_scored_without_dropout() -> None:
    task = regression([0.5], model=nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)), lr=0.0)
    fit(task, plan(1), Hardware())
    (logits,) = task.validation.score.seen  # type: ignore[attr-defined]
    np.testing.assert_allclose(logits, task.model[1](X[[2, 4, 7]]).detach().numpy(), rtol=1e-6)  # type: ignore[index]
    assert task.training


def test_half_precision_rounds_and_cuts_off_what_it_cannot_hold() -> None:
    got = to_float16(torch.tensor([[1.0, 1 / 3, 7e4, -1e30, float("inf")]], requires_grad=True))
    assert got.dtype == np.float16
    assert got.tolist() == [[1.0, float(np.float16(1 / 3)), 65504, -65504, 65504]]


def test_predictions_that_are_not_numbers_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(FloatingPointError, match=r"output for 1 of 3 nodes .* lower the learning rate, .*precision"):
        to_float16(torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [0.0, 0.0]]))


# ---- when it stops and how often it looks -------------------------------------------------------------------------


def test_patience_counts_evaluations_without_a_better_score() -> None:
    task = regression([0.1, 0.5, 0.5, 0.4, 0.9, 0.9])
    log = fit(task, plan(6, patience=2), Hardware())
    assert [row["valid"] for row in log.history] == [0.1, 0.5, 0.5, 0.4]
    assert (log.epochs, log.best_epoch, len(task.after_epoch)) == (4, 2, 4)


def test_patience_starts_anew_with_every_better_score_and_may_end_in_the_middle_of_an_epoch() -> None:
    scores = [0.1, 0.0, 0.2, 0.1, 0.3, 0.2, 0.1, 0.9]
    log = fit(regression(scores, [[i] for i in range(12)]), plan(3, evals_per_epoch=6, patience=2), Hardware())
    assert [row["valid"] for row in log.history] == scores[:7]
    assert [row["step"] for row in log.history] == [2 * i for i in range(1, 8)]
    assert (log.best_score, log.epochs) == (0.3, 2)


@pytest.mark.parametrize(
    ("every", "per_epoch", "batches", "epochs"),
    [
        (1, 1, 4, [1, 2, 3, 4]),
        (2, 1, 1, [2, 4]),
        (3, 1, 1, [3, 4]),  # what is trained after the last evaluation is evaluated too
        (9, 1, 4, [4]),
        (1, 2, 4, [x / 2 for x in range(1, 9)]),
        (1, 5, 2, [x / 2 for x in range(1, 9)]),  # more evaluations than batches make one a batch
        (1, 2, 5, [x / 5 for x in (3, 5, 8, 10, 13, 15, 18, 20)]),  # never more than asked for, the last at the end
        (1, 3, 5, [x / 5 for x in (2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20)]),
    ],
)
def test_evaluations_come_as_often_as_asked_for_and_at_the_end(
    every: int, per_epoch: int, batches: int, epochs: list[float]
) -> None:
    task = regression([0.1 * i for i in range(1, 20)], [rows.tolist() for rows in np.array_split(range(12), batches)])
    log = fit(task, plan(4, eval_every=every, evals_per_epoch=per_epoch), Hardware())
    assert [row["epoch"] for row in log.history] == epochs
    assert (log.best_epoch, log.epochs) == (4, 4)
    assert same(task.model.state_dict(), task.after_epoch[-1])


def test_epochs_are_counted_in_batches_also_when_these_do_not_divide_into_steps() -> None:
    log = fit(regression([0.1, 0.2], batches=[[i] for i in range(5)]), plan(2, grad_accumulation=2), Hardware())
    assert [(row["epoch"], row["step"]) for row in log.history] == [(1, 3), (2, 6)]
    assert log.best_epoch == 2


@pytest.mark.parametrize("grad_accumulation", [1, 2, 4])
def test_history_holds_the_mean_loss_of_batches_since_the_last_evaluation_and_the_rate(grad_accumulation: int) -> None:
    batches = [range(4), range(4, 10), range(10, 11), range(11, 12)]
    task = regression(batches=batches, lr=0.0)
    log = fit(task, plan(2, eval_every=2, grad_accumulation=grad_accumulation), Hardware())
    losses = [task(torch.tensor(rows)).item() for rows in batches]
    (row,) = log.history
    assert row["loss"] == pytest.approx(np.mean(losses) * grad_accumulation)
    assert row["lr"] == 0.0


def test_a_batch_is_prepared_by_a_thread_while_the_one_before_is_in_use() -> None:
    begun = [threading.Event() for _ in range(4)]

    def prepare(item: int) -> Tensor:
        begun[item].set()
        return torch.tensor(item)

    for item, batch in enumerate(prefetched(prepare, range(4), 1)):
        assert batch == item
        assert item == 3 or begun[item + 1].wait(10)
        assert item >= 2 or not begun[item + 2].is_set()  # one ahead, no more
    assert not list(prefetched(prepare, [], 2))
    assert list(prefetched(prepare, range(4), 3)) == list(Batches(range(4), prepare).prepared(torch.device("cpu")))


def test_an_error_in_preparing_a_batch_is_raised() -> None:
    def prepare(item: int) -> Tensor:
        raise ValueError("no such text")

    with pytest.raises(ValueError, match="no such text"):
        list(prefetched(prepare, [0, 1], 2))


# ---- the step -----------------------------------------------------------------------------------------------------


def test_steps_are_those_of_plain_gradient_descent() -> None:
    task = regression(batches=[range(6), range(6, 12)])
    fit(task, plan(2), Hardware())
    torch.manual_seed(0)
    twin = nn.Linear(3, 1)
    for rows in 2 * [slice(0, 6), slice(6, 12)]:
        gradients = torch.autograd.grad((twin(X[rows]) - Y[rows]).square().mean(), list(twin.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(twin.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(task.after_step_weights[-1][name], value)


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
