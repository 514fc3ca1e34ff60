"""The comparison of docs/science.md: ``python run/science.py [method ...]``, each by default; resumes where it was.

Every method is searched for its settings by validation with seed 100, then run with seeds 0 to 9. What is done is not
done again. Folders: science/ for configurations, results/science for the runs. Exit status: 0 done; 1 a step failed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from command_line import CONFIGS, run_program

RUN = Path(__file__).resolve().parent
WORK, RESULTS = Path("science"), Path("results") / "science"
SEARCH_SEED, SEEDS, TRIALS = 100, 10, 24


@dataclass(frozen=True)
class Method:
    """A method: its settings beside those that all share, its space, and whether it starts from the LM on gold labels.

    Every method has `TRIALS` trials; of one ``on_lm`` half are those of the LM, whose best settings it takes over.
    ``further``: settings of further rows, which are not searched for again.
    """

    settings: dict[str, Any]
    space: str
    on_lm: bool = False
    further: dict[str, dict[str, Any]] = field(default_factory=dict)


def gnn(network: str, features: str) -> Method:
    return Method({"train.mode": "glem_gnn", "model.type": network, "glem.node_features": features}, "science_gnn")


def cascade(network: str) -> Method:
    return Method({"train.mode": "glem_cascade", "model.type": network}, "science_gnn", on_lm=True)


def glem(network: str) -> Method:
    plateau = {"glem.em_iterations": -1, "glem.em_max_iterations": 4}
    return Method({"model.type": network}, "science_glem", on_lm=True, further={"plateau": plateau})


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


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("methods", nargs="*", help=f"some of {', '.join(METHODS)} (default: all)")
    chosen = parser.parse_args(argv).methods or list(METHODS)
    if unknown := [name for name in chosen if name not in METHODS]:
        parser.error(f"no method is called '{unknown[0]}'; expected some of: {', '.join(METHODS)}")
    lm = found(search("on_gold", METHODS["lm"], {}, TRIALS // 2), "lm")
    for name in chosen:
        method = METHODS[name]
        base = lm if method.on_lm else {}
        best = search(name, method, base, TRIALS // 2 if method.on_lm else TRIALS)
        write_final(name, method, yaml.safe_load(best.read_text(encoding="utf-8")))
    call("bash", RUN / "parallel.sh", WORK / "final", SEEDS, 1)
    call(sys.executable, RUN / "leaderboard.py", "--dir", RESULTS, "--blind")
    return 0


def search(name: str, method: Method, base: dict[str, Any], trials: int) -> Path:
    """The YAML of the best settings of a method, searched for with ``base`` beside its own settings."""
    config = yaml.safe_load((CONFIGS / "spaces" / "science.yaml").read_text(encoding="utf-8"))
    set_all(config, {**base, **method.settings, "seed": SEARCH_SEED, "out_dir": str(RESULTS / "search")})
    file = write(WORK / "base" / f"{name}.yaml", config)
    space = CONFIGS / "spaces" / f"{method.space}.txt"
    call(sys.executable, RUN / "search.py", "--config", file, "--space", space, "--trials", trials, "--out_dir", WORK)
    return WORK / f"{name}_{method.space}_best.yaml"


def found(best: Path, group: str) -> dict[str, Any]:
    """``group.key`` -> value of the best settings in a group."""
    config = yaml.safe_load(best.read_text(encoding="utf-8"))
    return {f"{group}.{key}": value for key, value in config[group].items()}


def write_final(name: str, method: Method, config: dict[str, Any]) -> None:
    """Write the configurations that are run with all seeds, unless they are there."""
    final = {"seed": 0, "out_dir": str(RESULTS), "glem.search_trials": TRIALS, "glem.share_lm_gold": True}
    for suffix, settings in {"": {}, **method.further}.items():
        set_all(config, {**final, **settings})
        file = WORK / "final" / f"{name}{'_' * bool(suffix)}{suffix}.yaml"
        if not file.with_name(f"{file.name}_done").exists():
            write(file, config)


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
