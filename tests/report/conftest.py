"""Run folders as run/main.py leaves them, with numbers made to order."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from glem_graphgym.files import write_json
from glem_graphgym.report.reliability import describe_run
from glem_graphgym.report.stats import finish_run

CLASSES = ["admin", "<b>games</b>", "science", "net & web"]
NODES = 120
# What a run notes of ogbn-arxiv.
FACTS = {"nodes": 169_343, "edges": 1_157_799, "classes": 40, "train": 90_941, "valid": 29_799, "test": 48_603}
FACTS |= {"edge_homophily": 0.65, "label_rate": 0.537, "empty_texts": 0.0}  # type: ignore[dict-item]
ARXIV: dict[str, Any] = {"dataset": "ogbn-arxiv", "facts": FACTS}


class Elements(HTMLParser):
    """Start and end of a page's elements with their attributes, and text; refuses what does not close in order."""

    VOID = ("meta", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append([tag, *sorted(attrs)])
        self.open += [tag] * (tag not in self.VOID)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [[tag, *sorted(attrs)], f"end of {tag}"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.found.append(f"end of {tag}")

    def handle_data(self, data: str) -> None:
        self.found += [data.strip("\n")] * bool(data.strip("\n"))


def split_of_nodes() -> dict[str, np.ndarray]:
    return {"train": np.arange(20), "valid": np.arange(20, 60), "test": np.arange(60, NODES)}


def labels_of_nodes() -> np.ndarray:
    return np.arange(NODES) % len(CLASSES)


def logits_of(valid: float, seed: int) -> np.ndarray:
    """Logits that are right for about the share ``valid`` of nodes."""
    draw = np.random.default_rng([seed, round(1000 * valid)])
    labels = labels_of_nodes()
    wrong = draw.random(NODES) > valid
    shown = np.where(wrong, (labels + draw.integers(1, len(CLASSES), NODES)) % len(CLASSES), labels)
    logits = draw.normal(size=(NODES, len(CLASSES)))
    logits[np.arange(NODES), shown] += 3.5
    return logits.astype(np.float16)


STAGES = [
    ("lm_gold", "LM", "LM", 0),
    ("gnn_gold", "GNN", "Cascade", 0),
    ("e_step_1", "LM", "GLEM-LM", 1),
    ("m_step_1", "GNN", "GLEM-GNN", 1),
]


def stage_record(index: int, valid: float, test: float) -> dict[str, Any]:
    name, model, method, iteration = STAGES[index]
    about = {"index": index, "name": name, "model": model, "method": method, "em_iteration": iteration}
    costs = {"seconds": 100.0, "params": 20000} if model == "LM" else {"seconds": 10.0, "params": 300}
    costs |= {"peak_memory_mb": 500.0 + index, "lr": 2e-5, "epochs": 3, "best_epoch": 2.0}
    scores = {"train": 0.95, "valid": valid, "test": test}
    further = {"macro_f1": 0.9, "balanced_accuracy": 0.8}
    parts = {
        split: {"accuracy": value, "loss": 1 - value, **{name: value * part for name, part in further.items()}}
        for split, value in scores.items()
    }
    diagnostics = {"agreement": 0.8 + valid / 10, "pseudo_accuracy_valid": valid, "pseudo_candidates": 100}
    return {**about, **costs, "scores": parts, "diagnostics": diagnostics if iteration else {}}


def save_run(
    experiment: Path,
    seed: int,
    scores: Sequence[tuple[float, float]] = ((0.70, 0.71), (0.74, 0.73), (0.73, 0.74), (0.78, 0.76)),
    *,
    dataset: str = "debian",
    fingerprint: str = "27fc6cf3f908e571",
    settings: Mapping[str, Any] | None = None,
    described: bool = False,
    finished: bool = True,
    **about: Any,
) -> Path:
    """A run of GLEM: (valid, test) of LM, Cascade, GLEM-LM and GLEM-GNN."""
    folder = experiment / str(seed)
    known = {"glem.alpha": 0.5, "lm.model": "sentence-transformers/all-MiniLM-L6-v2", "model.type": "glem_sage"}
    known |= {"lm.pretrained": True, "glem.node_features": "text+static", "glem.first_predictions": ""}
    graph = {"dataset": dataset, "fingerprint": fingerprint, "origin": {"nodes": NODES}, "metric": "accuracy"}
    identity = {"seed": seed, "mode": "glem", **graph, "settings": {"seed": seed, **known, **(settings or {})}}
    identity |= {"files": {}, **about}
    write_json(folder / "run.json", identity)
    for index, (valid, test) in enumerate(scores):
        stage = folder / "stages" / f"{index:02d}_{STAGES[index][0]}"
        write_json(stage / "stage.json", stage_record(index, valid, test))
        np.save(stage / "logits.npy", logits_of(valid, seed))
    if described:
        numbers = {"neighbours": np.arange(NODES - 60.0), "homophily": np.where(np.arange(NODES - 60) % 2, 0.5, np.nan)}
        describe_run(folder, labels_of_nodes(), split_of_nodes(), CLASSES, lambda: numbers)
    if finished:
        finish_run(folder)
    return folder


def save_stock_run(experiment: Path, seed: int, val: Sequence[float], test: float, **about: Any) -> Path:
    """A run of stock GraphGym: a row per epoch, test once at the end."""
    folder = experiment / str(seed)
    settings = {"seed": seed, "model.type": "gnn"}
    identity = {"seed": seed, "mode": "standard", "dataset": "debian", "settings": settings, "files": {}}
    write_json(folder / "run.json", {**identity, "finished": True, **about})
    rows = [{"epoch": e, "loss": 1 - a, "lr": 0.01, "params": 4321, "time_iter": 0.1, "accuracy": a}
            for e, a in enumerate(val)]  # fmt: skip
    last = {**rows[-1], "epoch": len(val), "accuracy": test}
    for split, lines in (("train", rows), ("val", rows), ("test", [last])):
        file = folder / split / "stats.json"
        file.parent.mkdir(parents=True)
        file.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Two values of α with four seeds each, and stock GraphGym on the same graph with three."""
    folder = tmp_path / "results" / "grid"
    for alpha, gain in ((0.3, 0.0), (0.7, 0.01)):
        for seed in range(4):
            shake = [0.004, -0.002, 0.001, 0.003][seed]
            scores = [(0.70 + shake, 0.69 - shake), (0.74 + shake, 0.73 + shake), (0.73 + gain, 0.74 + 2 * shake),
                      (0.78 + gain + shake, 0.76 + gain - shake)]  # fmt: skip
            save_run(folder / f"glem-alpha={alpha}", seed, scores, settings={"glem.alpha": alpha}, described=True)
    for seed in range(3):
        save_stock_run(folder / "stock", seed, [0.5, 0.66, 0.6], 0.6 + seed / 100, fingerprint="27fc6cf3f908e571")
    (folder / "agg").mkdir()
    (folder / "notes.txt").write_text("not a run")
    return folder
