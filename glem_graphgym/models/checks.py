"""Checks of the arguments that networks are built with, and the error for a language model that does not fit."""

from __future__ import annotations


class ModelError(ValueError):
    """The language model cannot be what the settings ask for; the message names key or file, and what to do."""


def check_sizes(least: int = 1, **sizes: int) -> None:
    """Raise ValueError for a size below ``least``."""
    for name, value in sizes.items():
        if value < least:
            raise ValueError(f"{name} is {value}, expected at least {least}")


def check_probabilities(**probabilities: float) -> None:
    """Raise ValueError for a dropout probability outside [0, 1)."""
    for name, value in probabilities.items():
        if not 0 <= value < 1:
            raise ValueError(f"{name} is {value}, expected a probability from 0 to below 1")
