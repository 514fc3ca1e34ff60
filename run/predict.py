"""Predict all nodes from a finished run: ``python run/predict.py --cfg configs_gg/glem_debian.yaml [key value ...]``.

Give the configuration and the options that the run was trained with. Writes predictions.csv.gz (one row per node: a
class and its probability per method) and predictions.json (scores) into the run's folder; nothing else there changes.
Exit status: as for run/main.py.
"""

from __future__ import annotations

import argparse
import logging
from contextlib import nullcontext
from pathlib import Path

from command_line import add_config, check_repeat, logs_to_file, parse_with_options, run_program
from session import experiment_name, run_to_status, set_up_logging, set_up_process, start_or_join


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Predict all nodes from the weights that a finished run kept.",
        epilog="Options 'key value' override the YAML; give those that the run was trained with.",
    )
    add_config(parser)
    parser.add_argument("--repeat", type=int, default=1, help="number of seeds: seed, seed + 1, ... (default: 1)")
    args = parse_with_options(parser, argv)
    check_repeat(parser, args.repeat)
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return run_to_status(predict, args, quiet=logs_to_file(args))


def predict(args: argparse.Namespace) -> int:
    """Predict all seeds; returns the exit status."""
    from torch_geometric.graphgym.config import cfg

    from glem_graphgym import processes
    from glem_graphgym.build.prediction import FILE, predict_run
    from glem_graphgym.build.run_folder import lock_run_folder, require_finished
    from glem_graphgym.config import check_seeds, load_config
    from glem_graphgym.disk import disk_full_errors
    from glem_graphgym.report import stats

    load_config(cfg, args.cfg_file, args.opts)
    check_seeds(cfg.seed, args.repeat)
    experiment = Path(cfg.out_dir) / experiment_name(args.cfg_file)
    cfg.out_dir = str(experiment)
    folders = [experiment / str(cfg.seed + index) for index in range(args.repeat)]
    for run_dir in folders:
        require_finished(run_dir)
    if (status := start_or_join(cfg, __file__, args.argv)) is not None:
        return status
    is_rank_zero = processes.rank() == 0  # only this process writes
    for run_dir in folders:
        cfg.seed, cfg.run_dir = int(run_dir.name), str(run_dir)
        with disk_full_errors(run_dir), lock_run_folder(run_dir) if is_rank_zero else nullcontext():
            set_up_logging(cfg)
            set_up_process(cfg)
            predict_run(cfg)
            if is_rank_zero:
                stats.print_predictions(run_dir)
                logging.info(f"Predictions: {run_dir / FILE}")
    processes.leave()
    return 0


if __name__ == "__main__":
    status = run_program(main)
    from glem_graphgym import processes

    processes.end(status)
