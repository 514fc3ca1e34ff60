"""What the OGB leaderboard's submission form asks for, and whether its rules hold.

Rules: https://ogb.stanford.edu/docs/leader_overview/ (mean and unbiased std over the seeds 0-9, three seeds for
ogbn-papers100M; parameters of all stages; external data named in the method's name; hyperparameters by validation).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath
from typing import Any

from glem_graphgym.files import read_json
from glem_graphgym.report.experiments import STOCK, Experiment, network_of
from glem_graphgym.report.leaderboard import Board, Row, Spread, grid_axes, show_value

SEEDS = {"ogbn-papers100M": 3}
DEFAULT_SEEDS = 10
MIN_OGB = (1, 3, 6)  # the latest, so that every dataset's own requirement is met
RAW_TEXT = "raw text"


class OgbError(ValueError):
    """The rules do not hold; the message lists everything that is wrong."""


@dataclass(frozen=True)
class About:
    """What runs can not know of themselves; "" and None are refused.

    Attributes:
        contact: name and e-mail address.
        code, paper: URLs.
        hardware: e.g. ``NVIDIA H100 (80GB GPU)``.
        official: whether the submitter wrote the method's paper.
        name: name of the method; external data that it does not mention is appended. "" means one made of the run.
        ogb_version: where the runs did not record it.
    """

    contact: str = ""
    code: str = ""
    paper: str = ""
    hardware: str = ""
    official: bool | None = None
    name: str = ""
    ogb_version: str = ""


@dataclass(frozen=True)
class OgbEntry:
    """The fields of the submission form, in its order."""

    ogb_version: str
    method: str
    external_data: list[str]
    dataset: str
    test_mean: float
    test_std: float
    valid_mean: float
    valid_std: float
    seeds: list[int]
    contact: str
    code: str
    paper: str
    params: int
    hardware: str
    tuned_hyperparameters: list[str]
    official: bool
    dataset_fingerprint: str
    config: str


def ogb_entry(board: Board, about: About, row: Row | None = None) -> OgbEntry:
    """The entry of a row (that with the best validation score unless given).

    Raises:
        OgbError: a rule does not hold or a field is missing; lists all of them.
    """
    row = row or board.rows[0]
    experiment = board.experiments[row.experiment]
    version = about.ogb_version or ", ".join(experiment.versions("ogb"))
    wanted = list(range(SEEDS.get(board.dataset, DEFAULT_SEEDS)))
    problems = [
        *_graph_problems(board, experiment),
        *_seed_problems(row, wanted),
        *_version_problems(experiment.versions("ogb"), about, version),
        *_iteration_problems(experiment),
        *_choice_problems(board, row),
        *_teacher_problems(experiment, about),
        *_missing(about),
    ]
    if problems:
        raise OgbError(f"no OGB entry for {row.name}:\n" + "\n".join(f"- {problem}" for problem in problems))
    results = [experiment.runs[seed].results[row.method] for seed in wanted]
    valid, test = Spread.of(one.valid for one in results), Spread.of(one.test for one in results)
    assert valid.std is not None and test.std is not None and about.official is not None
    external = external_data(experiment)
    return OgbEntry(
        ogb_version=version,
        method=method_name(about.name or f"{row.method} ({_network(experiment)})", external),
        external_data=external,
        dataset=board.dataset,
        test_mean=test.mean,
        test_std=test.std,
        valid_mean=valid.mean,
        valid_std=valid.std,
        seeds=wanted,
        contact=about.contact,
        code=about.code,
        paper=about.paper,
        params=row.params,
        hardware=about.hardware,
        tuned_hyperparameters=tuned_hyperparameters(board, row),
        official=about.official,
        dataset_fingerprint=board.fingerprint or "",
        config=row.config,
    )


def _graph_problems(board: Board, experiment: Experiment) -> list[str]:
    problems = []
    if not re.fullmatch(r"ogb[a-z]-\w+", board.dataset):
        problems.append(f"the dataset is {board.dataset}, expected one of OGB's, e.g. ogbn-arxiv")
    if board.fingerprint is None:
        problems.append("the runs did not record the graph's fingerprint, so nothing shows that it is OGB's graph")
    if experiment.mode == STOCK:
        problems.append("GraphGym's own training tests the last weights, not those that validation selects")
    return problems


def _seed_problems(row: Row, wanted: Sequence[int]) -> list[str]:
    missing = [seed for seed in wanted if seed not in row.seeds]
    if not missing:
        return []
    return [
        f"the seeds are {list(row.seeds)}, expected {wanted[0]} to {wanted[-1]}; missing: {missing} "
        f"(run/main.py --repeat {len(wanted)} seed 0 runs those)"
    ]


def _version_problems(recorded: Sequence[str], about: About, version: str) -> list[str]:
    """OGB's own version alone is asked for; of other packages that differ the leaderboard has a note."""
    problems = []
    if about.ogb_version and set(recorded) - {about.ogb_version}:
        problems.append(f"--ogb-version is {about.ogb_version}, but the runs recorded {', '.join(recorded)}")
    if len(recorded) > 1:
        problems.append(f"the seeds were run with different versions of ogb: {', '.join(recorded)}; run them anew")
    if not version:
        problems.append("the runs did not record the version of ogb; give it with --ogb-version")
    elif len(recorded) < 2 and _numbers(version) < MIN_OGB:
        wanted = ".".join(map(str, MIN_OGB))
        problems.append(f"the version of ogb is {version}, expected at least {wanted}")
    return problems


def _iteration_problems(experiment: Experiment) -> list[str]:
    asked = experiment.em_iterations
    if len(asked) < 2:
        return []
    return [
        f"the seeds were run with different glem.em_iterations: {', '.join(map(str, asked))}; run all of them again "
        "with the one that validation chose, and they go on from where they are"
    ]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _choice_problems(board: Board, row: Row) -> list[str]:
    best = next(other for other in board.rows if other.method == row.method)
    if best == row:
        return []
    return [
        f"hyperparameters are chosen by validation, and there {best.name} ({100 * best.valid.mean:.2f} %) is better "
        f"than {row.name} ({100 * row.valid.mean:.2f} %); name that row, or give --dir the experiments of this "
        "submission alone"
    ]


def _missing(about: About) -> list[str]:
    flags = ("contact", "code", "paper", "hardware")
    problems = [f"--{name} is missing" for name in flags if not getattr(about, name).strip()]
    if about.contact and "@" not in about.contact:
        problems.append(f"--contact is {about.contact!r}, expected a name and an e-mail address")
    problems += [
        f"--{name} is {value!r}, expected a URL"
        for name, value in (("code", about.code), ("paper", about.paper))
        if value and not re.match(r"https?://", value)
    ]
    if about.official is None:
        problems.append("--official or --unofficial is missing")
    return problems


def _teacher_problems(experiment: Experiment, about: About) -> list[str]:
    file = first_predictions(experiment)
    if file is None or about.name or _teacher(file):
        return []
    return [
        f"glem.first_predictions is {file}, and no run.json of a run that made it is found, so what external data the "
        "predictions rest on is not known; give a --name that says it, or run this where that run's folder is"
    ]


def first_predictions(experiment: Experiment) -> Path | None:
    file = experiment.settings.get("glem.first_predictions")
    return Path(str(file)) if file and experiment.mode == "glem" else None


def _teacher(logits: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and ``run.json`` of the experiment that made ``<experiment>/<seed>/stages/<stage>/logits.npy``, if there."""
    run = logits.resolve().parent.parent.parent
    try:
        about = read_json(run / "run.json")
        return run.parent.name, {"mode": str(about["mode"]), "settings": dict(about["settings"])}
    except (OSError, KeyError, TypeError, ValueError):
        return None


def external_data(experiment: Experiment) -> list[str]:
    """What a run used beyond the dataset: raw text, a pretrained model, files of features or predictions.

    Predictions that another run made bring what that run used, which is followed to its ``run.json``.
    """
    found = _data_of(experiment.mode, experiment.settings)
    file = first_predictions(experiment)
    teacher = file and _teacher(file)
    if teacher:
        name, about = teacher
        found += [f"predictions of {name}", *_data_of(about["mode"], about["settings"])]
    elif file:
        found.append(f"predictions {file.name}")
    return list(dict.fromkeys(found))


def _data_of(mode: str, settings: Mapping[str, Any]) -> list[str]:
    kinds = str(settings.get("glem.node_features", "")).split("+")
    modes = ("glem", "glem_lm", "glem_cascade", "glem_joint")
    reads_text = mode in modes or bool({"text", "static"} & set(kinds))
    found = []
    if reads_text:
        found.append(RAW_TEXT)
        if settings.get("lm.pretrained", True) or "static" in kinds:
            found.append(f"pretrained {PurePath(str(settings.get('lm.model', 'language model'))).name}")
    if "file" in kinds:
        file = PurePath(str(settings.get("glem.feature_file", "")))
        # Its folders often tell more than its name: giant/ogbn-papers100M/X.all.xrt-emb.npy
        found.append(f"features {'/'.join(file.relative_to(file.anchor).parts[-3:])}")
    return found


def method_name(name: str, external: Sequence[str]) -> str:
    """The name with the external data that it does not mention: ``GLEM+GCN (raw text, pretrained deberta-base)``."""
    unsaid = [one for one in external if one.removeprefix("pretrained ").lower() not in name.lower()]
    return f"{name} ({', '.join(unsaid)})" if unsaid else name


def _network(experiment: Experiment) -> str:
    return "no GNN" if experiment.mode == "glem_lm" else network_of(experiment)


def tuned_hyperparameters(board: Board, row: Row) -> list[str]:
    """``"optim.base_lr: [0.001*, 0.01]"`` for each setting that was tried with several values; * is the chosen one."""
    chosen = board.experiments[row.experiment]
    rivals = [one for one in board.experiments.values() if one.mode == chosen.mode]
    tuned = []
    for key in sorted(key for axis in grid_axes(rivals) for key in axis.keys):
        values = {_sortable(one.settings.get(key)): one.settings.get(key) for one in rivals}
        ordered = [values[place] for place in sorted(values)]
        shown = [show_value(value) + ("*" if value == chosen.settings.get(key) else "") for value in ordered]
        tuned.append(f"{key}: [{', '.join(shown)}]")
    return tuned


def _sortable(value: Any) -> tuple[int, float, str]:
    if isinstance(value, int | float):
        return (0, float(value), "")
    return (1, 0.0, show_value(value))


def entry_json(entry: OgbEntry) -> dict[str, Any]:
    return asdict(entry)


def entry_markdown(entry: OgbEntry) -> str:
    """The entry as a Markdown table, in the order of the form."""
    fields = {
        "OGB version": entry.ogb_version,
        "Method": entry.method,
        "External data": f"Yes: {', '.join(entry.external_data)}" if entry.external_data else "No",
        "Dataset": entry.dataset,
        "Test performance": f"{entry.test_mean:.4f} ± {entry.test_std:.4f}",
        "Validation performance": f"{entry.valid_mean:.4f} ± {entry.valid_std:.4f}",
        "Seeds": ", ".join(map(str, entry.seeds)),
        "Contact": entry.contact,
        "Code": entry.code,
        "Paper": entry.paper,
        "#Params": f"{entry.params:,}",
        "Hardware": entry.hardware,
        "Tuned hyperparameters": "; ".join(entry.tuned_hyperparameters) or "none",
        "Official": "official" if entry.official else "unofficial",
        "Dataset fingerprint": entry.dataset_fingerprint,
        "Configuration": entry.config,
    }
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in fields.items()]
    return "\n".join(["| field | value |", "|---|---|", *lines, ""])
