from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from glem_graphgym.em.optim import ClippedAdamW, decay_groups, use_sparse_gradients, warmup_schedule


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
    assert rates("constant", 1, 3, 6) == pytest.approx([0.5, 1, 1, 1, 1, 1])


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
    optimizer = torch.optim.AdamW(decay_groups(module, 0.5), lr=0.1, weight_decay=0.5)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(module.weight.data, before["weight"] * 0.95)
    assert torch.equal(module.bias.data, before["bias"])


class Bag(nn.Module):
    """Word embeddings of 40 rows (row 0 for padding) and a linear layer on their mean."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 6, padding_idx=0, sparse=sparse)
        self.out = nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.words(ids).mean(1))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.05, 1e6])
def test_clipped_steps_are_those_of_plain_adamw_on_dense_clipped_gradients(sparse: bool, clip: float) -> None:
    """Also of rows that no batch looked up again, which dense AdamW still moves by its momentum and decay."""
    torch.manual_seed(0)
    ours = Bag(sparse)
    plain = Bag(False)
    plain.load_state_dict(ours.state_dict())
    lean = ClippedAdamW(decay_groups(ours, 0.1), lr=0.05, weight_decay=0.1, clip=clip)
    dense = torch.optim.AdamW(decay_groups(plain, 0.1), lr=0.05, weight_decay=0.1, fused=False)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        ids = torch.randint(0, 12 if step else 30, (5, 4), generator=generator)  # 0 is padding; some ids repeat
        for module in (ours, plain):
            module.zero_grad()
            for part in ids.split(3):  # accumulated over two backward passes
                module(part).square().sum().backward()
        if clip:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        lean.step()
        dense.step()
        for (name, left), right in zip(ours.named_parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(left, right, msg=lambda text, name=name: f"{name}: {text}")


def test_only_large_embeddings_get_sparse_gradients() -> None:
    module = nn.ModuleList([nn.Embedding(2000, 2), nn.Embedding(2, 2), nn.Linear(2000, 2)])
    use_sparse_gradients(module)
    assert [module[0].sparse, module[1].sparse] == [True, False]
