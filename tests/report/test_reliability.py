from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from glem_graphgym.report import reliability
from glem_graphgym.report.reliability import BINS, describe_predictions, describe_run, pool, read_descriptions

NAMES = ["a", "b", "c"]


def logits_with(confidence: float, chosen: int, classes: int = 3) -> list[float]:
    """Logits whose softmax gives ``chosen`` that confidence and the others equal shares."""
    shares = np.full(classes, (1 - confidence) / (classes - 1))
    shares[chosen] = confidence
    return list(np.log(shares))


def test_classes_confusions_and_calibration_of_a_case_done_by_hand() -> None:
    logits = np.array([logits_with(0.9, 0), logits_with(0.9, 0), logits_with(0.9, 1), logits_with(0.5, 2)])
    found = describe_predictions(logits, np.array([0, 1, 1, 0]), NAMES)
    assert (found["nodes"], found["accuracy"]) == (4, 0.5)
    assert found["classes"] == [
        {"name": "a", "support": 2, "predicted": 2, "correct": 1},
        {"name": "b", "support": 2, "predicted": 1, "correct": 1},
        {"name": "c", "support": 0, "predicted": 1, "correct": 0},
    ]
    assert found["confusions"] == [
        {"true": "a", "predicted": "c", "count": 1},
        {"true": "b", "predicted": "a", "count": 1},
    ]
    assert [row["count"] for row in found["bins"]] == [0] * 7 + [1] + [0] * 5 + [3, 0]
    sure = found["bins"][13]
    assert (sure["confidence"], sure["accuracy"]) == (pytest.approx(0.9), pytest.approx(2 / 3))
    # (1 node · |0 - 0.5| + 3 nodes · |2/3 - 0.9|) / 4 nodes
    assert found["ece"] == pytest.approx((0.5 + 3 * (0.9 - 2 / 3)) / 4)
    json.dumps(found, allow_nan=False)


def test_float16_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(size=(50, 3)).astype(np.float16), draw.integers(0, 3, 50)
    whole = describe_predictions(logits, labels, NAMES)
    monkeypatch.setattr(reliability, "_CHUNK", 7)
    assert describe_predictions(logits, labels, NAMES) == whole
    assert whole["accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(2, 6))
def test_counts_add_up(seed: int, nodes: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, nodes)
    found = describe_predictions(20 * draw.normal(size=(nodes, classes)), labels, [str(i) for i in range(classes)])
    assert sum(row["count"] for row in found["bins"]) == nodes
    assert sum(row["support"] for row in found["classes"]) == nodes
    assert sum(row["correct"] for row in found["classes"]) == round(found["accuracy"] * nodes)
    assert 0 <= found["ece"] <= 1
    for row in found["bins"]:
        assert row["count"] == 0 or row["low"] - 1e-9 <= row["confidence"] <= row["high"] + 1e-9


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((2, 3)), [0], "shape"),
        (np.zeros((0, 3)), [], "n > 0"),
        (np.zeros((2, 2)), [0, 1], "shape"),
        (np.zeros((2, 3)), [0, -1], "labelled nodes only"),
        (np.zeros((2, 3)), [0, 3], "expected 0 to 2"),
        (np.array([[0.0, np.nan, 0.0]]), [0], "not all finite"),
    ],
)
def test_what_does_not_fit_is_refused(logits: np.ndarray, labels: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        describe_predictions(logits, np.array(labels, dtype=np.int64), NAMES)


def test_a_pool_of_seeds_is_the_description_of_all_their_predictions() -> None:
    draw = np.random.default_rng(1)
    logits, labels = draw.normal(size=(60, 3)), draw.integers(0, 3, 60)
    parts = [describe_predictions(logits[i::3], labels[i::3], NAMES) for i in range(3)]
    whole, pooled = describe_predictions(logits, labels, NAMES), pool(parts)
    for row in whole["classes"]:
        del row["predicted"]
    assert pooled["classes"] == whole["classes"] and pooled["nodes"] == whole["nodes"]
    assert {(r["true"], r["predicted"], r["count"]) for r in pooled["confusions"]} == {
        (r["true"], r["predicted"], r["count"]) for r in whole["confusions"]
    }
    for found, expected in zip(pooled["bins"], whole["bins"], strict=True):
        assert found == {key: value if value is None else pytest.approx(value) for key, value in expected.items()}
    with pytest.raises(ValueError, match="same classes"):
        pool([whole, describe_predictions(logits, labels, ["a", "b", "other"])])
    with pytest.raises(ValueError, match="same classes"):
        pool([])


def save_logits(run: Path, stage: str, logits: np.ndarray) -> Path:
    folder = run / "stages" / stage
    folder.mkdir(parents=True)
    (folder / "stage.json").write_text("{}")
    np.save(folder / "logits.npy", logits)
    return folder


def test_a_run_is_described_once_from_valid_and_test_nodes_alone(tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    labels = draw.integers(0, 3, 30)
    labels[:5] = -1  # unlabelled nodes are in no split
    split = {"train": np.arange(5, 10), "valid": np.arange(10, 20), "test": np.arange(20, 30)}
    logits = draw.normal(size=(30, 3)).astype(np.float16)
    stage = save_logits(tmp_path, "00_lm_gold", logits)
    (tmp_path / "stages" / ".01_gnn_gold.part").mkdir()
    assert read_descriptions(stage) is None
    describe_run(tmp_path, labels, split, NAMES)
    found = read_descriptions(stage)
    assert found == {
        part: describe_predictions(logits[split[part]], labels[split[part]], NAMES) for part in found or {}
    }
    assert set(found or {}) == {"valid", "test"}
    assert len((found or {})["test"]["bins"]) == BINS
    assert not list(tmp_path.glob("stages/.*/*"))
    (stage / "predictions.json").write_text("{}")
    describe_run(tmp_path, labels, split, NAMES)
    assert (stage / "predictions.json").read_text() == "{}"  # as it was


def test_logits_of_another_graph_and_damaged_files_are_named(tmp_path: Path) -> None:
    stage = save_logits(tmp_path, "00_lm_gold", np.zeros((4, 3)))
    split = {"valid": np.array([0]), "test": np.array([1])}
    with pytest.raises(ValueError, match=r"logits\.npy: predictions for 4 nodes, but the graph has 5"):
        describe_run(tmp_path, np.zeros(5, dtype=np.int64), split, NAMES)
    with pytest.raises(ValueError, match=r"00_lm_gold.logits\.npy: logits have shape"):
        describe_run(tmp_path, np.zeros(4, dtype=np.int64), split, ["a", "b"])
    for content in ("", "[]", '{"valid": {}}'):
        (stage / "predictions.json").write_text(content)
        with pytest.raises(ValueError, match=r"predictions\.json is damaged"):
            read_descriptions(stage)
