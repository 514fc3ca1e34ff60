"""Entry for the OGB leaderboard: the fields of its submission form; refused if the runs break its rules.

Rules: https://ogb.stanford.edu/docs/leader_overview/ (mean and unbiased std over the seeds 0-9, three seeds for
ogbn-papers100M; parameters of all stages; external data named in the method's name; hyperparameters by validation).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Template

from glem_graphgym.files import read_json
from glem_graphgym.report.axes import network_of, show_value, sort_key, varied_settings
from glem_graphgym.report.experiments import STOCK, Experiment, Row, Spread
from glem_graphgym.report.leaderboard import Board
from glem_graphgym.scores import METRIC

SEEDS = {"ogbn-papers100M": 3}
DEFAULT_SEEDS = 10
MIN_OGB = "1.3.6"  # the latest, so that every dataset's own requirement is met
RAW_TEXT = "raw text"
TABLE = Path(__file__).parent / "templates" / "ogb_entry.md"
READ_TEXT = ("glem", "glem_lm", "glem_cascade", "glem_joint")


class OgbError(ValueError):
    """The entry breaks rules of OGB; the message lists all of them."""


def ogb_entry(board: Board, flags: Mapping[str, Any], row: Row | None = None) -> dict[str, Any]:
    """The form's fields for a row (by default the best by validation).

    Args:
        flags: facts that runs do not record, given as flags of run/leaderboard.py (its --help explains them):
            ``contact``, ``code``, ``paper``, ``hardware``, ``official``, ``name`` ("": derived from the run) and
            ``ogb_version`` ("": as the runs recorded it).

    Raises:
        OgbError: the entry breaks rules; lists all of them.
    """
    row = row or board.rows[0]
    experiment = board.experiments[row.experiment]
    required_seeds = list(range(SEEDS.get(board.dataset, DEFAULT_SEEDS)))
    version = flags["ogb_version"] or ", ".join(experiment.versions.get("ogb", []))
    problems = list(_problems(board, row, experiment, flags, required_seeds, version))
    if problems:
        raise OgbError(f"no OGB entry for {row.name}:\n" + "\n".join(f"- {problem}" for problem in problems))
    results = experiment.results_of(row.method).loc[required_seeds]
    external = external_data(experiment)
    network = "no GNN" if experiment.mode == "glem_lm" else network_of(experiment)
    return {
        "ogb_version": version,
        "method": method_name(flags["name"] or (f"{row.method} ({network})" if network else row.method), external),
        "external_data": external,
        "dataset": board.dataset,
        **Spread.of(results["test"]).columns("test"),
        **Spread.of(results["valid"]).columns("valid"),
        "seeds": required_seeds,
        **{name: flags[name] for name in ("contact", "code", "paper")},
        "params": row.params,
        "hardware": flags["hardware"],
        "tuned_hyperparameters": tuned_hyperparameters(board, row),
        "official": flags["official"],
        "dataset_fingerprint": board.fingerprint,
        "config": row.config,
    }


def _problems(
    board: Board,
    row: Row,
    experiment: Experiment,
    flags: Mapping[str, Any],
    required_seeds: Sequence[int],
    version: str,
) -> Iterator[str]:
    if not re.fullmatch(r"ogb[a-z]-\w+", board.dataset):
        yield f"the dataset is {board.dataset}, expected one of OGB's, e.g. ogbn-arxiv"
    if board.fingerprint is None:
        yield "the runs did not record the graph's fingerprint, so nothing shows that it is OGB's graph"
    if board.metric != METRIC:
        yield f"{board.metric} selected the weights (metric_best), expected {METRIC}, OGB's metric"
    if experiment.mode == STOCK:
        yield "GraphGym's own training tests the last weights, not those that validation selects"
    if missing := [seed for seed in required_seeds if seed not in row.seeds]:
        yield (
            f"the seeds are {list(row.seeds)}, expected {required_seeds[0]} to {required_seeds[-1]}; missing: "
            f"{missing} (run/main.py --repeat {len(required_seeds)} seed 0 runs those)"
        )
    recorded = experiment.versions.get("ogb", [])  # other packages of several versions are a note on the leaderboard
    if flags["ogb_version"] and set(recorded) - {version}:
        yield f"--ogb-version is {version}, but the runs recorded {', '.join(recorded)}"
    if len(recorded) > 1:
        yield f"the seeds were run with different versions of ogb: {', '.join(recorded)}; run them anew"
    if not version:
        yield "the runs did not record the version of ogb; give it with --ogb-version"
    elif len(recorded) < 2 and _version_numbers(version) < _version_numbers(MIN_OGB):
        yield f"the version of ogb is {version}, expected at least {MIN_OGB}"
    if len(em_iterations := experiment.em_iterations) > 1:
        yield (
            f"the seeds were run with different glem.em_iterations: {', '.join(map(str, em_iterations))}; run all of "
            "them again with the one that validation chose, and they go on from where they are"
        )
    best = next(candidate for candidate in board.rows if candidate.method == row.method)
    if best != row:
        yield (
            f"hyperparameters are chosen by validation, by which {best.name} ({100 * best.valid.mean:.2f} %) is "
            f"better than {row.name} ({100 * row.valid.mean:.2f} %); name that row, or give --dir the experiments of "
            "this submission alone"
        )
    if experiment.mode not in (STOCK, *READ_TEXT, "glem_gnn") and _recorded_sources(experiment) is None:
        yield f"what runs of mode {experiment.mode} read beside the dataset is not recorded; fill in the form by hand"
    file, _, mode, _ = _teacher(experiment)
    if file and not flags["name"] and not mode:
        yield (
            f"glem.first_predictions is {file}, but the run.json of the run that made it is not found, so the external "
            "data that it used are unknown; mention them in --name, or run this where that run's folder is"
        )
    url = ("^https?://", "a URL")
    expected = {"contact": ("@", "a name and an e-mail address"), "code": url, "hardware": ("", ""), "paper": url}
    for name, (pattern, meaning) in expected.items():
        if not flags[name].strip():
            yield f"--{name} is missing"
        elif not re.search(pattern, flags[name]):
            yield f"--{name} is {flags[name]!r}, expected {meaning}"
    if flags["official"] is None:
        yield "--official or --unofficial is missing"


def _version_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _teacher(experiment: Experiment) -> tuple[Path | None, str, str, dict[str, Any]]:
    """File of the first predictions or None, and name, mode and settings of the experiment that made it, if known."""
    text = experiment.settings.get("glem.first_predictions") if experiment.mode == "glem" else None
    if not text:
        return None, "", "", {}
    file = Path(str(text))
    try:
        run = file.resolve().parents[2]  # <experiment>/<seed>/stages/<stage>/logits.npy
        run_json = read_json(run / "run.json")
        return file, run.parent.name, str(run_json["mode"]), dict(run_json["settings"])
    except (OSError, LookupError, TypeError, ValueError):
        return file, "", "", {}


def external_data(experiment: Experiment) -> list[str]:
    """Sources that a run used beyond the dataset: raw text, a pretrained model, files of features or predictions.

    Predictions of another run bring in the sources that its ``run.json`` shows. An ensemble recorded its members'.
    """
    if (recorded := _recorded_sources(experiment)) is not None:
        return recorded
    sources = _sources_of(experiment.mode, experiment.settings)
    file, name, mode, settings = _teacher(experiment)
    if file:
        sources += [f"predictions of {name}", *_sources_of(mode, settings)] if mode else [f"predictions {file.name}"]
    return list(dict.fromkeys(sources))


def _recorded_sources(experiment: Experiment) -> list[str] | None:
    return next(iter(experiment.runs.values())).get("external_data")


def _sources_of(mode: str, settings: Mapping[str, Any]) -> list[str]:
    kinds = set(str(settings.get("glem.node_features", "")).split("+"))
    encodes = mode in READ_TEXT or bool({"text", "static"} & kinds)
    sources = [RAW_TEXT] if encodes or {"bow", "tfidf"} & kinds else []
    if encodes and (settings.get("lm.pretrained", True) or "static" in kinds):
        sources.append(f"pretrained {PurePath(str(settings.get('lm.model', 'language model'))).name}")
    if "file" in kinds:
        file = PurePath(str(settings.get("glem.feature_file", "")))
        # Its folders often tell more than its name: giant/ogbn-papers100M/X.all.xrt-emb.npy
        sources.append(f"features {'/'.join(file.relative_to(file.anchor).parts[-3:])}")
    return sources


def method_name(name: str, external: Sequence[str]) -> str:
    """Append to a name the external data that it omits: ``GLEM+GCN (raw text, pretrained deberta-base)``."""
    omitted = [source for source in external if source.removeprefix("pretrained ").lower() not in name.lower()]
    return f"{name} ({', '.join(omitted)})" if omitted else name


def tuned_hyperparameters(board: Board, row: Row) -> list[str]:
    """``"optim.base_lr: [0.001*, 0.01]"`` per setting that was tried with several values; * marks the chosen one."""
    experiment = board.experiments[row.experiment]
    rivals = [rival for rival in board.experiments.values() if rival.mode == experiment.mode]
    tuned = []
    for key in sorted(key for keys in varied_settings(rivals) for key in keys):
        values = {sort_key(value, show_value): value for rival in rivals for value in [rival.settings.get(key)]}
        value_texts = [
            show_value(value) + "*" * (value == experiment.settings.get(key)) for _, value in sorted(values.items())
        ]
        tuned.append(f"{key}: [{', '.join(value_texts)}]")
    return tuned


def entry_markdown(entry: Mapping[str, Any]) -> str:
    def escaped(value: Any) -> Any:
        return value.replace("|", "\\|") if isinstance(value, str) else value

    return Template(TABLE.read_text(encoding="utf-8"), keep_trailing_newline=True, finalize=escaped).render(entry)
