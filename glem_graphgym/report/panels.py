"""The panels of a leaderboard page: one function per panel, from a `Board` to what ``templates/panel.html`` shows."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from glem_graphgym.modes import METHODS
from glem_graphgym.report.axes import FOLDER, SIMPLEST_FIRST, SMOOTHED, axis_sentence, network_of
from glem_graphgym.report.charts import Chart, nice_step, padded
from glem_graphgym.report.experiments import Experiment, Row, Spread, percent
from glem_graphgym.report.leaderboard import Board
from glem_graphgym.report.reliability import BINS, Description, pool
from glem_graphgym.report.stats import diagnostic_text, in_order

MAX_CLASSES, MAX_AXES, MAX_LABELS, MAX_OTHER_SERIES, MAX_CONFUSIONS = 25, 12, 10, 30, 12
# Possible ticks of a time axis, in seconds.
ROUND_TIMES = [f * u for u in (1e-3, 1e-2, 0.1, 1, 10) for f in (1, 2, 5)]
ROUND_TIMES += [f * 60 for f in (1, 2, 5, 10, 20, 40)] + [f * 3600 for f in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)]
DIAGNOSTICS: dict[str, str] = yaml.safe_load((FOLDER / "diagnostics.yaml").read_text(encoding="utf-8"))
MODEL_COLORS = {"LM": "var(--glem-lm)", "GNN": "var(--glem-gnn)"}
COLORED = (*METHODS, "LM+Cascade", "GLEM-LM+GNN")

Series = dict[str, dict[str, list[Row]]]
# Name of a macro of templates/panel.html, and the data that it shows; empty if the board lacks them.
Panel = tuple[str, dict[str, Any]]


def all_panels(board: Board) -> list[Panel]:
    experiments = [board.experiments[row.experiment] for row in board.rows]
    focus = next((experiment for experiment in experiments if experiment.stages["em_iteration"].any()), None)
    panels: dict[str, dict[str, Any]] = {"em": {}, "compute": compute_panel(board), "agreement": {}, "diagnostics": {}}
    if focus:
        last = focus.stages[focus.stages["em_iteration"] == focus.stages["em_iteration"].max()]
        caption = {"name": words_for(board, focus), "seeds": len(focus.runs), "seeds_at_end": last["seed"].nunique()}
        for name, em_panel_of in (("em", em_panel), ("agreement", agreement_panel), ("diagnostics", diagnostics_panel)):
            panels[name] = em_panel_of(board, focus, caption)
    return [*panels.items(), *sensitivity_panels(board), *described_panels(board)]


def color_of(method: str) -> str:
    """CSS colour of a method; with Correct & Smooth a shade of the colour of the method that it refines."""
    base = method.removesuffix(SMOOTHED)
    color = f"var(--{base.lower().replace('+', '-')})" if base in COLORED else "var(--other)"
    return color if base == method else f"color-mix(in srgb,{color} 55%,var(--text))"


def mark_of(method: str) -> str:
    """Shape of a method's mark: a square for Correct & Smooth, a diamond for an ensemble."""
    return "square" if method.endswith(SMOOTHED) else "diamond" if "+" in method else "circle"


def seconds_text(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _score_chart(
    y_name: str, label: str, x_name: str, x_range: tuple[float, float], spreads: Iterable[Spread],
    means: Iterable[Spread] = (), ticks: Sequence[str] = (), **chart_options: Any,
) -> Chart:  # fmt: skip
    """A chart of scores in % whose y range covers ``spreads`` and ``means``; ``ticks`` are texts at x = 0, 1, …"""
    shares = [end for spread in spreads for end in spread.ends] + [spread.mean for spread in means]
    shares = [share for share in shares if not math.isnan(share)]
    if ticks:
        chart_options["x_ticks"] = [(float(position), text) for position, text in enumerate(ticks)]
    return Chart(label, x_name, f"{y_name}, %", x_range, padded([100 * share for share in shares]), **chart_options)


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _spreads(lines: Iterable[Mapping[Any, Spread]]) -> list[Spread]:
    return [spread for points in lines for spread in points.values()]


def _percents(spread: Spread) -> tuple[float, float]:
    return 100 * spread.ends[0], 100 * spread.ends[1]


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _line(
    chart: Chart, points: Mapping[float, Spread], names: Mapping[float, str], color: str, style: str = "",
    dots: str = "", radius: float = 3.5, band: bool = False,
) -> None:  # fmt: skip
    """Draw a line through scores, a dot per point with its name as the tooltip, and optionally a band of ± 1 std."""
    ranges = [(x, *_percents(s)) for x, s in points.items() if s.std is not None]
    if band and len(ranges) > 1:
        chart.band(ranges, color)
    chart.line([(x, 100 * s.mean) for x, s in points.items()], color, style=style)
    for x, s in points.items():
        chart.dot(x, 100 * s.mean, color, f"{names[x]}: {percent(s)} %", dots, radius)


def _row_mark(chart: Chart, x: float, row: Row, shape: str = "circle", radius: float = 4, costs: str = "") -> None:
    """Draw a row's test score ± std, and a ring for its validation score."""
    color = color_of(row.method)
    chart.whisker(x, *_percents(row.test), color)
    valid, test = f"{row.name}: validation {percent(row.valid)} %", f"{row.name}: test {percent(row.test)} %{costs}"
    chart.dot(x, 100 * row.valid.mean, color, valid, "hollow", 3.5, shape)
    chart.dot(x, 100 * row.test.mean, color, test, radius=radius, shape=shape)


def words_for(board: Board, experiment: Experiment) -> str:
    """An experiment in words: its best row's name without the model, ``GLEM (SAGE, 2 iterations)``."""
    return next(row.name for row in board.rows if row.experiment == experiment.name).partition(" · ")[0]


def _over_seeds(stages: pd.DataFrame, value: str, key: Any) -> dict[Any, Spread]:
    """Mean and std over seeds of column ``value``, by column ``key`` or a list of columns."""
    return {group: Spread.of(numbers) for group, numbers in stages.groupby(key)[value]}


def em_scores(experiment: Experiment, model: str, split: str) -> dict[float, Spread]:
    """Score of the LM or GNN at each EM iteration, over seeds; iteration 0 is training on gold labels."""
    return _over_seeds(experiment.stages[experiment.stages["model"] == model], split, "em_iteration")


def em_panel(board: Board, focus: Experiment, caption: dict[str, Any]) -> dict[str, Any]:
    series = {(model, split): em_scores(focus, model, split) for model in ("LM", "GNN") for split in ("test", "valid")}
    other_series = [
        em_scores(experiment, "GNN", "valid") for experiment in board.experiments.values() if experiment is not focus
    ][:MAX_OTHER_SERIES]
    other_series = [points for points in other_series if len(points) > 1]
    last_iteration = int(max(iteration for points in [*series.values(), *other_series] for iteration in points))
    label = f"{upper_first(board.score)} by EM iteration of {caption['name']}: LM and GNN, validation and test"
    chart = _score_chart(
        board.score, label, "EM iteration (0: gold labels alone)", (-0.15, last_iteration + 0.15),
        _spreads(series.values()), _spreads(other_series),
        x_ticks=[
            (float(iteration), str(iteration))
            for iteration in range(0, last_iteration + 1, max(1, math.ceil(last_iteration / 8)))
        ],
    )  # fmt: skip
    for points in other_series:
        points_in_percent = [(iteration, 100 * spread.mean) for iteration, spread in points.items()]
        chart.line(points_in_percent, "var(--muted)", "another experiment, GNN, validation", "faint")
    for (model, split), points in series.items():
        names = {iteration: f"{model}, EM iteration {iteration}, {split}" for iteration in points}
        style, dots = ("dashed", "hollow") if split == "test" else ("", "")
        _line(chart, points, names, MODEL_COLORS[model], style, dots, band=split == "valid")
    return {**caption, "chart": chart, "score": board.score}


def _diagnostics(experiment: Experiment) -> pd.DataFrame:
    """A row per seed and stage: its "index", its "name", and a column per diagnostic, NaN if the stage has none."""
    values = pd.DataFrame(experiment.stages["diagnostics"].tolist(), index=experiment.stages.index)
    return experiment.stages[["index", "name"]].join(values)


def agreement_panel(board: Board, focus: Experiment, caption: dict[str, Any]) -> dict[str, Any]:
    texts = {"agreement": "same class predicted", "pseudo_accuracy_valid": "pseudo-labels right (validation)"}
    diagnostics = _diagnostics(focus)
    if "agreement" not in diagnostics:
        return {}
    lines = {
        key: _over_seeds(diagnostics.dropna(subset=key), key, ["index", "name"]) for key in texts if key in diagnostics
    }
    steps = {index: step for points in lines.values() for index, step in points}
    chart = _score_chart(
        "share of nodes", f"Agreement of LM and GNN after each step of {caption['name']}",
        "step (E: the LM learns, M: the GNN learns)",
        (min(steps) - 0.3, max(steps) + 0.3), _spreads(lines.values()),
        x_ticks=[(float(index), _step(step)) for index, step in sorted(steps.items())],
    )  # fmt: skip
    colors = dict(zip(texts, ("var(--accent)", "var(--cascade)"), strict=True))
    for key, points in lines.items():
        titles = {float(index): f"{step}, {texts[key]}" for index, step in points}
        _line(chart, {index: spread for (index, _), spread in points.items()}, titles, colors[key], band=True)
    return {**caption, "chart": chart, "legend": [(texts[key], colors[key], "solid") for key in lines]}


def _step(name: str) -> str:
    """``e_step_2`` -> ``E2``."""
    kind, _, number = name.rpartition("_")
    return f"{kind[:1].upper()}{number}" if number.isdigit() else _short(name, 8)


def diagnostics_panel(board: Board, focus: Experiment, caption: dict[str, Any]) -> dict[str, Any]:
    diagnostics = _diagnostics(focus)
    keys = [key for key in DIAGNOSTICS if key in diagnostics]
    means = diagnostics.dropna(subset=keys, how="all").groupby(["index", "name"])[keys].mean()
    rows = {
        stage: ["" if math.isnan(value) else diagnostic_text(value) for value in row]
        for stage, *row in means.itertuples()
    }
    return {**caption, "meanings": {key: DIAGNOSTICS[key] for key in keys}, "rows": rows} if keys else {}


def compute_panel(board: Board) -> dict[str, Any]:
    seconds = {row: row.seconds for row in board.rows if row.seconds}
    if not seconds:
        return {}
    score, low, high = board.score, min(seconds.values()), max(seconds.values())
    log = high > 5 * low
    chart = _score_chart(
        score, f"{upper_first(score)} against compute: test {score} of {len(seconds)} methods over the seconds that it "
        "took to get there",
        "time from start to that model", (low / 1.4, high * 1.4) if log else padded((low, high), 0.15),
        [row.test for row in seconds], [row.valid for row in seconds], log_x=log,
    )  # fmt: skip
    chart.x_ticks = _time_ticks(chart)
    for row, row_seconds in reversed(seconds.items()):
        costs = f", {seconds_text(row_seconds)}, {row.params:,} parameters"
        _row_mark(chart, row_seconds, row, mark_of(row.method), 5, costs)
    labelled_points = [
        (row_seconds, 100 * getattr(row, board.split).mean, _short(row.name, 36))
        for row, row_seconds in seconds.items()
    ]
    rings = [(row_seconds, 100 * row.valid.mean) for row, row_seconds in seconds.items()]
    chart.labels(labelled_points[:MAX_LABELS], [*rings, *(point[:2] for point in labelled_points[MAX_LABELS:])])
    methods = list(dict.fromkeys(row.method for row in seconds))
    return {"chart": chart, "score": score, "methods": methods, "log": log}


def _time_ticks(chart: Chart) -> list[tuple[float, str]]:
    low, high = chart.x_range
    ticks = [seconds for seconds in ROUND_TIMES if low <= seconds <= high]
    if len(ticks) < 2 or not chart.log_x:
        unit = 3600 if high > 7200 else 60 if high > 150 else 1
        step = nice_step((high - low) / unit / 5) * unit
        ticks = [multiple * step for multiple in range(math.ceil(low / step), math.floor(high / step) + 1)]
    ticks = ticks[:: math.ceil(len(ticks) / 7)]
    return chart.apart([(seconds, seconds_text(seconds)) for seconds in ticks if seconds > 0 or not chart.log_x])


def sensitivity_panels(board: Board) -> list[Panel]:
    """A panel for train modes, then one per axis; the final method of its mode represents each experiment."""
    final = board.final_rows
    panels = _mode_panel(board, final)
    for axis, values in list(board.axes.items())[:MAX_AXES]:
        series: Series = {}
        for value, name in ((value, name) for value, names in values.items() for name in names):
            if name in final:
                series.setdefault(final[name].method, {}).setdefault(value, []).append(final[name])
        series = {method: rows for method, rows in series.items() if len(rows) > 1}
        if series:
            panels.append(_sensitivity(board.score, axis, list(values), series))
    undrawn = len(board.axes) - MAX_AXES
    return panels + [("further", {"left": undrawn})] * (undrawn > 0)


def _sensitivity(score: str, axis: str, values: Sequence[str], series: Series) -> Panel:
    """Score by the value of an axis: a line per split and method; ``series`` holds methods with at least two values."""
    groups = [rows for rows_by_value in series.values() for rows in rows_by_value.values()]
    shown_values = [value for value in values if any(value in rows_by_value for rows_by_value in series.values())]
    name, alone = _short(axis, 44), len(series) == 1
    chart = _score_chart(
        score, f"{upper_first(score)} of {', '.join(series)} for each value of {axis}", name,
        (-0.4, len(shown_values) - 0.6),
        [spread for rows in groups for row in rows for spread in (row.valid, row.test)],
        ticks=[_short(value, max(5, 64 // len(shown_values))) for value in shown_values],
    )  # fmt: skip
    legend = []
    for method, rows_by_value in series.items():
        test = "var(--muted)" if alone else color_of(method)
        for split, color, style in (("test", test, "dashed"), ("valid", color_of(method), "")):
            rows_by_position = {
                float(position): rows_by_value[value]
                for position, value in enumerate(shown_values)
                if value in rows_by_value
            }
            names = {
                float(position): f"{method}, {axis} = {value}, {split}" for position, value in enumerate(shown_values)
            }
            _line(chart, _over_rows(chart, rows_by_position, split, color), names, color, style, radius=4)
            legend.append((split if alone else f"{method}, {split}", color, style or "solid"))
    several = max(map(len, groups)) > 1
    data = {"chart": chart, "name": name, "methods": list(series), "several": several, "legend": legend}
    return "sensitivity", {**data, "sentence": axis_sentence(axis)}


def _over_rows(
    chart: Chart, rows_by_position: Mapping[float, list[Row]], split: str, color: str
) -> dict[float, Spread]:
    """Draw whiskers and return the score per position: of one row over seeds, or over several rows (faint dots)."""
    scores = {}
    for position, rows in rows_by_position.items():
        row_scores = [row.valid if split == "valid" else row.test for row in rows]
        scores[position] = Spread.of(score.mean for score in row_scores) if len(rows) > 1 else row_scores[0]
        for row, score in zip(rows, row_scores, strict=True) if len(rows) > 1 else ():
            chart.dot(position, 100 * score.mean, color, f"{row.name}, {split}: {percent(score)} %", "faint", 2.5)
        chart.whisker(position, *_percents(scores[position]), color)
    return scores


def _mode_panel(board: Board, final: Mapping[str, Row]) -> list[Panel]:
    """Train modes side by side, with a line through experiments with the same GNN; no panel for a single mode."""
    modes: dict[str, dict[str, Row]] = {}
    for mode in SIMPLEST_FIRST:
        rows = {name: row for name, row in final.items() if board.experiments[name].mode == mode}
        if rows:
            modes[mode] = rows
    if len(modes) < 2:
        return []
    all_rows = [row for rows in modes.values() for row in rows.values()]
    chart = _score_chart(
        board.score, f"{upper_first(board.score)} of each train mode", "train.mode", (-0.4, len(modes) - 0.3),
        [row.test for row in all_rows], [row.valid for row in all_rows], [mode.removeprefix("glem_") for mode in modes],
    )  # fmt: skip
    by_network = _mode_scores_by_network(board, modes)
    for network, points in by_network.items():
        chart.line(points, "var(--muted)", network)
    chart.labels([(*points[-1], _short(network, 12)) for network, points in by_network.items()])
    for position, rows in enumerate(modes.values()):
        for row in rows.values():
            _row_mark(chart, position, row)
    return [("modes", {"chart": chart, "methods": [next(iter(rows.values())).method for rows in modes.values()]})]


def _mode_scores_by_network(
    board: Board, modes: Mapping[str, Mapping[str, Row]]
) -> dict[str, list[tuple[float, float]]]:
    """Points (position of the mode, mean test score in %) by GNN; GNNs with a single mode are left out."""
    scores: dict[str, dict[float, list[float]]] = {}
    for position, (mode, rows) in enumerate(modes.items()):
        for name, row in rows.items() if mode != "glem_lm" else ():
            points = scores.setdefault(network_of(board.experiments[name]), {})
            points.setdefault(float(position), []).append(100 * row.test.mean)
    means = {
        network: [(position, statistics.fmean(row_scores)) for position, row_scores in points.items()]
        for network, points in scores.items()
    }
    return {network: points for network, points in means.items() if len(points) > 1}


def described_panels(board: Board) -> list[Panel]:
    """Calibration and classes of the best-ranked experiment with ``predictions.json``, from each seed's best stage."""
    for row in board.rows:
        experiment = board.experiments[row.experiment]
        names = in_order(experiment.results["method"])
        methods = {method: experiment.descriptions(method, board.split) for method in names}
        if methods := {method: descriptions for method, descriptions in methods.items() if descriptions}:
            caption = {"experiment": words_for(board, experiment), "split": board.split}
            return [("calibration", calibration_panel(methods) | caption), ("classes", class_panel(methods) | caption)]
    return [("calibration", {}), ("classes", {})]


def calibration_panel(methods: Mapping[str, Sequence[Description]]) -> dict[str, Any]:
    """A reliability diagram per method: accuracy of the predictions in each bin of confidence."""
    diagrams = []
    for method, seeds in methods.items():
        pooled, error = pool(seeds), Spread.of(description["ece"] for description in seeds)
        label = f"Calibration of {method}: accuracy by confidence"
        chart = Chart(label, "confidence, %", "accuracy, %", (0, 100), (0, 100), width=340, height=280)
        for row in pooled["bins"]:
            if row["count"]:
                low, high, accuracy, confidence = (100 * row[key] for key in ("low", "high", "accuracy", "confidence"))
                share = 100 * row["count"] / pooled["nodes"]
                text = f"confidence {confidence:.1f} %, accuracy {accuracy:.1f} %, {share:.1f} % of the nodes"
                chart.bar((low, high), (0, accuracy), color_of(method), text)
                chart.bar((low, high), (accuracy, confidence), color_of(method), text, "gap")
        chart.line([(0, 0), (100, 100)], "var(--muted)", "perfectly calibrated", "dashed")
        diagrams.append((method, percent(error), chart))
    return {"diagrams": diagrams, "bins": BINS}


def class_panel(methods: Mapping[str, Sequence[Description]]) -> dict[str, Any]:
    """Accuracy per class, the largest first, as a chart and a table, and the last method's confusions."""
    pooled = {method: pool(seeds) for method, seeds in methods.items()}
    classes = next(iter(pooled.values()))["classes"]
    order = sorted(range(len(classes)), key=lambda index: -classes[index]["support"])
    order = [index for index in order if classes[index]["support"]]
    shown_classes = order[:MAX_CLASSES]
    chart = Chart(
        f"Accuracy by class of {', '.join(pooled)}", "accuracy, %", "", (-2, 102), (len(shown_classes) - 0.3, -0.7),
        width=520, height=70 + 19 * len(shown_classes), left=130,
        y_ticks=[(float(position), _short(classes[index]["name"], 20)) for position, index in enumerate(shown_classes)],
    )  # fmt: skip
    for position, index in enumerate(shown_classes):
        pooled_rows = {method: description["classes"][index] for method, description in pooled.items()}
        shares = {
            method: 100 * row["correct"] / row["support"] for method, row in pooled_rows.items() if row["support"]
        }
        chart.line([(min(shares.values()), position), (max(shares.values()), position)], "var(--muted)", style="faint")
        for method, share in shares.items():
            text = f"{pooled_rows[method]['name']}, {method}: {share:.1f} % of {pooled_rows[method]['support']:,}"
            chart.dot(share, position, color_of(method), text, radius=4.5, shape=mark_of(method))
    last_method = list(pooled)[-1]
    rows = []
    for index in order:
        seed_rows_by_method = [[description["classes"][index] for description in seeds] for seeds in methods.values()]
        nodes = statistics.fmean(class_row["support"] for class_row in seed_rows_by_method[0])
        cells = [
            percent(Spread.of(row["correct"] / row["support"] for row in seed_rows if row["support"]))
            for seed_rows in seed_rows_by_method
        ]
        rows.append((classes[index]["name"], nodes, cells))
    confusions = pooled[last_method]["confusions"][:MAX_CONFUSIONS]
    return {
        "chart": chart, "methods": list(pooled), "rows": rows, "shown": len(shown_classes),
        "last": last_method, "seeds": len(methods[last_method]), "nodes": pooled[last_method]["nodes"],
        "confusions": confusions,
    }  # fmt: skip
