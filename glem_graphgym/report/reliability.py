"""Quality of predictions: accuracy by class, confusions, calibration.

``<stage>/predictions.json`` holds the result of `describe_predictions` for ``valid`` and ``test``;
``<stage>/test_predictions.npz`` holds ``true`` and ``predicted`` classes of the test nodes, uint16 (n,) each. The run
itself writes them, so that a report needs neither the graph nor the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.files import atomic_write, read_json, reading, write_json

FILE, CLASSES_FILE, PROPERTIES_FILE = "predictions.json", "test_predictions.npz", "test_nodes.npz"
BINS = 15  # as in Guo et al., On Calibration of Modern Neural Networks, ICML 2017
TOP_CONFUSIONS = 50
DESCRIBED = ("valid", "test")
_CHUNK = 1 << 16  # nodes whose probabilities are in memory at once

Description = dict[str, Any]


def describe_predictions(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> Description:
    """Compare logits with labels; the result is strict JSON.

    The confidence of a node is its largest probability. Bin b of the 15 holds the nodes with confidence in
    (b/15, (b+1)/15]; the expected calibration error is the mean over nodes of the distance between accuracy and mean
    confidence of their bin (Guo et al. 2017, equation 3).

    Args:
        logits: float (n, C); may be memory-mapped.
        labels: int (n,), class indices.
        class_names: C names.

    Returns:
        ``nodes``, ``accuracy``, ``ece``, ``classes`` (``name``, ``support``, ``predicted``, ``correct``; in class
        order), ``confusions`` (``true``, ``predicted``, ``count``; the most frequent first) and ``bins`` (``low``,
        ``high``, ``count``, ``confidence``, ``accuracy``; the last two are null in an empty bin).

    Raises:
        ValueError: shapes do not fit, a label is no class, or a logit is not finite.
    """
    size = len(class_names)
    if logits.ndim != 2 or logits.shape != (len(labels), size) or not len(labels):
        raise ValueError(f"logits have shape {logits.shape}, expected (n, C) = ({len(labels)}, {size}) with n > 0")
    if labels.min() < 0 or labels.max() >= size:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, expected 0 to {size - 1}; give labelled nodes only"
        )
    predicted, confidence = _predict(logits)
    correct = predicted == labels
    pairs = np.bincount(labels.astype(np.int64) * size + predicted, minlength=size * size).reshape(size, size)
    names = np.array([str(name) for name in class_names], dtype=object)
    classes = {"name": names, "support": pairs.sum(1), "predicted": pairs.sum(0), "correct": pairs.diagonal()}
    true, confused_with = np.nonzero(pairs - np.diag(pairs.diagonal()))
    confusions = pd.DataFrame(
        {"true": names[true], "predicted": names[confused_with], "count": pairs[true, confused_with]}
    )
    bin_index = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    counts, confidences, hits = (
        np.bincount(bin_index, weights, minlength=BINS) for weights in (None, confidence, correct)
    )
    return {
        "nodes": len(labels),
        "accuracy": float(correct.mean()),
        "ece": float(np.abs(hits - confidences).sum() / len(labels)),
        "classes": pd.DataFrame(classes).to_dict("records"),
        "confusions": _most_frequent(confusions),
        "bins": _bins(counts, confidences, hits),
    }


def _most_frequent(confusions: pd.DataFrame) -> list[dict[Any, Any]]:
    ordered = confusions.sort_values("count", ascending=False, kind="stable")
    return ordered.head(TOP_CONFUSIONS).to_dict("records")


def _predict(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class int64 (n,) and confidence float64 (n,)."""
    predicted = np.empty(len(logits), dtype=np.int64)
    confidence = np.empty(len(logits))
    for start in range(0, len(logits), _CHUNK):
        chunk = np.asarray(logits[start : start + _CHUNK], dtype=np.float64)
        if not np.isfinite(chunk).all():
            raise ValueError(f"logits of nodes {start} to {start + len(chunk) - 1} are not all finite")
        chunk = chunk - chunk.max(axis=1, keepdims=True)
        predicted[start : start + len(chunk)] = chunk.argmax(axis=1)
        confidence[start : start + len(chunk)] = 1 / np.exp(chunk).sum(axis=1)
    return predicted, confidence


def _bins(counts: np.ndarray, confidences: np.ndarray, hits: np.ndarray) -> list[dict[str, Any]]:
    """Rows of ``bins``, from the number of nodes, sum of confidences and number of correct predictions per bin."""
    sums = zip(counts.tolist(), confidences.tolist(), hits.tolist(), strict=True)
    return [
        {"low": index / BINS, "high": (index + 1) / BINS, "count": count,
         "confidence": confidence / count if count else None, "accuracy": correct / count if count else None}
        for index, (count, confidence, correct) in enumerate(sums)
    ]  # fmt: skip


def describe_run(
    run_dir: Path,
    labels: np.ndarray,
    split: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    properties: Callable[[], Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write ``predictions.json`` and ``test_predictions.npz`` into every finished stage of a run that lacks them.

    Args:
        run_dir: folder of the run, with ``stages/<ii>_<name>/logits.npy``.
        labels: int (N,), class indices of all nodes.
        split: node indices of ``valid`` and ``test``.
        properties: returns numbers of the test nodes, float (n,) each; called to write ``test_nodes.npz`` if missing.

    Raises:
        ValueError: logits do not fit the labels; names the file.
    """
    if properties and not (run_dir / PROPERTIES_FILE).exists():
        with atomic_write(run_dir / PROPERTIES_FILE) as handle:
            numbers: dict[str, Any] = dict(properties())
            np.savez_compressed(handle, **numbers)
    for stage in sorted((run_dir / "stages").glob("[0-9]*_*/stage.json")):
        file, class_file, source = (stage.parent / name for name in (FILE, CLASSES_FILE, "logits.npy"))
        if (file.exists() and class_file.exists()) or not source.exists():
            continue
        logits = np.load(source, mmap_mode="r")
        if len(logits) != len(labels):
            raise ValueError(f"{source}: predictions for {len(logits)} nodes, but the graph has {len(labels)}")
        try:
            described = {
                split_name: describe_predictions(logits[split[split_name]], labels[split[split_name]], class_names)
                for split_name in DESCRIBED
            }
            classes = {"true": labels[split["test"]], "predicted": _predict(logits[split["test"]])[0]}
            with atomic_write(class_file) as handle:
                np.savez_compressed(handle, **{name: values.astype(np.uint16) for name, values in classes.items()})
            write_json(file, described)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def read_descriptions(stage: Path) -> dict[str, Description] | None:
    """Split -> description from ``predictions.json`` in a stage's folder; None if there is no such file."""
    file, remedy = stage / FILE, "delete it and start the run again to rewrite it"
    if not file.exists():
        return None
    keys = ("nodes", "accuracy", "ece", "classes", "confusions", "bins")
    with reading(file, remedy):
        content = read_json(file, remedy)
        return {split: {key: content[split][key] for key in keys} for split in DESCRIBED}


def read_test_predictions(stage: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """True and predicted classes of the test nodes, uint16 (n,) each; None if the stage did not record them."""
    classes = _read_arrays(stage / CLASSES_FILE, ("true", "predicted"))
    return (classes["true"], classes["predicted"]) if classes else None


def read_node_properties(run_dir: Path) -> dict[str, np.ndarray]:
    """Numbers of a run's test nodes by name, float (n,) each; empty if the run did not record them."""
    return _read_arrays(run_dir / PROPERTIES_FILE)


def _read_arrays(file: Path, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    if not file.exists():
        return {}
    with reading(file, "delete it and start the run again to rewrite it"), np.load(file) as arrays:
        return {name: arrays[name] for name in names or arrays}


def pool(descriptions: Sequence[Description]) -> Description:
    """Add up ``nodes``, ``classes``, ``confusions`` and ``bins`` of several seeds' descriptions.

    A confusion that is too rare in a seed to be in its list counts 0 for that seed.

    Raises:
        ValueError: there is no description, or their classes differ.
    """
    names = [[row["name"] for row in description["classes"]] for description in descriptions]
    if not names or any(seed_names != names[0] for seed_names in names):
        raise ValueError("only descriptions of the same classes can be pooled")
    counts, confidences, accuracies = (
        np.array([[row[key] or 0 for row in description["bins"]] for description in descriptions])
        for key in ("count", "confidence", "accuracy")
    )
    classes = pd.concat([pd.DataFrame(description["classes"]) for description in descriptions]).groupby(level=0)
    pairs = [row for description in descriptions for row in description["confusions"]]
    confusions = pd.DataFrame(pairs, columns=["true", "predicted", "count"])
    return {
        "nodes": sum(description["nodes"] for description in descriptions),
        "classes": classes.agg({"name": "first", "support": "sum", "correct": "sum"}).to_dict("records"),
        "confusions": _most_frequent(confusions.groupby(["true", "predicted"], sort=False, as_index=False).sum()),
        "bins": _bins(counts.sum(0), (counts * confidences).sum(0), (counts * accuracies).sum(0)),
    }
