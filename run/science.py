"""The comparison of docs/science.md: ``python run/science.py [method ...]``, each by default; resumes where it was.

Every method is searched for its settings by validation with seed 100, then run with seeds 0 to 9. What is done is not
done again: settings that were found lie in configs_gg/science/, and a method whose file is there is not searched for.
Other folders: science/ for configurations, results/science for the runs. When all runs are finished, ``--unblind``
shows the test scores and the outcome. Two follow-ups take the settings that were found: ``--whole`` runs the best
methods of the finished comparison on the whole graph, ``--label_rates`` the best GLEM with one EM iteration on other
shares of labelled nodes; with ``--unblind`` they show theirs. Exit status: 0 done; 1 a step failed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from command_line import CONFIGS, before_imports, run_program

if TYPE_CHECKING:
    from glem_graphgym.report.experiments import Experiment

    Row = tuple[Experiment, str]  # and its method

RUN = Path(__file__).resolve().parent
WORK, RESULTS, FOUND = Path("science"), Path("results") / "science", CONFIGS / "science"
SEARCH_SEED, SEEDS, TRIALS = 100, 10, 12
WHOLE_METHODS, FOLLOW_UP_SEEDS = 6, 5
LABEL_RATES = (2, 5, 20, 50)  # percent; the comparison itself has 10


@dataclass(frozen=True)
class Method:
    """A method: its settings beside those that all share, its space, and whether it starts from the LM on gold labels.

    Every method has `TRIALS` trials; of one ``on_lm`` half are those of the LM, whose best settings it takes over.
    """

    settings: dict[str, Any]
    space: str
    on_lm: bool = False


def gnn(network: str, features: str) -> Method:
    return Method({"train.mode": "glem_gnn", "model.type": network, "glem.node_features": features}, "science_gnn")


def cascade(network: str) -> Method:
    return Method({"train.mode": "glem_cascade", "model.type": network}, "science_gnn", on_lm=True)


def glem(network: str) -> Method:
    return Method({"model.type": network}, "science_glem", on_lm=True)


METHODS = {
    "lm": Method({"train.mode": "glem_lm"}, "science_lm"),
    "lora": Method({"train.mode": "glem_lm", "lm.lora_rank": 16}, "science_lora"),
    "tfidf_sage": gnn("glem_sage", "tfidf"),
    "static_sage": gnn("glem_sage", "static"),
    "static_gamlp": gnn("glem_gamlp", "static"),
    "cascade_sage": cascade("glem_sage"),
    "cascade_gamlp": cascade("glem_gamlp"),
    "joint_sage": Method({"train.mode": "glem_joint", "gnn.fan_out": [5, 3]}, "science_joint"),
    "glem_sage": glem("glem_sage"),
    "glem_gamlp": glem("glem_gamlp"),
    "glem_gcn": glem("glem_gcn"),
}
PLATEAU = {"glem.em_iterations": -1, "glem.em_max_iterations": 4}
PLATEAU_SUFFIX = "_plateau"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("methods", nargs="*", help=f"some of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--max_jobs", type=int, default=1, help="trials and runs at a time (default: 1)")
    parser.add_argument("--unblind", action="store_true", help="show test scores, once all runs are finished")
    follow_up = parser.add_mutually_exclusive_group()
    follow_up.add_argument("--whole", action="store_true", help="six best methods on the whole graph, five seeds")
    follow_up.add_argument("--label_rates", action="store_true", help="best GLEM with other label rates, five seeds")
    args = parser.parse_args(argv)
    if args.max_jobs < 1:
        parser.error(f"--max_jobs is {args.max_jobs}, expected at least 1")
    name = "whole" if args.whole else "label_rates" if args.label_rates else ""
    results = RESULTS.with_name(f"science_{name}") if name else RESULTS
    if args.unblind:
        before_imports(computes=False)
        call(sys.executable, RUN / "leaderboard.py", "--dir", results, "--unblind")
        if not args.label_rates:
            print_outcome(results)
        return 0
    if unknown := [name for name in args.methods if name not in METHODS]:
        parser.error(f"no method is called '{unknown[0]}'; expected some of: {', '.join(METHODS)}")
    if name and args.methods:
        parser.error(f"--{name} takes the best methods of the finished comparison: name none")
    configs = write_follow_up(name, results) if name else None  # refused before the results are hidden
    if not (results / "blind.json").exists():  # before any run: logs hide test scores, too
        call(sys.executable, RUN / "leaderboard.py", "--dir", results, "--blind")
    if configs:
        call("bash", RUN / "parallel.sh", configs, FOLLOW_UP_SEEDS, args.max_jobs)
    else:
        run_small(args.methods or list(METHODS), args.max_jobs)
    call(sys.executable, RUN / "leaderboard.py", "--dir", results, "--blind")
    return 0


def run_small(methods: list[str], max_jobs: int) -> None:
    """Search for settings, run them with all seeds, and the best GLEM also until validation no longer rises."""
    lm = found(search("lm", "on_gold", {}, TRIALS // 2, max_jobs), "lm")
    configs = WORK / "final"
    for name in methods:
        on_lm = METHODS[name].on_lm
        search(name, name, lm if on_lm else {}, TRIALS // 2 if on_lm else TRIALS, max_jobs)
        write_final(configs / f"{name}.yaml", name, {"out_dir": str(RESULTS)})
    call("bash", RUN / "parallel.sh", configs, SEEDS, max_jobs)
    if glems := [name for name in methods if name.startswith("glem")]:
        best = max(glems, key=validation) + PLATEAU_SUFFIX
        write_final(configs / f"{best}.yaml", best, {"out_dir": str(RESULTS)})
        call("bash", RUN / "parallel.sh", configs, SEEDS, max_jobs)


def write_follow_up(name: str, results: Path) -> Path:
    """Write the configurations of a follow-up into a folder, which is returned."""
    configs, methods = WORK / name, best_methods()
    if name == "whole":
        for method in methods[:WHOLE_METHODS]:
            settings = {"out_dir": str(results), "dataset.tag_max_nodes": 0}
            write_final(configs / f"{method}.yaml", method, settings)
    else:
        glem = next(method for method in methods if method.startswith("glem") and not method.endswith(PLATEAU_SUFFIX))
        for rate in LABEL_RATES:
            split = [rate / 100, 0.1, round(0.9 - rate / 100, 2)]
            write_final(configs / f"{glem}_{rate}.yaml", glem, {"out_dir": str(results), "dataset.tag_split": split})
    return configs


def best_methods() -> list[str]:
    """The methods of the finished comparison, the best by validation first."""
    finished = [file.name.removesuffix(".yaml_done") for file in sorted((WORK / "final").glob("*.yaml_done"))]
    if missing := [name for name in METHODS if name not in finished]:
        raise SystemExit(
            f"{WORK / 'final'}: {', '.join(missing)} not finished on the small variant, where validation chooses the "
            "methods of a follow-up; run first: python run/science.py"
        )
    return sorted(finished, key=validation, reverse=True)


def search(name: str, result: str, base: dict[str, Any], trials: int, max_jobs: int) -> Path:
    """The YAML ``result`` of the best settings of a method, searched for with ``base`` beside its own settings."""
    from glem_graphgym.files import atomic_write

    file = FOUND / f"{result}.yaml"
    if not file.exists():
        method = METHODS[name]
        config = yaml.safe_load((CONFIGS / "science" / "shared.yaml").read_text(encoding="utf-8"))
        set_all(config, {**base, **method.settings, "seed": SEARCH_SEED, "out_dir": str(RESULTS / "search")})
        start = write(WORK / "base" / f"{name}.yaml", config)
        space = CONFIGS / "spaces" / f"{method.space}.txt"
        options = ("--trials", trials, "--max_jobs", max_jobs, "--out_dir", WORK)
        call(sys.executable, RUN / "search.py", "--config", start, "--space", space, *options)
        best = WORK / f"{name}_{method.space}_best.yaml"
        with atomic_write(file, "w") as stream:  # half a file would count as the settings that were found
            stream.write(best.read_text(encoding="utf-8"))
    return file


def found(best: Path, group: str) -> dict[str, Any]:
    """``group.key`` -> value of the best settings in a group."""
    config = yaml.safe_load(best.read_text(encoding="utf-8"))
    return {f"{group}.{key}": value for key, value in config[group].items()}


def write_final(file: Path, name: str, settings: dict[str, Any]) -> None:
    """Write a method with its best settings, changed by ``settings``, for runs with all seeds, unless they are done."""
    method = name.removesuffix(PLATEAU_SUFFIX)
    config = yaml.safe_load((FOUND / f"{method}.yaml").read_text(encoding="utf-8"))
    plateau = {} if method == name else PLATEAU
    set_all(config, {"seed": 0, "glem.search_trials": TRIALS, **plateau, **settings})
    if not file.with_name(f"{file.name}_done").exists():
        write(file, config)


def validation(name: str) -> float:
    """Mean validation accuracy of a method over its seeds."""
    from glem_graphgym.report.experiments import read_experiments

    return max(mean_validation(row) for row in rows(read_experiments([RESULTS / name])[0][0]))


def rows(experiment: Experiment) -> list[Row]:
    """The rows of which the better one by validation stands for a method: both models of GLEM, else the last model."""
    from glem_graphgym.modes import MODES

    methods = ("GLEM-LM", "GLEM-GNN") if experiment.mode == "glem" else MODES[experiment.mode].methods[-1:]
    return [(experiment, method) for method in methods]


def scores(row: Row, split: str) -> dict[int, float]:
    """Seed -> accuracy on a split."""
    experiment, method = row
    return {int(str(seed)): float(score) for seed, score in experiment.results_of(method)[split].items()}


def mean_validation(row: Row) -> float:
    return statistics.fmean(scores(row, "valid").values())


def print_outcome(results: Path) -> None:
    """Print the comparisons of the protocol: the best GLEM by validation with each reference that has been run."""
    from glem_graphgym.report.experiments import read_experiments
    from glem_graphgym.report.significance import holm, paired_difference

    experiments = read_experiments([results])[0]
    best, method = max((row for one in experiments if one.mode == "glem" for row in rows(one)), key=mean_validation)
    others = {one.name: rows(one)[0] for one in experiments if one.mode != "glem"}
    network = best.name.split("_")[1]
    references: dict[str, Row] = {
        "best without GLEM": max(others.values(), key=mean_validation),
        "cascade, same GNN": others.get(f"cascade_{network}", (best, "Cascade")),
    }
    if "joint_sage" in others:
        references["joint training"] = others["joint_sage"]
    ours, outcomes = scores((best, method), "test"), best.outcomes(method)
    print(f"best GLEM by validation: {best.name}, {method}")
    differences = holm(
        [
            paired_difference(ours, scores(row, "test"), f"{name} ({row[0].name})", outcomes, row[0].outcomes(row[1]))
            for name, row in references.items()
        ]
    )
    for found in differences:
        assert found is not None and found.mean is not None and found.interval is not None
        low, high = found.interval
        told = found.is_significant and low * high > 0
        verdict = ("wins" if found.mean > 0 else "loses") if told else "not told apart"
        points = f"{100 * found.mean:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"
        print(f"against {found.reference}: {points}, {found.reason}, {found.seeds} seeds: {verdict}")


def set_all(config: dict[str, Any], settings: dict[str, Any]) -> None:
    for key, value in settings.items():
        group, _, name = key.rpartition(".")
        (config.setdefault(group, {}) if group else config)[name] = value


def write(file: Path, config: dict[str, Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return file


def call(*command: object) -> None:
    """Run a program; exits with its status where that is not 0."""
    status = subprocess.run([*map(str, command)], env={**os.environ, "PYTHON": sys.executable}, check=False).returncode
    if status:
        sys.exit(status)


if __name__ == "__main__":
    sys.exit(run_program(main))
