"""Run one experiment: ``python run/main.py --cfg configs_gg/glem_debian.yaml [--repeat 3] [key value ...]``.

Exit status: 0 the run is finished; 1 it failed (one message says why); 2 the command line is wrong; 75 another process
of the same run has ended.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from command_line import ROOT, add_config, check_repeat, logs_to_file, parse_with_options, run_program
from session import experiment_name, run_to_status, set_up_logging, set_up_process, start_or_join


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """GraphGym's command line: flags and ``key value`` options, in any order."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate one configuration; type the same command again to resume it.",
        epilog="Options 'key value' override the YAML, e.g.: out_dir results seed 3 glem.alpha 0.3",
    )
    add_config(parser)
    parser.add_argument("--repeat", type=int, default=1, help="number of seeds: seed, seed + 1, ... (default: 1)")
    parser.add_argument("--overwrite", action="store_true", help="delete the results of an earlier run of these seeds")
    parser.add_argument("--dry_run", action="store_true", help="only show the run's needs; status 1 if it does not fit")
    parser.add_argument("--mark_done", action="store_true", help="rename the YAML to <name>_done when finished")
    args = parse_with_options(parser, argv)
    check_repeat(parser, args.repeat)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    resume_command = "the same command again" + (" without --overwrite" if args.overwrite else "")
    return run_to_status(run_experiment, args, quiet=logs_to_file(args), resume_command=resume_command)


def run_experiment(args: argparse.Namespace) -> int:
    """Do all seeds of a run, or its dry run; returns the exit status."""
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym import processes
    from glem_graphgym.build.run_folder import lock_run_folder
    from glem_graphgym.config import check_seeds, dump_config, load_config, settings_of
    from glem_graphgym.disk import disk_full_errors
    from glem_graphgym.em.journal import seed_everything

    load_config(cfg, args.cfg_file, args.opts)
    config_file = Path(args.cfg_file)
    config_text = config_file.read_bytes() if args.mark_done else b""
    check_seeds(cfg.seed, args.repeat)
    experiment = Path(cfg.out_dir) / experiment_name(args.cfg_file)
    cfg.out_dir = str(experiment)
    settings = settings_of(cfg)  # GraphGym's training writes into cfg
    if args.dry_run:
        return dry_run(cfg, experiment, args.repeat, args.overwrite)
    if (status := start_or_join(cfg, __file__, args.argv)) is not None:
        return status
    is_rank_zero = processes.rank() == 0  # only this process writes and reports
    last_seed = cfg.seed + args.repeat - 1
    for seed in range(cfg.seed, last_seed + 1):
        cfg.seed, cfg.accelerator, cfg.devices = seed, settings.accelerator, settings.devices
        cfg.run_dir = str(experiment / str(seed))
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
        with disk_full_errors(Path(cfg.run_dir)), lock_run_folder(Path(cfg.run_dir)) if is_rank_zero else nullcontext():
            set_up_logging(cfg)
            set_up_process(cfg)
            seed_everything(seed)
            if is_rank_zero and not (experiment / cfg.cfg_dest).exists():
                dump_config(settings, experiment / cfg.cfg_dest)
            if args.repeat > 1:
                logging.info(f"seed {seed}, {seed - settings.seed + 1} of {args.repeat}")
            run_seed(cfg, experiment.name, last_seed - seed + 1 if args.overwrite else 0)
    # Overwrite it only now: a refused run must not change an existing configuration.
    if is_rank_zero:
        dump_config(settings, experiment / cfg.cfg_dest)
        report_experiment(cfg, experiment)
        say_where(cfg.train.mode, experiment, range(settings.seed, last_seed + 1))
    processes.leave()
    if args.mark_done and is_rank_zero:
        if not config_file.is_file() or config_file.read_bytes() != config_text:
            raise ValueError(f"{config_file} has changed since the run began, so it is not marked as done")
        config_file.rename(f"{config_file}_done")
    return 0


def dry_run(cfg: Any, experiment: Path, repeat: int, overwrite: bool) -> int:
    """Print what the run needs, without writing any of its files; returns exit status 1 if something does not fit."""
    from glem_graphgym.config import check_devices
    from glem_graphgym.plan.preflight import examine, print_needs

    check_devices(cfg, None)
    print("trying a part of every stage on this machine ...", flush=True)
    needs = examine(cfg, [experiment / str(cfg.seed + index) for index in range(repeat)], overwrite)
    print_needs(needs, f"{experiment.name}: what it needs")
    return 0 if needs.fits else 1


def run_seed(cfg: Any, name: str, overwrite: int) -> None:
    """Train one seed, and print its scores."""
    from torch_geometric.graphgym.register import train_dict

    from glem_graphgym import processes
    from glem_graphgym.report import stats

    if cfg.train.mode == "standard":
        run_standard(cfg, overwrite)
        return
    train_dict[cfg.train.mode](overwrite=overwrite)
    if processes.rank() > 0:
        return
    run_dir = Path(cfg.run_dir)
    stats.print_run(run_dir, title=f"{name}, seed {cfg.seed}")
    if cfg.print in ("file", "both"):
        stats.log_run(run_dir, run_dir / "logging.log")


def run_standard(cfg: Any, overwrite: int) -> None:
    """Train one seed like GraphGym's own main; a finished seed is not trained again."""
    from torch_geometric.graphgym.logger import infer_task
    from torch_geometric.graphgym.model_builder import create_model
    from torch_geometric.graphgym.train import GraphGymDataModule, train
    from torch_geometric.graphgym.utils.comp_budget import params_count
    from torch_geometric.graphgym.utils.device import auto_select_device

    from glem_graphgym.build.gnn_check import unused_keys
    from glem_graphgym.build.graph import load_text_graph_of
    from glem_graphgym.build.language_model import hardware_for
    from glem_graphgym.build.run_folder import check_run_folder, identity_of, is_finished, take_run_folder
    from glem_graphgym.config import check_metric, unread_keys
    from glem_graphgym.data.pickles import only_data_is_unpickled
    from glem_graphgym.files import read_json, write_json
    from glem_graphgym.memory import PeakMemory
    from glem_graphgym.scores import hides_test

    run_dir = Path(cfg.run_dir)
    identity = identity_of(cfg, load_text_graph_of(cfg, quiet=True) if cfg.dataset.format == "TAG" else None)
    check_run_folder(run_dir, identity, overwrite)
    if not overwrite and is_finished(run_dir):
        logging.info(f"{run_dir} is finished; --overwrite trains it again")
        return
    unread = unread_keys(cfg) if cfg.dataset.format == "TAG" else []
    if unread := [*unread, *unused_keys(cfg)]:
        logging.warning(f"train.mode standard does not read {', '.join(unread)}: set without effect")
    auto_select_device()
    memory, start = PeakMemory(hardware_for(cfg, "32").accelerator), time.perf_counter()
    loaded = f"load dataset.name {cfg.dataset.name} (train.sampler {cfg.train.sampler}, val.sampler {cfg.val.sampler})"
    with graphgym_errors(loaded), only_data_is_unpickled(Path(cfg.dataset.dir)):
        datamodule = GraphGymDataModule()
    check_metric(cfg, infer_task())
    with graphgym_errors(f"build model.type {cfg.model.type}"):
        model = create_model()
    # Only now, as settings that GraphGym refuses must not delete an earlier run.
    take_run_folder(run_dir, identity, overwrite)
    # GraphGym would append to the files of an unfinished run.
    for split in ("train", "val", "test", "ckpt"):
        shutil.rmtree(run_dir / split, ignore_errors=True)
    logging.info(model)
    cfg.params = params_count(model)
    logging.info("Num parameters: %s", cfg.params)
    with warnings.catch_warnings():
        # Hints about devices, workers and loggers would bury the scores.
        for name in ("pytorch_lightning", "lightning_fabric"):
            logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*(does not have many workers|'pin_memory' argument|srun).*")
        hidden = without_test_scores(run_dir) if hides_test(run_dir) else nullcontext()
        with graphgym_errors(f"train model.type {cfg.model.type}"), hidden:
            train(model, datamodule, logger=True, trainer_config={"logger": False, "num_sanity_val_steps": 0})
    cost = {"seconds": round(time.perf_counter() - start, 3), "peak_memory_mb": round(memory.peak_mb(), 1)}
    write_json(run_dir / "run.json", {**read_json(run_dir / "run.json"), **cost, "finished": True})


@contextmanager
def graphgym_errors(task: str) -> Iterator[None]:
    """A block of GraphGym's own code, which checks few of its settings: an error says what it cannot do."""
    from glem_graphgym.config import ConfigError
    from glem_graphgym.memory import is_out_of_memory

    try:
        yield
    except (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError) as error:
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"GraphGym cannot {task} with these settings: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            "; change them, or see the traceback with GLEM_TRACEBACK=1"
        ) from error


@contextmanager
def without_test_scores(run_dir: Path) -> Iterator[None]:
    """A block in which GraphGym's log and TensorBoard events show no test score; messages begin with their split."""

    def hide(record: logging.LogRecord) -> bool:
        if str(record.msg).startswith("test: "):
            record.msg = "test: hidden"
        return True

    logging.getLogger().addFilter(hide)
    try:
        yield
    finally:
        logging.getLogger().removeFilter(hide)
        for events in (run_dir / "test").glob("events.out.tfevents.*"):
            events.unlink()


def report_experiment(cfg: Any, experiment: Path) -> None:
    """Aggregate over all seeds in the experiment's folder."""
    from glem_graphgym.config import metric_of
    from glem_graphgym.report import aggregate
    from glem_graphgym.scores import hides_test

    aggregate.aggregate_seeds(
        experiment, cfg.metric_best, cfg.metric_agg, digits=cfg.round, tensorboard=cfg.tensorboard_agg
    )
    if cfg.train.mode != "standard":
        rows = aggregate.aggregate_summaries(experiment)
        if rows and rows[0].runs > 1:
            title = f"{experiment.name}, mean ± std over {rows[0].runs} seeds"
            aggregate.print_aggregate(rows, title, metric_of(cfg), blind=hides_test(experiment))


def say_where(mode: str, experiment: Path, seeds: range) -> None:
    """Print the last lines: the file with the results, and the command that shows them."""
    seed = str(seeds[0]) if len(seeds) == 1 else f"{{{','.join(map(str, seeds))}}}"
    if mode == "standard":
        file = experiment / "agg" / "test" / "best.json"
    else:
        file = experiment / seed / "summary.json" if len(seeds) == 1 else experiment / "summary.json"
    python = "python" if shutil.which("python") == sys.executable else as_typed(Path(sys.executable))
    installed = not (ROOT / "glem_graphgym").is_dir()
    program = ["-m", "glem_graphgym", "leaderboard"] if installed else [as_typed(ROOT / "run" / "leaderboard.py")]
    command = [python, *program, "--dir", str(experiment)]
    print(f"Results: {file}\nTo see and compare them: {shlex.join(command)}", flush=True)


def as_typed(path: Path) -> str:
    """A path as a user would type it: relative if it is below the working directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    status = run_program(main)
    from glem_graphgym import processes

    processes.end(status)
