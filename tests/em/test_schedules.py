from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from glem_graphgym.em.schedules import adamw, decay_groups, warmup_schedule


def rates(decay: str, warmup: float, total: float, steps: int, lr: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = warmup_schedule(optimizer, warmup, total, decay)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_linear_by_hand() -> None:
    # Up in fourths over 3 steps, down in fourths over the other 4.
    assert rates("linear", 3, 7, 9) == pytest.approx([0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25, 0, 0])


def test_cosine_by_hand() -> None:
    half, quarter = 0.5, 0.5 * (1 + math.cos(math.pi / 4))
    assert rates("cosine", 0, 4, 6, lr=2.0) == pytest.approx([2, 2 * quarter, 2 * half, 2 * (1 - quarter), 0, 0])


def test_constant_stays_level_after_warm_up() -> None:
    assert rates("constant", 1, 3, 6) == pytest.approx([0.5, 1, 1, 1, 1, 1])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_after_warm_up_the_rates_are_those_of_transformers(decay: str) -> None:
    """Only the warm-up differs: ours has no step with rate 0."""
    theirs = get_linear_schedule_with_warmup if decay == "linear" else get_cosine_schedule_with_warmup
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = theirs(optimizer, 4, 20)
    expected = []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    got = rates(decay, 4, 20, 20)
    assert got[4:] == pytest.approx(expected[4:])
    assert got[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_warm_up_may_end_between_steps_and_last_longer_than_training() -> None:
    # 1 step of 1.6 up, then (1 - 0.6) / (10.6 - 0.6) of the way down.
    assert rates("linear", 0.6, 10.6, 2) == pytest.approx([1 / 1.6, 1 - 0.4 / 10])
    assert rates("linear", 3, 2, 5) == pytest.approx([0.25, 0.5, 0.75, 1, 0])
    assert rates("cosine", 0, 0, 1) == [1.0]


def test_unknown_decay_is_refused() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="decay is 'step', expected 'linear', 'cosine' or 'constant'"):
        warmup_schedule(optimizer, 1, 2, "step")


def test_only_trained_matrices_decay() -> None:
    module = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(3, 2))
    module[3].requires_grad_(False)
    decayed, spared = decay_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert spared["weight_decay"] == 0.0
    assert [p is q for p, q in zip(decayed["params"], [module[0].weight, module[2].weight], strict=True)] == [True] * 2
    names = [module[1].weight, module[1].bias, module[2].bias]
    assert [p is q for p, q in zip(spared["params"], names, strict=True)] == [True] * 3


def test_weight_decay_shrinks_matrices_and_leaves_vectors() -> None:
    """With gradient 0, AdamW multiplies what decays by 1 - lr · weight decay and moves nothing else."""
    module = nn.Linear(4, 3)
    before = copy.deepcopy(module.state_dict())
    optimizer = adamw(decay_groups(module, 0.5), lr=0.1, weight_decay=0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.weight.data, before["weight"] * 0.95)
    assert torch.equal(module.bias.data, before["bias"])


def test_fused_and_plain_steps_agree() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 5)
    fused = copy.deepcopy(plain)
    optimizers = [adamw(m.parameters(), 0.01, 0.1, fused=f) for m, f in ((plain, False), (fused, True))]
    x = torch.randn(8, 6)
    for _ in range(5):
        for module, optimizer in zip((plain, fused), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().sum().backward()
            optimizer.step()
    torch.testing.assert_close(fused.weight, plain.weight)
