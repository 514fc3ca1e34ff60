"""The charts of a leaderboard page: one function a panel, each from a `Board` to HTML."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from glem_graphgym.report import charts
from glem_graphgym.report.charts import Chart
from glem_graphgym.report.experiments import Experiment, best_stage, network_of, stage_folder
from glem_graphgym.report.leaderboard import SIMPLEST_FIRST, Axis, Board, Row, Spread, percent
from glem_graphgym.report.reliability import BINS, FILE, Description, pool, read_descriptions
from glem_graphgym.report.stats import DIAGNOSTICS, METHODS, in_order

MAX_CLASSES = 25
MAX_AXES = 12
MAX_LABELS = 6
MAX_OTHERS = 30
# Where an axis of time may have its ticks, in seconds.
ROUND_TIMES = [f * u for u in (1e-3, 1e-2, 0.1, 1, 10) for f in (1, 2, 5)]
ROUND_TIMES += [f * 60 for f in (1, 2, 5, 10, 20, 40)] + [f * 3600 for f in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)]
MODEL_COLORS = {"LM": "var(--glem-lm)", "GNN": "var(--glem-gnn)"}


SMOOTHED = "+C&S"
COLORED = (*METHODS, "LM+Cascade", "GLEM-LM+GNN")


def color_of(method: str) -> str:
    """A CSS colour; Correct & Smooth has a shade of the method that it comes after."""
    base = method.removesuffix(SMOOTHED)
    color = f"var(--{base.lower().replace('+', '-')})" if base in COLORED else "var(--other)"
    return color if base == method else f"color-mix(in srgb,{color} 55%,var(--text))"


def mark_of(method: str) -> str:
    """Shape of a method's mark: a square for Correct & Smooth, a diamond for an ensemble."""
    return "square" if method.endswith(SMOOTHED) else "diamond" if "+" in method else "circle"


def all_panels(board: Board) -> str:
    """Every panel of a board; one that lacks its data says what is missing."""
    described = descriptions_of(board)
    return "".join(
        [
            em_panel(board),
            compute_panel(board),
            agreement_panel(board),
            diagnostics_panel(board),
            *sensitivity_panels(board),
            calibration_panel(described),
            class_panel(described),
        ]
    )


def card(title: str, subtitle: str, body: str, legend: Sequence[tuple[str, str, str]] = (), style: str = "") -> str:
    """A panel; ``legend`` has (text, colour, style) a mark, style a class of the page's CSS."""
    keys = "".join(
        f'<span class="key"><i class="{kind}" style="--c:{color}"></i>{escape(text)}</span>'
        for text, color, kind in legend
    )
    return (
        f'<figure class="card {style}"><figcaption><h3>{escape(title)}</h3><p>{escape(subtitle)}</p></figcaption>'
        f"{f'<div class=legend>{keys}</div>' if keys else ''}{body}</figure>"
    )


def missing(title: str, reason: str) -> str:
    return card(title, "", f'<p class="missing">{escape(reason)}</p>')


def _percent_range(values: Sequence[float]) -> tuple[float, float]:
    return charts.padded([100 * value for value in values])


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


# --- accuracy by EM iteration, agreement -------------------------------------------------------------------


def with_em(board: Board) -> Experiment | None:
    """The experiment with the best row of those that had EM iterations."""
    for row in board.rows:
        experiment = board.experiments[row.experiment]
        if any(stage.em_iteration for run in experiment.runs.values() for stage in run.stages):
            return experiment
    return None


def em_scores(experiment: Experiment, model: str, split: str) -> list[tuple[int, Spread]]:
    """Score of the LM or GNN at each EM iteration, over seeds; iteration 0 is training on gold labels."""
    values: dict[int, list[float]] = {}
    for run in experiment.runs.values():
        for stage in run.stages:
            if stage.model == model:
                values.setdefault(stage.em_iteration, []).append(stage.scores[split][experiment.metric])
    return [(iteration, Spread.of(values[iteration])) for iteration in sorted(values)]


def em_panel(board: Board) -> str:
    title, focus = "Accuracy by EM iteration", with_em(board)
    if focus is None:
        return missing(title, "No run here has EM iterations.")
    series = {(m, s): em_scores(focus, m, s) for m in ("LM", "GNN") for s in ("test", "valid")}
    others = [em_scores(one, "GNN", "valid") for one in board.experiments.values() if one is not focus][:MAX_OTHERS]
    others = [points for points in others if len(points) > 1]
    ends = [s.mean + sign * (s.std or 0) for points in series.values() for _, s in points for sign in (-1, 1)]
    ends += [s.mean for points in others for _, s in points]
    last = max(i for points in [*series.values(), *others] for i, _ in points)
    chart = Chart(
        f"{title} of {focus.name}: LM and GNN, validation and test",
        "EM iteration (0: gold labels alone)", "accuracy, %", (-0.15, last + 0.15), _percent_range(ends),
    )  # fmt: skip
    for points in others:
        chart.line(
            [(i, 100 * s.mean) for i, s in points], "var(--muted)", "another experiment, GNN, validation", "faint"
        )
    for (model, split), points in series.items():
        _em_series(chart, model, split, points)
    legend = [
        (f"{m}, {s}", MODEL_COLORS[m], k) for m in ("LM", "GNN") for s, k in (("valid", "solid"), ("test", "dashed"))
    ]
    seeds = len(focus.runs)
    subtitle = f"{focus.name}; mean over {seeds} seeds, band ± 1 std" if seeds > 1 else f"{focus.name}; one seed"
    ticks = [(float(i), str(i)) for i in range(0, last + 1, max(1, math.ceil(last / 8)))]
    return card(title, subtitle, chart.svg(x_ticks=ticks), legend)


def _em_series(chart: Chart, model: str, split: str, points: Sequence[tuple[int, Spread]]) -> None:
    color = MODEL_COLORS[model]
    spread = [(i, 100 * (s.mean - s.std), 100 * (s.mean + s.std)) for i, s in points if s.std is not None]
    if split == "valid" and len(spread) > 1:
        chart.band(spread, color)
    chart.line([(i, 100 * s.mean) for i, s in points], color, style="dashed" if split == "test" else "")
    for iteration, score in points:
        name = f"{model}, EM iteration {iteration}, {split}: {percent(score)} %"
        chart.dot(iteration, 100 * score.mean, color, name, "hollow" if split == "test" else "", 3.5)


def agreement_panel(board: Board) -> str:
    title, focus = "Agreement of LM and GNN", with_em(board)
    lines = {key: [] if focus is None else _diagnostic(focus, key) for key in ("agreement", "pseudo_accuracy_valid")}
    if focus is None or not lines["agreement"]:
        return missing(title, "No stage here recorded how far LM and GNN agree; runs with EM iterations do.")
    names = {key: name for points in lines.values() for key, name, _ in points}
    ends = [s.mean + sign * (s.std or 0) for points in lines.values() for *_, s in points for sign in (-1, 1)]
    chart = Chart(
        f"{title} after each step of {focus.name}",
        "step (E: the LM learns, M: the GNN learns)", "share of nodes, %",
        (min(names) - 0.3, max(names) + 0.3), _percent_range(ends),
    )  # fmt: skip
    legend = []
    texts = {"agreement": "same class predicted", "pseudo_accuracy_valid": "pseudo-labels right (validation)"}
    for (key, points), color in zip(lines.items(), ("var(--accent)", "var(--cascade)"), strict=True):
        if not points:
            continue
        spread = [(at, 100 * (s.mean - s.std), 100 * (s.mean + s.std)) for at, _, s in points if s.std is not None]
        if len(spread) > 1:
            chart.band(spread, color)
        chart.line([(at, 100 * s.mean) for at, _, s in points], color)
        for at, name, score in points:
            chart.dot(at, 100 * score.mean, color, f"{name}, {texts[key]}: {percent(score)} %", radius=3.5)
        legend.append((texts[key], color, "solid"))
    ticks = [(float(at), _step(name)) for at, name in sorted(names.items())]
    return card(title, f"{focus.name}; over unlabelled nodes", chart.svg(x_ticks=ticks), legend)


def diagnostics_panel(board: Board) -> str:
    """What the stages of the experiment of `with_em` recorded, as a table."""
    title, focus = "Diagnostics of the EM iterations", with_em(board)
    values = {} if focus is None else {key: _diagnostic(focus, key) for key in DIAGNOSTICS}
    stages = sorted({(index, name) for points in values.values() for index, name, _ in points})
    if focus is None or not stages:
        return missing(title, "No stage here recorded any; runs with EM iterations do.")
    shown = {key: {index: spread for index, _, spread in points} for key, points in values.items() if points}
    heads = "".join(f'<th class=num title="{escape(DIAGNOSTICS[key], quote=True)}">{escape(key)}</th>' for key in shown)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td class=num>{_number(spreads.get(index))}</td>" for spreads in shown.values())
        + "</tr>"
        for index, name in stages
    )
    means = "".join(f"<li><b>{escape(key)}</b>: {escape(DIAGNOSTICS[key])}</li>" for key in shown)
    body = (
        f"<div class=scroll><table class=small><thead><tr><th>stage</th>{heads}</tr></thead><tbody>{rows}</tbody>"
        f'</table></div><details><summary>What the columns mean</summary><ul class="sub">{means}</ul></details>'
    )
    return card(title, f"{focus.name}; mean over {len(focus.runs)} seed(s)", body, style="wide")


def _number(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.mean:,.0f}" if abs(spread.mean) >= 100 else f"{spread.mean:.4f}"


def _diagnostic(experiment: Experiment, key: str) -> list[tuple[int, str, Spread]]:
    """(stage index, stage name, value over seeds) of a diagnostic of the stages."""
    values: dict[int, list[float]] = {}
    names: dict[int, str] = {}
    for run in experiment.runs.values():
        for stage in run.stages:
            if key in stage.diagnostics:
                values.setdefault(stage.index, []).append(stage.diagnostics[key])
                names[stage.index] = stage.name
    return [(index, names[index], Spread.of(values[index])) for index in sorted(values)]


def _step(name: str) -> str:
    """``e_step_2`` -> ``E2``."""
    kind, _, number = name.rpartition("_")
    return f"{kind[:1].upper()}{number}" if number.isdigit() else _short(name, 8)


# --- accuracy against compute ------------------------------------------------------------------------------


def seconds_text(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def compute_panel(board: Board) -> str:
    title = "Accuracy against compute"
    rows = [row for row in board.rows if row.seconds]
    if not rows:
        return missing(title, "No run here recorded its seconds.")
    seconds = [row.seconds for row in rows if row.seconds]
    log = max(seconds) > 5 * min(seconds)
    room = (min(seconds) / 1.4, max(seconds) * 1.4) if log else charts.padded(seconds, 0.15)
    ends = [r.test.mean + sign * (r.test.std or 0) for r in rows for sign in (-1, 1)] + [r.valid.mean for r in rows]
    chart = Chart(
        f"{title}: test accuracy of {len(rows)} methods over the seconds that it took to get there",
        "time from start to that model", "accuracy, %", room, _percent_range(ends), log_x=log,
    )  # fmt: skip
    for row in reversed(rows):
        _compute_mark(chart, row)
    if len(rows) <= MAX_LABELS:
        _compute_labels(chart, rows)
    legend = [(method, color_of(method), mark_of(method)) for method in dict.fromkeys(row.method for row in rows)]
    subtitle = "filled: test ± std; ring: validation" + ("; logarithmic time" if log else "")
    return card(title, subtitle, chart.svg(x_ticks=_time_ticks(chart)), legend)


def _time_ticks(chart: Chart) -> list[tuple[float, str]]:
    """Round times; where fewer than two are in range, plain numbers of seconds."""
    low, high = chart.x_range
    found = [seconds for seconds in ROUND_TIMES if low <= seconds <= high]
    if len(found) < 2 or not chart.log_x:
        unit = 3600 if high > 7200 else 60 if high > 150 else 1
        step = charts.nice_step((high - low) / unit / 5) * unit
        found = [place * step for place in range(math.ceil(low / step), math.floor(high / step) + 1)]
    found = found[:: math.ceil(len(found) / 7)]
    return chart.apart([(seconds, seconds_text(seconds)) for seconds in found if seconds > 0 or not chart.log_x])


def _compute_mark(chart: Chart, row: Row) -> None:
    assert row.seconds is not None
    color, at = color_of(row.method), 100 * row.test.mean
    if row.test.std:
        chart.whisker(row.seconds, at - 100 * row.test.std, at + 100 * row.test.std, color)
    cost, shape = f"{seconds_text(row.seconds)}, {row.params:,} parameters", mark_of(row.method)
    valid = f"{row.name}: validation {percent(row.valid)} %"
    chart.dot(row.seconds, 100 * row.valid.mean, color, valid, "hollow", 3.5, shape)
    chart.dot(row.seconds, at, color, f"{row.name}: test {percent(row.test)} %, {cost}", radius=5, shape=shape)


def _compute_labels(chart: Chart, rows: Sequence[Row]) -> None:
    middle = (chart.x.start + chart.x.end) / 2
    for row in rows:
        assert row.seconds is not None
        left = chart.x(row.seconds) > middle
        anchor, shift = ("end", -9) if left else ("start", 9)
        chart.text(row.seconds, 100 * row.test.mean, _short(row.name, 26), anchor, (shift, 4))


# --- sensitivity -------------------------------------------------------------------------------------------


def sensitivity_panels(board: Board) -> list[str]:
    """A panel for train modes, then one for each axis: an experiment is shown by its mode's final method."""
    final = board.final_rows
    panels = _mode_panel(board, final)
    for axis in board.axes[:MAX_AXES]:
        series = _series(board, axis, final)
        if series:
            panels.append(_sensitivity(axis, series))
    left = len(board.axes) - MAX_AXES
    if left > 0:
        panels.append(
            missing("Further settings", f"{left} more settings differ between experiments and are not drawn.")
        )
    return panels


Series = dict[str, dict[str, list[Row]]]


def _series(board: Board, axis: Axis, final: Mapping[str, Row]) -> Series:
    """By train mode's final method, which two values or more were tried with: its rows by value."""
    series: Series = {}
    for value, names in axis.values.items():
        for name in names:
            if name in final:
                series.setdefault(final[name].method, {}).setdefault(value, []).append(final[name])
    return {method: values for method, values in series.items() if len(values) > 1}


def _sensitivity(axis: Axis, series: Series) -> str:
    every = [row for values in series.values() for rows in values.values() for row in rows]
    ends = [part.mean + sign * (part.std or 0) for r in every for part in (r.valid, r.test) for sign in (-1, 1)]
    shown = [value for value in axis.values if any(value in values for values in series.values())]
    name, methods = _short(axis.name, 44), ", ".join(series)
    chart = Chart(
        f"Accuracy of {methods} for each value of {axis.name}", name, "accuracy, %",
        (-0.4, len(shown) - 0.6), _percent_range(ends),
    )  # fmt: skip
    legend = []
    for method, values in series.items():
        test = "var(--muted)" if len(series) == 1 else color_of(method)
        for split, color, style in (("test", test, "dashed"), ("valid", color_of(method), "")):
            rows_at = {float(place): values[value] for place, value in enumerate(shown) if value in values}
            texts = {float(place): f"{method}, {axis.name} = {value}" for place, value in enumerate(shown)}
            _sensitivity_line(chart, rows_at, texts, split, color, style)
            prefix = "" if len(series) == 1 else f"{method}, "
            legend.append((f"{prefix}{split}", color, style or "solid"))
    several = max(len(rows) for values in series.values() for rows in values.values()) > 1
    over = "the experiments with that value, whose other settings differ" if several else "seeds"
    subtitle = f"{methods}; mean ± std over {over}"
    if len(series) > 1:
        subtitle += "; each train mode by its final method, and compared with itself alone"
    ticks = [(float(place), _short(value, max(5, 64 // len(shown)))) for place, value in enumerate(shown)]
    return card(f"Sensitivity to {name}", subtitle, chart.svg(x_ticks=ticks), legend)


def _sensitivity_line(
    chart: Chart, rows_at: Mapping[float, list[Row]], texts: Mapping[float, str], split: str, color: str, style: str
) -> None:
    means = []
    for place, rows in rows_at.items():
        scores = [row.valid if split == "valid" else row.test for row in rows]
        spread = Spread.of(score.mean for score in scores) if len(rows) > 1 else scores[0]
        for row, score in zip(rows, scores, strict=True):
            if len(rows) > 1:
                chart.dot(place, 100 * score.mean, color, f"{row.name}, {split}: {percent(score)} %", "faint", 2.5)
        if spread.std:
            chart.whisker(place, 100 * (spread.mean - spread.std), 100 * (spread.mean + spread.std), color)
        means.append((place, spread))
    chart.line([(place, 100 * s.mean) for place, s in means], color, style=style)
    for place, s in means:
        chart.dot(place, 100 * s.mean, color, f"{texts[place]}, {split}: {percent(s)} %", radius=4)


def _mode_panel(board: Board, final: Mapping[str, Row]) -> list[str]:
    """Train modes beside one another, lines between experiments with the same GNN; nothing where there is one mode."""
    modes: dict[str, dict[str, Row]] = {}
    for mode in SIMPLEST_FIRST:
        rows = {name: row for name, row in final.items() if board.experiments[name].mode == mode}
        if rows:
            modes[mode] = rows
    if len(modes) < 2:
        return []
    every = [row for rows in modes.values() for row in rows.values()]
    ends = [r.test.mean + sign * (r.test.std or 0) for r in every for sign in (-1, 1)] + [r.valid.mean for r in every]
    chart = Chart(
        "Accuracy of each train mode", "train.mode", "accuracy, %", (-0.4, len(modes) - 0.3), _percent_range(ends)
    )
    for network, points in _by_network(board, modes).items():
        chart.line(points, "var(--muted)", network)
        chart.text(*points[-1], _short(network, 12), shift=(8, 4))
    legend = []
    for place, rows in enumerate(modes.values()):
        method = next(iter(rows.values())).method
        legend.append((method, color_of(method), mark_of(method)))
        for row in rows.values():
            _mode_mark(chart, place, row)
    ticks = [(float(place), mode.removeprefix("glem_")) for place, mode in enumerate(modes)]
    subtitle = (
        "each train mode by its final method; filled: test ± std; ring: validation; "
        "a line joins experiments with the same model.type, other settings may differ"
    )
    return [card("Sensitivity to train.mode", subtitle, chart.svg(x_ticks=ticks), legend)]


def _by_network(board: Board, modes: Mapping[str, Mapping[str, Row]]) -> dict[str, list[tuple[float, float]]]:
    """By GNN (place of the mode, mean test accuracy in %) of the modes that have it; those with two modes or more."""
    scores: dict[str, dict[float, list[float]]] = {}
    for place, (mode, rows) in enumerate(modes.items()):
        for name, row in rows.items():
            if mode != "glem_lm":
                network = network_of(board.experiments[name])
                scores.setdefault(network, {}).setdefault(float(place), []).append(100 * row.test.mean)
    found = {network: [(at, statistics.fmean(s)) for at, s in points.items()] for network, points in scores.items()}
    return {network: points for network, points in found.items() if len(points) > 1}


def _mode_mark(chart: Chart, place: int, row: Row) -> None:
    color, at = color_of(row.method), 100 * row.test.mean
    if row.test.std:
        chart.whisker(place, at - 100 * row.test.std, at + 100 * row.test.std, color)
    chart.dot(place, 100 * row.valid.mean, color, f"{row.name}: validation {percent(row.valid)} %", "hollow", 3.5)
    chart.dot(place, at, color, f"{row.name}: test {percent(row.test)} %")


# --- per-class accuracy, calibration -----------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """What the best described experiment's methods predict on test: by method, one description a seed."""

    experiment: str
    methods: dict[str, list[Description]]


def descriptions_of(board: Board) -> Described | None:
    """Of the experiment with the best row whose stages have ``predictions.json``; each seed's best stage."""
    for row in board.rows:
        experiment = board.experiments[row.experiment]
        found: dict[str, list[Description]] = {}
        for run in experiment.runs.values():
            for method in run.results:
                stage = best_stage(run, method, experiment.metric)
                parts = read_descriptions(stage_folder(run, stage)) if stage else None
                if parts:
                    found.setdefault(method, []).append(parts["test"])
        if found:
            return Described(experiment.name, {method: found[method] for method in in_order(found)})
    return None


def _not_described(title: str) -> str:
    return missing(title, f"No stage here has a {FILE}; start a finished run's command again to have it written.")


def calibration_panel(described: Described | None) -> str:
    """A reliability diagram for each method: accuracy of the predictions made with a given confidence."""
    title = "Calibration"
    if described is None:
        return _not_described(title)
    diagrams = []
    for method, seeds in described.methods.items():
        pooled, error = pool(seeds), Spread.of(one["ece"] for one in seeds)
        chart = Chart(
            f"Calibration of {method}: accuracy by confidence", "confidence, %", "accuracy, %", (0, 100), (0, 100),
            width=340, height=280,
        )  # fmt: skip
        for row in pooled["bins"]:
            if row["count"]:
                _calibration_bin(chart, row, pooled["nodes"], color_of(method))
        chart.line([(0, 0), (100, 100)], "var(--muted)", "perfectly calibrated", "dashed")
        error_text = f'<p class="sub">expected calibration error {percent(error)} %</p>'
        diagrams.append(f"<div><h4>{escape(method)}</h4>{error_text}{chart.svg()}</div>")
    legend = [("accuracy", "var(--soft)", "box"), ("gap to confidence", "var(--soft)", "gap")]
    bins = f"test nodes in {BINS} bins of equal width by confidence"
    body = f'<div class="quarters">{"".join(diagrams)}</div>'
    return card(
        title, f"{described.experiment}; {bins}; a bar below the diagonal is overconfident", body, legend, "wide"
    )


def _calibration_bin(chart: Chart, row: Mapping[str, float], nodes: int, color: str) -> None:
    edges, accuracy, confidence = (100 * row["low"], 100 * row["high"]), 100 * row["accuracy"], 100 * row["confidence"]
    share = 100 * row["count"] / nodes
    text = f"confidence {confidence:.1f} %, accuracy {accuracy:.1f} %, {share:.1f} % of the nodes"
    chart.bar(edges, (0, accuracy), color, text)
    chart.bar(edges, (accuracy, confidence), color, text, "gap")


def class_panel(described: Described | None) -> str:
    title = "Accuracy by class"
    if described is None:
        return _not_described(title)
    pooled = {method: pool(seeds) for method, seeds in described.methods.items()}
    first = next(iter(pooled.values()))
    order = sorted(range(len(first["classes"])), key=lambda index: -first["classes"][index]["support"])
    order = [index for index in order if first["classes"][index]["support"]]
    shown = order[:MAX_CLASSES]
    chart = _class_chart(title, pooled, shown)
    ticks = [(float(place), _short(first["classes"][index]["name"], 20)) for place, index in enumerate(shown)]
    which = f"the {len(shown)} largest of {len(order)} classes" if len(shown) < len(order) else "largest class first"
    legend = [(method, color_of(method), mark_of(method)) for method in pooled]
    body = f'<div class="split"><div>{chart.svg(y_ticks=ticks)}</div><div>{_confusions(pooled, described)}</div></div>'
    body += _class_table(described, order)
    return card(title, f"{described.experiment}; test nodes; {which}", body, legend, "wide")


def _class_chart(title: str, pooled: Mapping[str, Description], shown: Sequence[int]) -> Chart:
    chart = Chart(
        f"{title} of {', '.join(pooled)}", "accuracy, %", "", (-2, 102), (len(shown) - 0.3, -0.7),
        width=520, height=70 + 19 * len(shown), left=130,
    )  # fmt: skip
    for place, index in enumerate(shown):
        rows = {method: one["classes"][index] for method, one in pooled.items()}
        shares = {method: 100 * row["correct"] / row["support"] for method, row in rows.items()}
        chart.line([(min(shares.values()), place), (max(shares.values()), place)], "var(--muted)", style="faint")
        for method, share in shares.items():
            name, support = rows[method]["name"], rows[method]["support"]
            text = f"{name}, {method}: {share:.1f} % of {support:,}"
            chart.dot(share, place, color_of(method), text, radius=4.5, shape=mark_of(method))
    return chart


def _confusions(pooled: Mapping[str, Description], described: Described) -> str:
    method = list(pooled)[-1]
    seeds = len(described.methods[method])
    nodes = pooled[method]["nodes"]
    rows = "".join(
        f"<tr><td>{escape(row['true'])}</td><td>{escape(row['predicted'])}</td>"
        f'<td class="num">{row["count"]:,}</td><td class="num">{100 * row["count"] / nodes:.2f}</td></tr>'
        for row in pooled[method]["confusions"][:12]
    )
    over = f", {seeds} seeds" if seeds > 1 else ""
    return (
        f"<h4>Most frequent confusions of {escape(method)}{over}</h4><div class=scroll><table class=small><thead><tr>"
        "<th>true</th><th>predicted</th><th class=num>count</th><th class=num>% of all</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _class_table(described: Described, order: Sequence[int]) -> str:
    heads = "".join(f"<th class=num>{escape(method)} %</th>" for method in described.methods)
    rows = []
    for index in order:
        classes = {method: [one["classes"][index] for one in seeds] for method, seeds in described.methods.items()}
        first = next(iter(classes.values()))
        support = statistics.fmean(row["support"] for row in first)
        cells = "".join(
            f'<td class="num">{percent(Spread.of(row["correct"] / row["support"] for row in seeds))}</td>'
            for seeds in classes.values()
        )
        rows.append(f'<tr><td>{escape(first[0]["name"])}</td><td class="num">{support:,.0f}</td>{cells}</tr>')
    return (
        f"<details><summary>All {len(order)} classes as a table</summary><div class=scroll><table class=small><thead>"
        f"<tr><th>class</th><th class=num>test nodes</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div></details>"
    )
