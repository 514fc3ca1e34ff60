"""Data for the page's row details and for its comparison of two rows."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pandas as pd

from glem_graphgym.files import read_json, reading
from glem_graphgym.report.axes import show_value, varied_settings
from glem_graphgym.report.charts import Chart, padded
from glem_graphgym.report.experiments import SPLITS, Experiment, Row, Spread
from glem_graphgym.report.leaderboard import Board
from glem_graphgym.report.panels import color_of
from glem_graphgym.report.reliability import pool, read_node_properties
from glem_graphgym.report.significance import Outcomes

MAX_CONFUSIONS, MAX_SETTINGS = 8, 40


def details_of(board: Board, row: Row) -> dict[str, Any]:
    """Data of a row's details: its origin, settings unlike the first row's, stages, confusions, training curves."""
    experiment, reference = (board.experiments[board_row.experiment] for board_row in (row, board.rows[0]))
    keys = sorted(key for keys in varied_settings([reference, experiment]) for key in keys)
    described = experiment.descriptions(row.method, board.split)
    pooled = pool(described) if described else None
    return {
        "facts": {
            "experiment": ", ".join([experiment.name, *row.same_in]),
            "train mode": experiment.mode,
            "method": row.method,
            "configuration": row.config,
            **({"language model": experiment.language_model} if experiment.language_model else {}),
            **{f"version of {name}": ", ".join(versions) for name, versions in experiment.versions.items()},
        },
        "caveat": row.caveat,
        "settings": [
            (key, *(show_value(compared.settings.get(key)) for compared in (experiment, reference))) for key in keys
        ][:MAX_SETTINGS],
        "stages": stages_of(experiment),
        "confusions": pooled["confusions"][:MAX_CONFUSIONS] if pooled else [],
        "nodes": pooled["nodes"] if pooled else 0,
        "curves": curves_of(experiment),
    }


def stages_of(experiment: Experiment) -> list[dict[str, Any]]:
    """Stages of an experiment, in order; scores, best epoch and seconds over seeds."""
    return [
        {
            "name": name, "method": seed_rows["method"].iloc[0], "params": seed_rows["params"].iloc[0],
            **{split: Spread.of(seed_rows[split]) for split in SPLITS},
            **{key: statistics.fmean(seed_rows[key]) for key in ("best_epoch", "seconds")},
        }
        for (_, name), seed_rows in experiment.stages.groupby(["index", "name"])
    ]  # fmt: skip


def curves_of(experiment: Experiment) -> list[tuple[str, Chart]]:
    """Validation score by epoch for the lowest seed: a chart per kind of model, a line per stage."""
    charts = []
    stages = experiment.stages[experiment.stages["seed"] == min(experiment.runs)]
    for model, model_stages in stages.groupby("model", sort=False):
        lines = {}
        for name, method, folder in model_stages[["name", "method", "folder"]].values.tolist():
            file = folder / "history.json"
            if file.exists():
                with reading(file, "delete it; curves are drawn of other stages then"):
                    points = [(float(row["epoch"]), 100 * float(row["valid"])) for row in read_json(file)]
                if len(points) > 1:
                    lines[name, method] = points
        if not lines:
            continue
        xs, ys = ([point[coordinate] for points in lines.values() for point in points] for coordinate in (0, 1))
        chart = Chart(
            f"Validation score by epoch of the {model}", "epoch", "validation, %", padded(xs, 0.03), padded(ys),
            width=400, height=230,
        )  # fmt: skip
        for (name, method), points in lines.items():
            chart.line(points, color_of(method), name)
        chart.labels([(*points[-1], name) for (name, _), points in lines.items()])
        charts.append((str(model), chart))
    return charts


# ---- two rows, point by point -------------------------------------------------------------------------------------


def comparison_data(board: Board) -> str:
    """JSON for the page's script that compares two rows of a board.

    ``rows``: per row its name, colour, scores per seed in %, costs, settings and accuracy per class in %; ``classes``:
    name and number of nodes; ``agreement``: see `agreement_of`; ``kinds``: see `kinds_of_nodes`.
    """
    varied = sorted(key for keys in varied_settings(list(board.experiments.values())) for key in keys)
    classes, rows = None, []
    for row in board.rows:
        experiment = board.experiments[row.experiment]
        frame = experiment.results_of(row.method)
        described = experiment.descriptions(row.method, board.split)
        pooled = pool(described)["classes"] if described else None
        classes = classes or (
            pooled and [[class_row["name"], class_row["support"] // len(described)] for class_row in pooled]
        )
        rows.append({
            "name": row.name, "color": color_of(row.method),
            "seeds": {
                str(seed): [_percent(scores["valid"]), _percent(scores["test"])] for seed, scores in frame.iterrows()
            },
            "costs": {"parameters": row.params, "seconds": row.seconds, "peak memory, MB": row.peak_memory_mb,
                      "texts trained": row.texts, "energy, J": row.energy_j},
            "settings": {key: show_value(experiment.settings.get(key)) for key in varied},
            "classes": pooled and [
                _percent(counts["correct"] / counts["support"]) if counts["support"] else None for counts in pooled
            ],
        })  # fmt: skip
    data: dict[str, Any] = {"score": board.score, "rows": rows, "classes": classes, "agreement": {}, "kinds": []}
    if not board.blind:
        data |= {"agreement": agreement_of(board), "kinds": kinds_of_nodes(board)}
    return json.dumps(data, ensure_ascii=True).replace("<", "\\u003c")


def _percent(share: float) -> float | None:
    return round(100 * float(share), 3) if share == share else None


def agreement_of(board: Board) -> dict[str, list[float]]:
    """Rows ``"i,j"``, i < j -> % of test nodes where both predict one class, only i is right, only j is right.

    These are means over seeds for which both know the same test nodes; pairs without any are missing."""
    outcomes = _outcomes(board)
    agreement = {}
    for j in range(len(outcomes)):
        for i in range(j):
            shares = [
                (
                    (predicted_i == predicted_j).mean(),
                    ((predicted_i == true) & (predicted_j != true)).mean(),
                    ((predicted_j == true) & (predicted_i != true)).mean(),
                )
                for seed, (true, predicted_i) in outcomes[i].items()
                if seed in outcomes[j]
                for true_j, predicted_j in [outcomes[j][seed]]
                if np.array_equal(true, true_j)
            ]
            if shares:
                agreement[f"{i},{j}"] = [round(100 * float(share), 2) for share in np.mean(shares, axis=0)]
    return agreement


def _outcomes(board: Board) -> list[Outcomes]:
    """Outcomes per row of the board."""
    return [board.experiments[row.experiment].outcomes(row.method) for row in board.rows]


def kinds_of_nodes(board: Board) -> list[list[Any]]:
    """Accuracy by quartile of test nodes: by number of neighbours, homophily, text length and size of the class.

    Each entry holds the quartile's name, its share of the nodes in %, then the accuracy in it of each row of the board,
    in %, as a mean over seeds (None: not known). Quartiles are of all seeds' test nodes together."""
    outcomes = _outcomes(board)
    properties: dict[int, dict[str, np.ndarray]] = {}  # by seed, on which the test nodes of a graph depend
    for row, row_outcomes in zip(board.rows, outcomes, strict=True):
        for seed, (true, _) in row_outcomes.items():
            if not properties.get(seed):
                properties[seed] = read_node_properties(board.experiments[row.experiment].folder / str(seed))
                if properties[seed]:
                    properties[seed]["class_nodes"] = np.bincount(true)[true]
    kinds = []
    for name in dict.fromkeys(name for seed_properties in properties.values() for name in seed_properties):
        values_by_seed = {seed: numbers[name] for seed, numbers in properties.items() if name in numbers}
        pooled = np.concatenate(list(values_by_seed.values()))
        pooled = pooled[np.isfinite(pooled)]
        if not len(pooled):
            continue
        bounds = np.unique(np.quantile(pooled, [0, 0.25, 0.5, 0.75, 1]))
        counts, total = np.bincount(_quartile(pooled, bounds)), sum(map(len, values_by_seed.values()))
        accuracies = []
        for row_index, row_outcomes in enumerate(outcomes):
            for seed, (true, predicted) in row_outcomes.items():
                values = values_by_seed.get(seed, np.empty(0))
                if len(values) != len(true):
                    continue
                nodes = pd.DataFrame({"quartile": _quartile(values, bounds), "right": true == predicted})
                for number, right in nodes[np.isfinite(values)].groupby("quartile")["right"]:
                    accuracies.append((number, row_index, right.mean()))
        by_quartile: Any = pd.DataFrame(accuracies, columns=["quartile", "row", "right"]).groupby("quartile")
        for number, quartile_rows in by_quartile:
            low, high = bounds[number - 1], bounds[min(number, len(bounds) - 1)]
            text = f"{name.replace('_', ' ')} {'from' if number == 1 else 'above'} {low:.4g} to {high:.4g}"
            means = quartile_rows.groupby("row")["right"].mean().reindex(range(len(board.rows)))
            kinds.append([text, round(100 * float(counts[number]) / total, 1), *map(_percent, means)])
    return kinds


def _quartile(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Number of the quartile of each value, from 1."""
    return np.clip(np.searchsorted(bounds, values, side="left"), 1, max(1, len(bounds) - 1))
