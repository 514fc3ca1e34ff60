from __future__ import annotations

import pytest
import torch
from torch import nn

from glem_graphgym.models.dropout import Dropout, dropout, relu_dropout, use_cheap_dropout


@pytest.mark.parametrize("probability", [0.25, 0.5, 0.9])
def test_dropout_drops_that_share_scales_the_rest_and_passes_its_gradient(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(503, 401, dtype=torch.float64, requires_grad=True)
    y = dropout(x, probability, training=True)
    y.sum().backward()
    kept = y != 0
    # five standard deviations of a binomial share
    assert abs(kept.double().mean() - (1 - probability)) < 5 * (0.25 / kept.numel()) ** 0.5
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - probability)), rtol=1e-4, atol=0)
    assert x.grad is not None
    assert torch.equal(x.grad, y)
    for rows in (kept, kept.T):  # every row and every column on its own
        assert (rows.double().mean(1) - (1 - probability)).abs().max() < 5.5 * (0.25 / rows.shape[1]) ** 0.5
    neighbours = (kept[:, 1:] & kept[:, :-1]).double().mean()
    assert abs(neighbours - (1 - probability) ** 2) < 0.01


def test_dropout_is_the_identity_outside_training_and_at_probability_0() -> None:
    x = torch.randn(3, 5)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0, training=True) is x
    assert dropout(x.bfloat16(), 0.5, training=True).dtype == torch.bfloat16
    assert dropout(torch.zeros(0, 4), 0.5, training=True).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_kept_has_the_scale_of_its_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(400, 300, dtype=dtype), 0.1, training=True)
    assert y.dtype == dtype
    scale = 2**16 / (2**16 - round(0.1 * 2**16))
    assert y.unique().tolist() == [0.0, torch.tensor(scale, dtype=dtype).item()]
    assert abs((y == 0).float().mean() - 0.1) < 5 * (0.09 / y.numel()) ** 0.5


@pytest.mark.parametrize("probability", [2.0**-18, 1 - 2.0**-18])
def test_probabilities_next_to_0_and_1(probability: float) -> None:
    torch.manual_seed(0)
    y = dropout(torch.ones(1000, 100), probability, training=True)
    assert (y == 0).float().mean() == pytest.approx(probability, abs=1e-3)
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("probability", [0.4, 0.5])
def test_a_generator_of_its_own_draws_the_same_again_and_leaves_the_global_one_alone(probability: float) -> None:
    x = torch.rand(20_000) + 0.1
    state = torch.get_rng_state()
    first, second, other = (
        dropout(x, probability, True, torch.Generator().manual_seed(seed)) for seed in (2**63 - 2, 2**63 - 2, 3)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, second)
    kept = first > 0
    assert abs(kept.float().mean() - (1 - probability)) < 5 * (0.25 / len(x)) ** 0.5
    torch.testing.assert_close(first[kept], x[kept] / (1 - probability), rtol=1e-4, atol=0)
    assert abs((kept & (other > 0)).float().mean() - (1 - probability) ** 2) < 0.02  # another seed is another draw


def test_every_dropout_of_a_module_is_replaced_and_keeps_its_probability() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.Sequential(nn.Dropout(0.2), nn.Dropout2d(0.1)))
    use_cheap_dropout(module)
    assert [type(module[1]), type(module[2][0]), type(module[2][1])] == [Dropout, Dropout, nn.Dropout2d]
    assert [module[1].p, module[2][0].p] == [0.3, 0.2]
    torch.manual_seed(0)
    x = torch.ones(200, 200)
    assert abs((module[1](x) == 0).float().mean() - 0.3) < 0.02
    assert torch.equal(module.eval()[1](x), x)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_relu_and_dropout_in_one_are_the_two_after_one_another(
    probability: float, dtype: torch.dtype, training: bool
) -> None:
    grads = []
    for fused in (True, False):
        torch.manual_seed(0)
        x = torch.randn(40, 30, dtype=dtype, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = relu_dropout(x, probability, training) if fused else dropout(x.relu(), probability, training)
        (out * torch.arange(30, dtype=dtype)).sum().backward()
        assert x.grad is not None
        grads.append((out.detach(), x.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    torch.testing.assert_close(grads[0][1], grads[1][1])
