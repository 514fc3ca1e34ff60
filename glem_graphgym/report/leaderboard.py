"""The leaderboard: one row per method, ranked by validation; one board per graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from glem_graphgym.modes import MODES
from glem_graphgym.report.axes import (
    Axes,
    axes_within_modes,
    axis_sentence,
    complexity,
    leading,
    names_in_words,
    value_in_words,
)
from glem_graphgym.report.experiments import (
    STOCK,
    STOCK_CAVEAT,
    STOCK_METHOD,
    Experiment,
    Row,
    Spread,
    over_seeds,
    read_experiments,
)
from glem_graphgym.report.significance import holm, paired_difference
from glem_graphgym.report.stats import FURTHER, further_headings, heading
from glem_graphgym.scores import METRIC, METRICS, blind_folder

FINAL_METHOD = {name: mode.methods[-1] for name, mode in MODES.items()} | {STOCK: STOCK_METHOD}
PUBLISHED = Path(__file__).with_name("published.csv")
# Published results are shown only for graphs with OGB's counts (an edge is a pair of nodes). The number of edges may
# differ by the share EDGES_MAY_DIFFER, since duplicates and self-loops are counted in different ways.
PUBLISHED_GRAPHS = {
    "ogbn-arxiv": (169_343, 1_157_799, 40, 90_941, 29_799, 48_603),
    "ogbn-products": (2_449_029, 61_859_140, 47, 196_615, 39_323, 2_213_091),
    "ogbn-papers100M": (111_059_956, 1_614_062_356, 172, 1_207_179, 125_265, 214_338),
}
FACTS = ("nodes", "edges", "classes", "train", "valid", "test")
EDGES_MAY_DIFFER = 0.01


@dataclass(frozen=True)
class Board:
    """Results on one graph by one metric, ranked."""

    dataset: str
    fingerprint: str | None
    metric: str
    rows: list[Row]  # by rank
    published: list[Row]  # published results for the same dataset
    experiments: dict[str, Experiment]
    noted: dict[str, Any]  # facts on the graph, from the first run that recorded them; empty for older runs
    axes: Axes  # settings in which experiments of one train mode differ
    notes: list[str]  # what was left out, and what a reader of the table must know
    blind: bool = False  # test scores are hidden

    @property
    def all_rows(self) -> list[Row]:
        """Ours and then published ones."""
        return [*self.rows, *self.published]

    @property
    def split(self) -> str:
        """Split whose scores and predictions compare and describe the rows."""
        return "valid" if self.blind else "test"

    @property
    def title(self) -> str:
        return f"{self.dataset} ({self.fingerprint or 'fingerprint not recorded'})"

    @property
    def facts(self) -> list[str]:
        """`noted` in words."""
        if not (facts := self.noted):
            return []
        homophily = facts["edge_homophily"]
        shares = {"label rate": facts["label_rate"], "empty texts": facts["empty_texts"]}
        return [
            *(f"{facts[name]:,} {name}" for name in ("nodes", "edges", "classes")),
            *([] if homophily is None else [f"edge homophily {homophily:.2f}"]),
            *(f"{name} {100 * share:.3g} %" for name, share in shares.items()),
        ]

    @property
    def score(self) -> str:
        """The metric in words."""
        return METRICS.get(self.metric, self.metric)

    @property
    def headings(self) -> dict[str, str]:
        """``valid``, ``test`` and columns of further test scores -> their headings."""
        further = further_headings(name for row in self.rows for name in row.further)
        return {split: heading(split, self.metric) for split in ("valid", "test")} | further

    @property
    def final_rows(self) -> dict[str, Row]:
        """Experiment -> row of the method that its train mode ends with; missing if the runs did not reach it."""
        final_methods = {name: FINAL_METHOD.get(experiment.mode) for name, experiment in self.experiments.items()}
        names = [(name, row) for row in self.rows for name in (row.experiment, *row.same_in)]
        return {name: row for name, row in names if row.method == final_methods[name]}


def published_for(dataset: str, facts: Mapping[str, Any]) -> tuple[list[Row], list[str]]:
    """Published rows for a dataset, in the order of ``published.csv``; if left out, a note that says why.

    Args:
        facts: the graph's counts as runs recorded them; without those of `PUBLISHED_GRAPHS` there are no rows.
    """
    if dataset not in PUBLISHED_GRAPHS:
        return [], []
    for name, expected in zip(FACTS, PUBLISHED_GRAPHS[dataset], strict=True):
        count = facts.get(name)
        if count is None or abs(count - expected) > EDGES_MAY_DIFFER * expected * (name == "edges"):
            actual = "is not recorded" if count is None else f"is {count:,}"
            why = f"the number of {name}{' nodes' * (name in FACTS[3:])} {actual}, expected {expected:,}"
            return [], [f"published results on {dataset} are not shown, as this may be another graph: {why}"]
    table = pd.read_csv(PUBLISHED, comment="#").query("dataset == @dataset").astype(object)
    rows = []
    for row in table.where(table.notna(), None).to_dict("records"):
        valid, test = (Spread(row[split] or math.nan, row[f"{split}_std"]) for split in ("valid", "test"))
        rows.append(Row(row["method"], row["runs"], valid, test, name=row["method"], source=row["source"]))
    return rows, []


def read_boards(dirs: Sequence[Path], blind: bool = False) -> list[Board]:
    """One board per graph and metric of the runs in ``dirs`` (see `read_experiments`), most rows first.

    Args:
        blind: hide all test scores; they are hidden in any case if one of the runs is in a blind folder.
    """
    experiments, skipped_runs = read_experiments(dirs)
    blind_folders = sorted({str(folder) for experiment in experiments if (folder := blind_folder(experiment.folder))})
    if blind_folders and not blind:
        skipped_runs.append(
            f"test scores are hidden, as {', '.join(blind_folders)} is blind; they are shown once --unblind is given "
            "with that folder as --dir"
        )
    if blind := blind or bool(blind_folders):
        experiments = [experiment.blinded() for experiment in experiments]
    groups: dict[tuple[str, str | None, str], list[Experiment]] = {}
    for experiment in experiments:
        groups.setdefault((experiment.dataset, experiment.fingerprint, experiment.metric), []).append(experiment)
    boards = sorted((_board(group, blind) for group in groups.values()), key=lambda board: -len(board.rows))
    separation_notes = []
    if len(boards) > 1:
        kinds = "; ".join(
            f"{dataset}, fingerprint {fingerprint or 'not recorded'}, by {METRICS.get(metric, metric)}"
            for dataset, fingerprint, metric in groups
        )
        separation_notes.append(
            f"results on other graphs or by other metrics are not comparable: each has a table of its own ({kinds})"
        )
        if any(fingerprint is None for _, fingerprint, _ in groups):
            separation_notes.append(
                "a run that did not record its graph's fingerprint can not be shown to be on the same graph"
            )
    return [replace(board, notes=[*separation_notes, *board.notes, *skipped_runs]) for board in boards]


def _board(experiments: Sequence[Experiment], blind: bool) -> Board:
    first_experiment, by_name = experiments[0], {experiment.name: experiment for experiment in experiments}
    rows = _compared(_distinct_rows(by_name), by_name, blind)
    run_jsons = [run_json for experiment in experiments for run_json in experiment.runs.values()]
    graph_facts: dict[str, Any] = next((run_json["facts"] for run_json in run_jsons if "facts" in run_json), {})
    published, missing_published = (
        published_for(first_experiment.dataset, graph_facts) if first_experiment.metric == METRIC else ([], [])
    )
    axes = axes_within_modes(experiments)
    score = METRICS.get(first_experiment.metric, first_experiment.metric)
    notes = [
        *_notes(rows, score, blind),
        *_mixed_run_notes(experiments),
        *missing_published,
        *_axis_notes(axes, by_name),
    ]
    graph = (first_experiment.dataset, first_experiment.fingerprint, first_experiment.metric)
    return Board(*graph, rows, published, by_name, graph_facts, axes, notes, blind)


def _axis_notes(axes: Axes, experiments: Mapping[str, Experiment]) -> list[str]:
    """One sentence per axis that explains its words in the rows' names."""
    sentences = []
    for axis, values in axes.items():
        key = leading(axis.split(" + "))
        settings = [experiments[names[0]].settings.get(key) for names in values.values()]
        words = [words for value in settings if (words := value_in_words(key, value))]
        sentences.append(f"{' / '.join(dict.fromkeys(words))}: {axis_sentence(axis)} ({axis})".replace(":  (", ": ("))
    return sentences


def _distinct_rows(experiments: Mapping[str, Experiment]) -> list[Row]:
    """Rows by rank; identical results of several experiments share one row."""
    rows: dict[Any, Row] = {}
    for experiment in sorted(experiments.values(), key=lambda experiment: complexity(experiment.mode)):
        caveat, iterations = STOCK_CAVEAT if experiment.mode == STOCK else "", tuple(experiment.em_iterations)
        for row in over_seeds(experiment.results):
            scores = experiment.results_of(row.method).reindex(columns=["valid", "test", "params", *FURTHER]).fillna(-1)
            key = (experiment.mode == STOCK, row.method, *scores.itertuples(name=None))
            if key in rows:
                rows[key] = replace(rows[key], same_in=(*rows[key].same_in, experiment.name))
            else:
                origin = replace(row, experiment=experiment.name, config=experiment.config, em_iterations=iterations)
                rows[key] = replace(origin, caveat=caveat)
    ordered = sorted(rows.values(), key=lambda row: (-row.valid.mean, row.params, row.experiment, row.method))
    members = [(row.method, [experiments[name] for name in (row.experiment, *row.same_in)]) for row in ordered]
    names = names_in_words(members, list(experiments.values()))
    return [replace(row, rank=rank, name=name) for rank, (row, name) in enumerate(zip(ordered, names, strict=True), 1)]


def _compared(rows: Sequence[Row], experiments: Mapping[str, Experiment], blind: bool) -> list[Row]:
    """Add to each row its differences to the best row and to the best row that is not GLEM."""
    split = "valid" if blind else "test"
    sources = [(experiments[row.experiment], row.method) for row in rows]
    scores: list[Any] = [experiment.results_of(method)[split].to_dict() for experiment, method in sources]
    # Predictions per node say something of accuracy alone.
    outcomes = [
        {} if blind or experiment.metric != METRIC else experiment.outcomes(method) for experiment, method in sources
    ]
    compared = list(rows)
    non_glem = next((index for index, row in enumerate(rows) if not row.method.startswith("GLEM")), None)
    for field, reference in (("to_best", 0), ("to_non_glem", non_glem)):
        if reference is None:
            continue
        reference_scores, name = scores[reference], rows[reference].name
        differences = [
            None
            if index == reference
            else paired_difference(row_scores, reference_scores, name, outcomes[index], outcomes[reference])
            for index, row_scores in enumerate(scores)
        ]
        corrected: list[Any] = holm(differences)
        compared = [replace(row, **{field: difference}) for row, difference in zip(compared, corrected, strict=True)]
    return compared


def _notes(rows: Sequence[Row], score: str, blind: bool) -> list[str]:
    split = "validation" if blind else "test"
    notes = [
        f"ranked by mean validation {score}; test {score} plays no part in any choice",
        f"significance: two-sided paired t-test on {split} {score} over the seeds that both rows have, p-values "
        "Holm-corrected over the rows of the table; fewer than 3 common seeds are not tested; [95 % intervals] of "
        "differences by a paired bootstrap over seeds, and over test nodes where runs noted their predictions",
    ]
    if len({row.seeds for row in rows}) > 1:
        notes.append("rows rest on different seeds; differences are taken over the seeds that both rows have")
    if all(row.runs == 1 for row in rows):
        notes.append("one seed: there is no spread, and small differences mean nothing")
    if any(row.same_in for row in rows):
        notes.append(
            "experiments with the very same scores on every seed share a row, named after the simplest train mode; "
            "the CSV names them all (same_in)"
        )
    return notes + sorted({f"† {row.name}: {row.caveat}" for row in rows if row.caveat})


def _mixed_run_notes(experiments: Sequence[Experiment]) -> list[str]:
    notes = []
    for experiment in experiments:
        kinds = {f"versions of {name}": versions for name, versions in experiment.versions.items()}
        kinds["numbers of EM iterations"] = list(map(str, experiment.em_iterations))
        notes += [
            f"{experiment.name} was run with several {kind}: {', '.join(values)}"
            for kind, values in kinds.items()
            if len(values) > 1
        ]
    return notes
