"""Mean teacher and consistency loss: SCR, consistency regularisation of graph networks (Zhang et al. 2021)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class MeanTeacher(nn.Module):
    """Moving average of a student's weights; its predictions are the targets of `consistency_loss`.

    Always in evaluation mode, and batch-norm statistics are averaged too; the published code leaves dropout on and
    averages parameters only. ``decay`` is γ, 0 to below 1, in teacher ← γ teacher + (1-γ) student.
    """

    def __init__(self, student: nn.Module, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.average = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MeanTeacher:
        """Leave the teacher in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Update the average by the student's weights; call after each of its optimizer steps."""
        # Not torch's AveragedModel, which reads its update counter from the device and so waits for it.
        for average, value in zip(_floats(self.average), _floats(student), strict=True):
            average.lerp_(value, 1 - self.decay)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Tensor:
        """The teacher's probabilities, float32 (B, C), for the student's ``inputs``."""
        return self.average(*inputs).float().softmax(-1)


def _floats(module: nn.Module) -> Iterator[Tensor]:
    tensors = chain(module.parameters(), module.buffers())
    return (tensor.detach() for tensor in tensors if tensor.is_floating_point())


def consistency_loss(
    student_logits: Tensor, teacher: Tensor, temperature: float = 0.5, confidence: float = 0.0
) -> Tensor:
    """Mean of Σ_c (p - t)² over confident nodes, float32: p is the student's probability, t the teacher's, sharpened.

    Sharpening raises probabilities to the power 1/``temperature`` and normalises them (Zhang et al. 2021). A node is
    confident if its top probability before sharpening exceeds ``confidence``; without such nodes the loss is 0.
    ``teacher`` (B, C), of a `MeanTeacher` or the mean of several predictions of the student, gets no gradient.
    """
    teacher = teacher.detach()
    confident = teacher.amax(-1) > confidence
    log_student = student_logits.float().log_softmax(-1)
    log_teacher = (teacher.float().clamp(min=torch.finfo(torch.float32).tiny).log() / temperature).log_softmax(-1)
    node_loss = (log_student.exp() - log_teacher.exp()).square().sum(-1)
    # Not node_loss[confident].mean(), which is NaN if no node is confident.
    return node_loss.where(confident, 0.0).sum() / confident.sum().clamp(min=1)
