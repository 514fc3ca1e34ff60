"""Mean teacher and consistency loss: SCR, consistency regularisation of graph networks (Zhang et al. 2021)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class MeanTeacher(nn.Module):
    """A moving average of a student's weights, whose predictions are the targets of `consistency_loss`.

    Always in evaluation mode, with averaged batch-norm statistics too; the published code leaves its dropout on and
    averages parameters only. ``decay`` is γ, 0 to below 1, in teacher ← γ teacher + (1-γ) student.
    """

    def __init__(self, student: nn.Module, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"decay is {decay}, expected a share from 0 to below 1")
        self.decay = decay
        self.average = copy.deepcopy(student).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> MeanTeacher:
        """Leaves the teacher in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Take the student's weights into the average; call after each of its optimizer steps."""
        # Not torch's AveragedModel, whose count of updates lies on the device and is waited for.
        for own, new in zip(_floats(self.average), _floats(student), strict=True):
            own.lerp_(new, 1 - self.decay)

    @torch.no_grad()
    def forward(self, *inputs: Any) -> Tensor:
        """The teacher's probabilities (B, C), float32, for a batch as the student takes it."""
        return self.average(*inputs).float().softmax(-1)


def _floats(module: nn.Module) -> Iterator[Tensor]:
    both = chain(module.parameters(), module.buffers())
    return (tensor.detach() for tensor in both if tensor.is_floating_point())


def consistency_loss(
    student_logits: Tensor, teacher: Tensor, temperature: float = 0.5, confidence: float = 0.0
) -> Tensor:
    """Mean over the confident nodes of Σ_c (p - t)², float32: p the student's probabilities, t the teacher's sharpened.

    Sharpening raises the probabilities (B, C) to the power 1/``temperature`` and normalises (Zhang et al. 2021). A node
    counts where the teacher's top probability, unsharpened, exceeds ``confidence``; with none the loss is 0. The
    teacher, a `MeanTeacher` or a mean over the student's own predictions, is a constant to the loss.
    """
    if student_logits.shape != teacher.shape or student_logits.dim() != 2:
        found = f"{tuple(student_logits.shape)} and {tuple(teacher.shape)}"
        raise ValueError(f"logits of the student and probabilities of the teacher are {found}, expected (B, C) of both")
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, expected above 0")
    if not 0 <= confidence < 1:
        raise ValueError(f"confidence is {confidence}, expected a share from 0 to below 1")
    teacher = teacher.detach()
    kept = teacher.amax(-1) > confidence
    log_student = student_logits.float().log_softmax(-1)
    log_teacher = (teacher.float().clamp(min=torch.finfo(torch.float32).tiny).log() / temperature).log_softmax(-1)
    of_node = (log_student.exp() - log_teacher.exp()).square().sum(-1)
    # Not of_node[kept].mean(), which is no number for no nodes.
    return of_node.where(kept, 0.0).sum() / kept.sum().clamp(min=1)
