"""The comparison of docs/science.md: ``python run/science.py [method ...]``, each by default; resumes where it was.

Every method is searched for its settings by validation with seed 100, then run with seeds 0 to 9. What is done is not
done again: settings that were found lie in configs_gg/science/, and a method whose file is there is not searched for.
Other folders: science/ for configurations, results/science for the runs. When all runs are finished, ``--unblind``
shows the test scores and the outcome. Exit status: 0 done; 1 a step failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("methods", nargs="*", help=f"some of {', '.join(METHODS)} (default: all)")
    parser.add_argument("--max_jobs", type=int, default=1, help="trials and runs at a time (default: 1)")
    parser.add_argument("--unblind", action="store_true", help="show test scores, once all runs are finished")
    args = parser.parse_args(argv)
    if args.unblind:
        before_imports(computes=False)
        call(sys.executable, RUN / "leaderboard.py", "--dir", RESULTS, "--unblind")
        print_outcome()
        return 0
    chosen = args.methods or list(METHODS)
    if unknown := [name for name in chosen if name not in METHODS]:
        parser.error(f"no method is called '{unknown[0]}'; expected some of: {', '.join(METHODS)}")
    if not (RESULTS / "blind.json").exists():  # before any run: logs hide test scores, too
        call(sys.executable, RUN / "leaderboard.py", "--dir", RESULTS, "--blind")
    lm = found(search("lm", "on_gold", {}, TRIALS // 2, args.max_jobs), "lm")
    for name in chosen:
        on_lm = METHODS[name].on_lm
        best = search(name, name, lm if on_lm else {}, TRIALS // 2 if on_lm else TRIALS, args.max_jobs)
        write_final(name, best, {})
    call("bash", RUN / "parallel.sh", WORK / "final", SEEDS, args.max_jobs)
    if glems := [name for name in chosen if name.startswith("glem")]:
        name = max(glems, key=validation)
        write_final(f"{name}_plateau", FOUND / f"{name}.yaml", PLATEAU)
        call("bash", RUN / "parallel.sh", WORK / "final", SEEDS, args.max_jobs)
    call(sys.executable, RUN / "leaderboard.py", "--dir", RESULTS, "--blind")
    return 0


def search(name: str, result: str, base: dict[str, Any], trials: int, max_jobs: int) -> Path:
    """The YAML ``result`` of the best settings of a method, searched for with ``base`` beside its own settings."""
    file = FOUND / f"{result}.yaml"
    if not file.exists():
        method = METHODS[name]
        config = yaml.safe_load((CONFIGS / "science" / "shared.yaml").read_text(encoding="utf-8"))
        set_all(config, {**base, **method.settings, "seed": SEARCH_SEED, "out_dir": str(RESULTS / "search")})
        start = write(WORK / "base" / f"{name}.yaml", config)
        space = CONFIGS / "spaces" / f"{method.space}.txt"
        options = ("--trials", trials, "--max_jobs", max_jobs, "--out_dir", WORK)
        call(sys.executable, RUN / "search.py", "--config", start, "--space", space, *options)
        FOUND.mkdir(exist_ok=True)
        shutil.copyfile(WORK / f"{name}_{method.space}_best.yaml", file)
    return file


def found(best: Path, group: str) -> dict[str, Any]:
    """``group.key`` -> value of the best settings in a group."""
    config = yaml.safe_load(best.read_text(encoding="utf-8"))
    return {f"{group}.{key}": value for key, value in config[group].items()}


def write_final(name: str, best: Path, settings: dict[str, Any]) -> None:
    """Write the configuration that is run with all seeds, unless it has been run."""
    config = yaml.safe_load(best.read_text(encoding="utf-8"))
    set_all(config, {"seed": 0, "out_dir": str(RESULTS), "glem.search_trials": TRIALS, **settings})
    file = WORK / "final" / f"{name}.yaml"
    if not file.with_name(f"{file.name}_done").exists():
        write(file, config)


def validation(name: str) -> float:
    """Mean validation accuracy of a method over its seeds."""
    return float(json.loads((RESULTS / name / "agg" / "val" / "best.json").read_text(encoding="utf-8"))["accuracy"])


def print_outcome() -> None:
    """Print the comparisons of the protocol: the best GLEM by validation with each of three references."""
    from glem_graphgym.modes import MODES
    from glem_graphgym.report.experiments import read_experiments
    from glem_graphgym.report.significance import holm, paired_difference

    def scores(row: Row, split: str) -> dict[int, float]:
        one, method = row
        return {int(str(seed)): float(score) for seed, score in one.of(method)[split].items()}

    def valid(row: Row) -> float:
        return statistics.fmean(scores(row, "valid").values())

    experiments = read_experiments([RESULTS])[0]
    glems = [(one, method) for one in experiments if one.mode == "glem" for method in ("GLEM-LM", "GLEM-GNN")]
    others = {one.name: (one, MODES[one.mode].methods[-1]) for one in experiments if one.mode != "glem"}
    best, method = max(glems, key=valid)
    network = best.name.split("_")[1]
    references: dict[str, Row] = {
        "best without GLEM": max(others.values(), key=valid),
        "cascade, same GNN": others.get(f"cascade_{network}", (best, "Cascade")),
        "joint training": others["joint_sage"],
    }
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
