from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from glem_graphgym.models.mean_teacher import MeanTeacher, consistency_loss


def student() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.PReLU(), nn.Dropout(0.5), nn.Linear(8, 3))


def move(net: nn.Module) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_teacher_is_the_moving_average_of_weights_and_statistics() -> None:
    net = student()
    teacher = MeanTeacher(net, decay=0.9)
    expected = {name: value.clone() for name, value in net.state_dict().items()}
    for _ in range(3):
        move(net)
        net(torch.randn(16, 4))  # moves batch norm's running statistics
        teacher.update(net)
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                expected[name] = 0.9 * expected[name] + 0.1 * value
    state = teacher.average.state_dict()
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(state[name], value)


def test_it_predicts_in_evaluation_mode_without_gradients() -> None:
    net = student()
    teacher = MeanTeacher(net).train()
    x = torch.randn(5, 4)
    probabilities = teacher(x)
    assert torch.equal(probabilities, teacher(x)) and not probabilities.requires_grad
    torch.testing.assert_close(probabilities, net.eval()(x).softmax(-1).detach())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert MeanTeacher(nn.Module.double(net))(x.double()).dtype == torch.float32


def test_it_survives_saving_and_loading() -> None:
    net = student()
    teacher, other = MeanTeacher(net), MeanTeacher(net)
    move(net)
    teacher.update(net)
    other.load_state_dict(teacher.state_dict())
    move(net)
    for each in (teacher, other):
        each.update(net)
    x = torch.randn(5, 4)
    assert torch.equal(teacher(x), other(x))


def by_hand(student_logits: Tensor, teacher: Tensor, temperature: float, confidence: float) -> float:
    losses = []
    for logits, probability in zip(student_logits, teacher, strict=True):
        if probability.max() <= confidence:
            continue
        power = probability ** (1 / temperature)
        sharp, p = power / power.sum(), logits.exp() / logits.exp().sum()
        losses.append(((p - sharp) ** 2).sum())
    return float(sum(losses) / len(losses))


@pytest.mark.parametrize(("temperature", "confidence"), [(0.5, 0.0), (0.5, 0.6), (1.0, 0.5), (0.2, 0.0)])
def test_consistency_loss_by_hand(temperature: float, confidence: float) -> None:
    torch.manual_seed(0)
    logits, teacher = torch.randn(20, 3), (2 * torch.randn(20, 3)).softmax(-1)
    loss = consistency_loss(logits, teacher, temperature, confidence)
    expected = by_hand(logits.double(), teacher.double(), temperature, confidence)
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_gradients_go_to_the_student_and_to_confident_nodes_only() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    teacher = torch.tensor([[0.9, 0.1, 0.0], [0.4, 0.3, 0.3]], requires_grad=True)
    consistency_loss(logits, teacher, confidence=0.8).backward()
    assert teacher.grad is None and logits.grad is not None and logits.grad.isfinite().all()
    assert logits.grad[0].abs().sum() > 0 and logits.grad[1].eq(0).all()


def test_no_confident_node_is_no_loss() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    loss = consistency_loss(logits, torch.full((4, 3), 1 / 3), confidence=0.5)
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and logits.grad.eq(0).all()
    assert float(consistency_loss(torch.zeros(0, 3), torch.zeros(0, 3))) == 0
