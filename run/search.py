"""Search for settings by validation: ``python run/search.py --config synthetic --space FILE --trials 40``.

A space is a grid whose axes may also be ranges: ``optim.base_lr lr log_range(1e-3, 1e-1)``. Optuna draws the points
(TPE), and stops a trial if its validation score falls below the median of the others after a stage. Type the same
command again to resume, or with more ``--trials`` to go on. Writes ``<out_dir>/<config>_<space>_best.yaml``.
Test scores are never read. Exit status: 0 done; 1 nothing was found, or an error; 2 the command line is wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from command_line import MADE_CONFIGS, before_imports, check_repeat, config_file, path, run_program
from grid import space
from grid.jobs import DONE, Job, JobError, Plan, Queue, alone_with, job_of, last_line, make_plan, to_status
from grid.where import configs_folder

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

POLL_SECONDS = 1.0
DIGITS = 4  # significant digits of a number drawn from a range


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0] if __doc__ else None,
        epilog="Environment: GPUS, JOBS_PER_GPU, as for run/parallel.sh.",
    )
    parser.add_argument(
        "--config", type=config_file, required=True, help="base YAML, or the name of one in configs_gg/"
    )
    parser.add_argument("--space", type=path, required=True, help="grid whose axes may be range(a, b), log_range(a, b)")
    parser.add_argument("--trials", type=int, default=40, help="number of settings to try in all (default: 40)")
    parser.add_argument("--repeat", type=int, default=1, help="seeds per trial; their mean counts (default: 1)")
    parser.add_argument("--max_jobs", type=int, default=1, help="trials at a time (default: 1)")
    parser.add_argument(
        "--out_dir", type=path, default=MADE_CONFIGS, help=f"folder to write into (default: {MADE_CONFIGS})"
    )
    parser.add_argument("--seed", type=int, default=123, help="seed of the sampler (default: 123)")
    parser.add_argument("--no_pruning", action="store_true", help="let every trial finish")
    args = parser.parse_args(argv)
    check_repeat(parser, args.repeat)
    for name in ("trials", "max_jobs"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}, expected at least 1")
    if not 0 <= args.seed < 1 << 31:  # a resumed search adds the number of its trials
        parser.error(f"--seed is {args.seed}, expected 0 to {(1 << 31) - 1:,}")
    args.main, args.sleep = "main", 0.0
    return args


class Search(Queue):
    """Runs the trials of a study as jobs, and tells it how they ended.

    Args:
        configs: folder of the trials' configurations.
        results: folder of their experiments.
        metric: validation metric that the search maximises.
    """

    def __init__(
        self, args: argparse.Namespace, plan: Plan, study: Study, configs: Path, results: Path, metric: str
    ) -> None:
        super().__init__(self._new_jobs(), plan, args.trials)
        self.args, self.study, self.configs, self.results, self.metric = args, study, configs, results, metric
        self.trials: dict[str, Trial] = {}  # by name of the running job

    def _new_jobs(self) -> Iterator[Job]:
        """Yield the jobs of new trials; if a trial's point has been run before, report its score without a job."""
        from grid.configs import is_text, make_configs

        blocks = space.read_grid(self.args.space, is_text, ranges=True)
        while len(counted(self.study)) < self.args.trials:
            trial = self.study.ask()
            try:
                configs = make_configs(self.args.config, self.args.space, [draw(trial, blocks)], None)
            except space.GridError as error:
                self._tell(trial, None, str(error))
                continue
            ((name, text),) = configs.items()
            trial.set_user_attr("name", name)
            while name in self.trials:  # the same point is running
                self._wait()
            file = self.configs / f"{name}.yaml"
            if file.with_name(file.name + DONE).exists():
                self._tell(trial, self._value(name))
                continue
            file.write_text(text, encoding="utf-8")
            self.trials[name] = trial
            yield job_of(file)

    def _wait(self) -> None:
        """Wait until a job ends; meanwhile, interrupt jobs that fall behind."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid:
                self._record(pid, os.waitstatus_to_exitcode(status))
                return
            for group, running in self.running.items():
                if running.job.name not in self.stopped and self._falls_behind(running.job.name):
                    self.stopped.add(running.job.name)
                    os.killpg(group, signal.SIGINT)
            time.sleep(POLL_SECONDS)

    def _falls_behind(self, name: str) -> bool:
        """Report the best validation score up to each new stage; returns whether the study would stop the trial."""
        trial = self.trials[name]
        files = sorted((self.results / name).glob("*/stages/[0-9]*/stage.json"))
        valid = [json.loads(file.read_text(encoding="utf-8"))["scores"]["valid"][self.metric] for file in files]
        reported = len(self.study.trials[trial.number].intermediate_values)
        for step in range(reported, len(valid)):
            trial.report(max(valid[: step + 1]), step)
        return len(valid) > reported and trial.should_prune()

    def _record(self, pid: int, code: int | str) -> None:
        running = self.running[pid]
        super()._record(pid, code)
        name = running.job.name
        trial = self.trials.pop(name)
        if running.job in self.finished:
            self._tell(trial, self._value(name))
        elif name in self.stopped:
            self._tell(trial, None)
        else:
            self._tell(trial, None, last_line(running.job.log, running.log_start))

    def _value(self, name: str) -> float:
        """Validation score of a finished trial: the mean over seeds, each at its best epoch."""
        row = json.loads((self.results / name / "agg" / "val" / "best.json").read_text(encoding="utf-8"))
        return float(row[self.metric])

    def _tell(self, trial: Trial, value: float | None, error: str = "") -> None:
        from optuna.trial import TrialState

        state = TrialState.COMPLETE if value is not None else TrialState.FAIL if error else TrialState.PRUNED
        self.study.tell(trial, value, state)
        ended = {"COMPLETE": f"validation {value}", "FAIL": f"failed, {error}", "PRUNED": "fell behind"}[state.name]
        print(f"trial {trial.number + 1}: {ended}", flush=True)


def counted(study: Study) -> list[FrozenTrial]:
    """The trials that have run or are running, without those that were killed and those queued again in their place."""
    return [trial for trial in study.trials if trial.state.name != "WAITING" and "killed" not in trial.user_attrs]


def draw(trial: Trial, blocks: Sequence[space.Block]) -> space.Point:
    """The point of a trial: a block, and a value for each of its axes."""
    block_index = trial.suggest_int("block", 0, len(blocks) - 1)
    values: list[Any] = []
    for axis in blocks[block_index]:
        name = f"{block_index}.{axis.alias}"
        if not axis.scale:
            values.append(axis.values[trial.suggest_categorical(name, range(len(axis.values)))])
        elif isinstance(axis.values[0], int):
            values.append(trial.suggest_int(name, *axis.values, log=axis.scale == "log"))
        else:
            drawn = trial.suggest_float(name, *axis.values, log=axis.scale == "log")
            values.append(float(f"{drawn:.{DIGITS}g}"))
    return space.Point(blocks[block_index], tuple(values))


def open_study(args: argparse.Namespace, folder: Path) -> Study:
    """The study in ``folder``; the trials that a killed search left unfinished are queued again.

    Raises:
        JobError: the study there has another base, space or number of seeds, or its database is damaged.
    """
    import optuna
    from sqlalchemy.exc import DatabaseError
    from sqlalchemy.pool import NullPool  # keeps no connection open that forked jobs would inherit

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    database = folder / "search.db"
    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{database}", engine_kwargs={"poolclass": NullPool})
    except DatabaseError as error:
        raise JobError(
            f"{database} cannot be read ({error.orig}); restore it, or delete it to draw the trials anew: those that "
            "were finished with the same settings are not run again"
        ) from error
    pruner = optuna.pruners.NopPruner() if args.no_pruning else optuna.pruners.MedianPruner()
    # A new seed on every start, or a resumed search would draw the same points again.
    with contextlib.suppress(KeyError):
        args.seed += len(optuna.load_study(study_name="search", storage=storage).trials)
    sampler = optuna.samplers.TPESampler(seed=args.seed, constant_liar=True)
    study = optuna.create_study(
        storage=storage, study_name="search", sampler=sampler, pruner=pruner, direction="maximize", load_if_exists=True
    )
    identity = {"config": args.config.read_text(), "space": args.space.read_text(), "repeat": args.repeat}
    for name, value in identity.items():
        if study.user_attrs.setdefault(name, value) != value:
            raise JobError(
                f"--{name} differs from that of the search in {folder}; expected the same, or another --out_dir"
            )
        study.set_user_attr(name, value)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study._storage.set_trial_user_attr(trial._trial_id, "killed", True)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        study.enqueue_trial(trial.params)
    return study


def check_space(args: argparse.Namespace) -> None:
    """Check each value of each axis, with the first values of the block's other axes; GridError if one is wrong."""
    from grid.configs import is_text, make_configs

    points = []
    for block in space.read_grid(args.space, is_text, "--space", ranges=True):
        for axis in block:
            if axis.key == "out_dir":
                raise space.GridError(
                    f"{args.space}, line {axis.line}: out_dir is where the search finds its trials; set it in --config"
                )
        first_values = tuple(axis.values[0] for axis in block)
        points.append(space.Point(block, first_values))
        for index, axis in enumerate(block):
            points += [
                space.Point(block, (*first_values[:index], value, *first_values[index + 1 :]))
                for value in axis.values[1:]
            ]
    make_configs(args.config, args.space, points, None)


def write_best(search: Search, file: Path) -> str:
    """Write the settings of the best trial; returns what to print about them."""
    from grid.configs import read_base

    from glem_graphgym.files import atomic_write

    study, args = search.study, search.args
    best = study.best_trial
    ended = Counter(trial.state.name for trial in counted(study))
    config = yaml.safe_load((search.configs / f"{best.user_attrs['name']}.yaml{DONE}").read_text(encoding="utf-8"))
    config["out_dir"] = read_base(args.config, "--config").get("out_dir", "results")
    config.setdefault("glem", {})["search_trials"] = ended.total()
    seeds = [config.get("seed", 0) + index for index in range(args.repeat)]
    header = (
        f"# Found by run/search.py: the best of {ended.total()} trials ({ended['PRUNED']} stopped early, "
        f"{ended['FAIL']} failed) of {args.space.name} on {args.config.name},\n"
        f"# by validation {search.metric} {best.value:.4f} with seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}. Test scores were not read.\n"
    )
    with atomic_write(file, "w") as stream:
        stream.write(header + yaml.safe_dump(config, default_flow_style=False, allow_unicode=True))
    return f"best of {ended.total()} trials: validation {search.metric} {best.value:.4f}, settings in {file}"


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    before_imports()
    if importlib.util.find_spec("optuna") is None:
        print("error: run/search.py needs the extra 'search': pip install 'glem-graphgym[search]'", file=sys.stderr)
        return 1
    return to_status(lambda: run_search(args), ValueError, OSError)  # ValueError: GridError, JobError, ConfigError


def run_search(args: argparse.Namespace) -> int:
    """Do the trials that are left, and write the best settings; returns the exit status."""
    from optuna.trial import TrialState
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym.config import load_config, metric_of

    check_space(args)
    load_config(cfg, args.config)
    folder = configs_folder(args.out_dir, args.config, args.space)
    results = configs_folder(cfg.out_dir, args.config, args.space)
    folder.mkdir(parents=True, exist_ok=True)
    with alone_with(folder):
        plan = make_plan(args, args.trials, os.environ)
        search = Search(args, plan, open_study(args, folder), folder, results, metric_of(cfg))
        search.run()
        if not search.study.get_trials(states=[TrialState.COMPLETE]):
            raise JobError(f"none of {args.trials} trials finished; whole logs: {results}/logs/<trial>.log")
        best = args.out_dir / f"{space.base_name(args.config)}_{space.base_name(args.space)}_best.yaml"
        print(write_best(search, best))
    return 0


if __name__ == "__main__":
    sys.exit(run_program(main))
