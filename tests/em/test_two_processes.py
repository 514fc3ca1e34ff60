"""Two processes that train a language model, with whole weights or with parts of them, end with what one ends with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.em.two_processes import CASES, do, main
from tests.started import finish, start

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def by_two(tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Case -> what two processes found."""
    folder = tmp_path_factory.mktemp("by_two")
    finish(start(main, str(tiny_lm), str(folder), size=2))
    return {
        name: {**torch.load(folder / str(number) / "found", weights_only=False), "folder": folder / str(number)}
        for number, name in enumerate(CASES)
    }


@pytest.mark.parametrize("name", CASES)
def test_two_processes_end_with_what_one_ends_with(
    name: str, by_two: dict[str, Any], tiny_lm: Path, tmp_path: Path
) -> None:
    case, found = CASES[name], by_two[name]
    right = do(case, str(tiny_lm), tmp_path)
    near = {"rtol": 0.02, "atol": 0.02} if case.precision == "bf16-mixed" else {"rtol": 1e-3, "atol": 2e-5}
    assert found["weights"].keys() == right["weights"].keys()
    for key, value in right["weights"].items():
        torch.testing.assert_close(found["weights"][key], value, **near)
    for key in ("logits", "embeddings"):
        np.testing.assert_allclose(found[key], right[key], rtol=0.02, atol=max(near["atol"], 1e-3))
        assert np.abs(right[key]).max() > 0.1
    for mine, theirs in zip(found["history"], right["history"], strict=True):
        assert mine == pytest.approx(theirs, **{"rel": near["rtol"], "abs": near["atol"]})
    assert right["share"] == 1.0
    assert 0.49 < found["share"] < 0.52 if case.strategy == "fsdp" else found["share"] == 1.0


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.killed])
def test_each_keeps_its_part_of_a_checkpoint_which_others_refuse(name: str, by_two: dict[str, Any]) -> None:
    found = by_two[name]
    main, *parts = sorted(found["files"], key=len)
    assert main == "stage.pt"
    assert [part[-5:] for part in parts] == ["-0.pt", "-1.pt"]
    assert len({part[:-5] for part in parts}) == 1
    for rank in (0, 1):
        assert (
            (found["folder"] / f"refused-{rank}")
            .read_text()
            .split(" was written by ")[1]
            .startswith(
                "2 processes that split the weights (lm.strategy fsdp), but this run has processes with whole weights; "
                "start it as before, or delete "
            )
        )


def test_a_killed_training_goes_on_with_the_same_bits(by_two: dict[str, Any]) -> None:
    for key, value in by_two["fsdp"]["weights"].items():
        assert torch.equal(value, by_two["fsdp, killed"]["weights"][key])
