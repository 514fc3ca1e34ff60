"""Golden runs: a change of structure changes no result.

A small run of each train mode and each kind of M-step, with what it predicted when it was recorded. Record anew, after
a change that is meant to change results, with ``python -m tests.golden.record``; with ``GLEM_GOLDEN=bits`` the
comparison is by bits, for the machine on which the record was made.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.cases import CASES, RECORD, predictions_of

pytestmark = pytest.mark.slow

TOLERANCE = 0.02  # of probabilities: other processors add up in another order


@pytest.mark.parametrize("name", CASES)
def test_a_run_predicts_what_it_predicted_when_it_was_recorded(name: str, tmp_path: Path, tiny_lm: Path) -> None:
    found = predictions_of(name, tmp_path, tiny_lm)
    with np.load(RECORD) as record:
        recorded = {key.split("/", 1)[1]: record[key] for key in record.files if key.split("/", 1)[0] == name}
    assert found.keys() == recorded.keys()
    for stage, logits in found.items():
        if os.environ.get("GLEM_GOLDEN") == "bits":
            np.testing.assert_array_equal(logits, recorded[stage], err_msg=f"{name}, {stage}")
        else:
            right = probabilities(recorded[stage])
            np.testing.assert_allclose(probabilities(logits), right, rtol=0, atol=TOLERANCE, err_msg=stage)


def probabilities(logits: np.ndarray) -> np.ndarray:
    return torch.from_numpy(logits.astype(np.float32)).softmax(-1).numpy()


def test_what_a_case_changes_shows_in_what_it_predicts() -> None:
    with np.load(RECORD) as record:
        last = {name: max(key for key in record.files if key.startswith(f"{name}/")) for name in CASES}
        found = {name: probabilities(record[key]) for name, key in last.items()}
    # On disk and in several processes joint training predicts what it does in memory and alone.
    names = [name for name in CASES if not name.endswith(("on_disk", "joint_two_processes"))]
    for first in names:
        for second in names[names.index(first) + 1 :]:
            if found[first].shape == found[second].shape:
                assert np.abs(found[first] - found[second]).max() > 1e-3, f"{first} and {second}"
