"""The corpus can fail: its harness tells a run that works from one that is refused, and from one refused badly."""

from __future__ import annotations

import pytest

from tests.bad_inputs.conftest import Program


def test_the_run_that_every_case_changes_works(program: Program) -> None:
    program.accepts()
    assert len(program.stages()) == 4


def test_a_run_that_works_is_no_refusal(program: Program) -> None:
    with pytest.raises(AssertionError, match="exit status 0"):
        program.refuses("train.mode", "glem_gnn", "glem.node_features", "static", names="train.mode")


def test_a_message_without_the_name_is_no_refusal(program: Program) -> None:
    with pytest.raises(AssertionError, match=r"'lm\.epochs' is not in"):
        program.refuses("glem.alpha", "7", names="lm.epochs")
    program.refuses("glem.alpha", "7", names=["glem.alpha", "7"])
